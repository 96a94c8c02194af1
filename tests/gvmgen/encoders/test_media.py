"""Frames and waveforms of made files, checked against what the files were made of and against PyAV."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from gvmgen.encoders import process
from gvmgen.encoders.media import (
    MediaError,
    frame_times,
    probe,
    read_frames,
    read_waveform,
    write_waveform,
)
from tests import media as made

DURATION_S = 24.0
NTSC = Fraction(10_000, 1001)  # 9.99 Hz: no frame but the first falls on a whole second


def make_constant(folder: Path) -> Path:
    return made.make_numbered(folder / "a.mp4", made.constant_times(DURATION_S, Fraction(10)))


def make_ntsc(folder: Path) -> Path:
    return made.make_numbered(
        folder / "a.mp4", made.constant_times(DURATION_S, NTSC), frame_rate=NTSC, gop=60
    )


def make_variable(folder: Path) -> Path:
    return made.make_numbered(folder / "a.mkv", made.variable_times(DURATION_S))


def make_late_picture(folder: Path) -> Path:
    return made.delay_picture(make_constant(folder), folder / "b.mp4", 1.35)


def make_edit_list(folder: Path) -> Path:
    return made.cut_by_edit_list(make_constant(folder), folder / "b.mp4", 1.25)


def make_late_timestamps(folder: Path) -> Path:
    return made.remux(make_constant(folder), folder / "b.ts")  # MPEG-TS starts at 1.4 s, not at 0


def make_few_key_frames(folder: Path) -> Path:
    times = made.constant_times(DURATION_S, Fraction(10))
    return made.make_numbered(folder / "a.mov", times, gop=1000)


def make_ten_bit(folder: Path) -> Path:
    times = made.constant_times(DURATION_S, Fraction(10))
    return made.make_numbered(folder / "a.mp4", times, pixels="yuv420p10le")


def make_odd_size(folder: Path) -> Path:
    times = made.constant_times(DURATION_S, Fraction(10))
    return made.make_numbered(folder / "a.mkv", times, codec="ffv1", pixels="yuv444p", size=(65, 47))


def make_interlaced(folder: Path) -> Path:
    return made.interlace(make_constant(folder), folder / "b.mp4")


MAKERS = [
    make_constant,
    make_ntsc,
    make_variable,
    make_late_picture,
    make_edit_list,
    make_late_timestamps,
    make_few_key_frames,
    make_ten_bit,
    make_odd_size,
    make_interlaced,
]


def oracle(path: Path) -> list[tuple[Fraction, int]]:
    """(time, number) of every frame, decoded by PyAV from the file's start."""
    with av.open(str(path)) as container:
        zero = Fraction(container.start_time, av.time_base)
        return sorted(
            (frame.pts * frame.time_base - zero, made.read_number(frame.to_ndarray(format="rgb24")))
            for frame in container.decode(video=0)
        )


def on_show(frames: list[tuple[Fraction, int]], at_s: float) -> tuple[Fraction, int]:
    """The last frame at or before a time; before the first, the first."""
    return next((frame for frame in reversed(frames) if frame[0] <= at_s), frames[0])


@pytest.mark.parametrize("make", MAKERS)
def test_every_frame_is_the_last_one_at_or_before_its_second(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = make(tmp_path)
    frames = oracle(path)
    for start_s in (0.0, 1.0, 2.5, 11.0, 13.37, 21.0):
        wanted = [on_show(frames, start_s + second) for second in range(int(DURATION_S - start_s) - 2)]
        numbers = [made.read_number(frame) for frame in read_frames(path, start_s, len(wanted))]
        assert numbers == [number for _, number in wanted], f"from {start_s} s"
        assert frame_times(path, start_s, len(wanted)) == pytest.approx([float(t) for t, _ in wanted])


def test_there_is_one_frame_for_each_begun_second(tmp_path: Path) -> None:
    path = made.make_numbered(tmp_path / "a.mp4", made.constant_times(3.2, Fraction(10)))
    assert probe(path).duration_s == pytest.approx(3.2)
    assert [made.read_number(frame) for frame in read_frames(path)] == [0, 10, 20, 30]


def test_after_the_picture_its_last_frame_stays(tmp_path: Path) -> None:
    picture = made.make_numbered(tmp_path / "a.mp4", made.constant_times(2.0, Fraction(10)))
    path = made.join(picture, made.make_clicks(tmp_path / "a.wav", 5.0), tmp_path / "b.mkv")
    assert [made.read_number(frame) for frame in read_frames(path)] == [0, 10, 19, 19, 19]
    assert [made.read_number(frame) for frame in read_frames(path, 3.0)] == [19, 19]


@pytest.mark.parametrize("start_s", [-1.0, 2.0, 9.0])
def test_a_start_outside_the_file_is_refused(tmp_path: Path, start_s: float) -> None:
    path = made.make_numbered(tmp_path / "a.mp4", made.constant_times(2.0, Fraction(10)))
    with pytest.raises(MediaError, match=rf"no {start_s:g} s to start from, it lasts 2\.00 s"):
        next(read_frames(path, start_s))


def test_frames_stand_as_the_camera_was_held(tmp_path: Path) -> None:
    upright = made.make_numbered(tmp_path / "a.mp4", made.constant_times(2.0, Fraction(10)))
    turned = made.rotate(upright, tmp_path / "b.mp4", 90)
    info, frame = probe(turned), next(read_frames(turned))
    assert (info.width, info.height) == (48, 64)
    assert frame.shape == (64, 48, 3)
    straight = list(read_frames(upright))[1]
    assert np.array_equal(np.rot90(straight, info.rotation // 90), list(read_frames(turned))[1])


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    path = made.make_numbered(tmp_path / "a.mp4", [Fraction(0)])
    assert [frame.shape for frame in read_frames(path)] == [(48, 64, 3)]


def test_a_recording_without_duration_is_measured_by_its_packets(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    content = made.make_numbered(path, made.constant_times(3.0, Fraction(10))).read_bytes()
    duration = content.index(b"\x44\x89\x88")  # Matroska's Duration; a browser's live recording has none
    path.write_bytes(content[:duration] + b"\xec\x89" + content[duration + 2 :])  # the same bytes as padding
    content = path.read_bytes().replace(b"DURATION", b"SOMENAME")
    path.write_bytes(content)
    assert probe(path).duration_s == pytest.approx(3.0, abs=0.05)
    assert len(list(read_frames(path))) == 3


@pytest.mark.parametrize("start_s", [0.0, 1.0, 12.0, 14.0])
@pytest.mark.parametrize("delay_s", [0.0, 0.3])
def test_frames_and_waveform_start_at_the_same_moment(tmp_path: Path, start_s: float, delay_s: float) -> None:
    picture = make_constant(tmp_path)
    path = made.join(
        picture,
        made.make_clicks(tmp_path / "a.wav", DURATION_S - 1),
        tmp_path / "b.mkv",
        sound_delay_s=delay_s,
    )
    waveform = read_waveform(path, start_s, 5.0)
    assert waveform.shape == (160_000,)
    assert waveform.dtype == np.float32
    for second, frame in enumerate(read_frames(path, start_s, 5.0)):
        source_s = int(start_s) + second
        assert made.read_number(frame) == 10 * source_s
        after = round((second + delay_s) * 32_000)  # the click of this second, which grows louder each second
        assert waveform[after + 5 : after + 20].mean() * 32768 == pytest.approx(
            6000 + 1000 * source_s, rel=0.05
        )
        assert np.abs(waveform[max(0, after - 2000) : max(0, after - 40)]).sum() < 0.01


def test_sound_after_a_seek_is_the_sound_without_it(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 44_100 * 20).astype("<f4")
    path = tmp_path / "a.m4a"
    made.run_ffmpeg(["-f", "f32le", "-ar", "44100", "-ac", "1", "-i", "pipe:", str(path)], noise.tobytes())
    whole = read_waveform(path, 0.0, 20.0)
    for start_s in (1.0, 13.5, 15.0):
        begin = round(start_s * 32_000)
        assert np.allclose(read_waveform(path, start_s, 3.0), whole[begin : begin + 96_000], atol=1e-3)


def test_a_waveform_has_exactly_the_length_asked_for(tmp_path: Path) -> None:
    path = made.make_clicks(tmp_path / "a.wav", 2.0)
    waveform = read_waveform(path, 0.5, 2.0001)
    assert waveform.shape == (64_003,)
    assert not waveform[48_100:].any()  # silence after the file's end


def test_stereo_becomes_the_mean_of_its_channels(tmp_path: Path) -> None:
    samples = np.stack([np.full(44_100, 0.5), np.full(44_100, -0.1)], axis=1).astype("<f4")
    path = tmp_path / "a.wav"
    made.run_ffmpeg(["-f", "f32le", "-ar", "44100", "-ac", "2", "-i", "pipe:", str(path)], samples.tobytes())
    assert np.allclose(read_waveform(path)[1000:-1000], 0.2, atol=1e-3)


def test_a_waveform_is_written_and_read_back(tmp_path: Path) -> None:
    waveform = np.sin(np.arange(32_000) / 20).astype(np.float32)
    write_waveform(tmp_path / "a.wav", waveform)
    assert np.abs(read_waveform(tmp_path / "a.wav") - waveform).max() < 1e-3
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def make_nothing(folder: Path) -> Path:
    return folder / "a.mp4"


def make_empty(folder: Path) -> Path:
    (folder / "a.mp4").touch()
    return folder / "a.mp4"


def make_text(folder: Path) -> Path:
    (folder / "a.mp4").write_text("no video at all\n" * 100)
    return folder / "a.mp4"


def make_index_cut_off(folder: Path) -> Path:
    return made.cut_bytes(make_constant(folder), folder / "b.mp4", 0.5)


def make_sound_only(folder: Path) -> Path:
    return made.make_sound_only(folder / "a.m4a")


def make_sound_with_cover(folder: Path) -> Path:
    sound = made.make_sound_only(folder / "a.mp3")
    cover = made.make_numbered(folder / "a.mp4", [Fraction(0)])
    streams = ["-map", "0:a", "-map", "1:v", "-c:a", "copy", "-c:v", "png", "-disposition:v", "attached_pic"]
    made.run_ffmpeg(["-i", str(sound), "-i", str(cover), *streams, str(folder / "b.mp3")])
    return folder / "b.mp3"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_nothing, "no such file"),
        (lambda folder: folder, "is no file"),
        (make_empty, "empty"),
        (make_text, "no media file"),
        (make_index_cut_off, "index is cut off"),
        (make_sound_only, "no picture stream"),
        (make_sound_with_cover, "no picture stream"),
    ],
)
def test_what_is_no_video_is_refused_with_its_name_and_reason(
    make: Callable[[Path], Path], reason: str, tmp_path: Path
) -> None:
    path = make(tmp_path)
    for use in (probe, lambda p: list(read_frames(p))):
        with pytest.raises(MediaError, match=reason) as caught:
            use(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("extension", [".mp4", ".mkv"])
def test_a_file_cut_short_gives_its_frames_and_then_an_error(tmp_path: Path, extension: str) -> None:
    times = made.constant_times(DURATION_S, Fraction(10))
    whole = made.make_numbered(tmp_path / f"a{extension}", times, faststart=extension == ".mp4")
    path = made.cut_bytes(whole, tmp_path / f"b{extension}", 0.6)
    with pytest.raises(MediaError, match=r"ends after \d+ s, its header says 24.0 s"):
        list(read_frames(path))
    assert [made.read_number(frame) for frame in read_frames(path, 0.0, 3.0)] == [0, 10, 20]


def test_a_silent_video_is_refused_where_music_is_needed(tmp_path: Path) -> None:
    path = make_constant(tmp_path)
    with pytest.raises(MediaError, match="no sound"):
        read_waveform(path)


def test_names_that_look_like_options_or_addresses_are_plain_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = made.make_numbered(tmp_path / "a.mp4", made.constant_times(1.0, Fraction(10)))
    monkeypatch.chdir(tmp_path)
    for name in ("-y.mp4", "http:x.mp4", "50%d.mp4"):
        video.rename(name)
        video = Path(name)
        assert len(list(read_frames(name))) == 1


def test_a_playlist_cannot_reach_the_network(tmp_path: Path) -> None:
    playlist = tmp_path / "a.m3u8"
    playlist.write_text("#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(MediaError):
        list(read_frames(playlist))


def test_an_ffmpeg_that_hangs_is_stopped_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = tmp_path / "ffmpeg"
    stuck.write_text("#!/bin/sh\necho $$ > pid\nexec sleep 100\n")
    stuck.chmod(stuck.stat().st_mode | stat.S_IXUSR)
    path = make_constant(tmp_path)
    monkeypatch.setattr(process, "ffmpeg_path", lambda: str(stuck))
    monkeypatch.chdir(tmp_path)
    for read in (
        lambda: next(read_frames(path, deadline_s=0.5)),
        lambda: read_waveform(make_sound_only(tmp_path), deadline_s=0.5),
    ):
        with pytest.raises(MediaError, match="/a"):
            read()
        assert not _is_alive(int(Path("pid").read_text()))


def test_an_ffmpeg_that_only_trickles_is_stopped_when_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "ffmpeg"
    slow.write_text("#!/bin/sh\nwhile :; do printf x; sleep 0.05; done\n")
    slow.chmod(slow.stat().st_mode | stat.S_IXUSR)
    picture, sound = make_constant(tmp_path), make_sound_only(tmp_path)
    monkeypatch.setattr(process, "ffmpeg_path", lambda: str(slow))
    for read in (
        lambda: next(read_frames(picture, ends_at=time.monotonic() + 0.3)),
        lambda: read_waveform(sound, ends_at=time.monotonic() + 0.3),
    ):
        with pytest.raises(process.MediaTimeoutError, match="was not read in its time"):
            read()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_reader_that_stops_early_leaves_no_process(tmp_path: Path) -> None:
    path = make_constant(tmp_path)
    frames = read_frames(path)
    next(frames)
    frames.close()
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if children.exists():
        assert not children.read_text().split()


def test_a_long_video_is_read_in_little_memory(tmp_path: Path) -> None:
    times = [Fraction(second) for second in range(120)]
    path = made.make_numbered(tmp_path / "a.mp4", times, frame_rate=Fraction(1), size=(640, 480))
    frames = read_frames(path)
    next(frames)
    before = _resident_bytes()
    assert max(_resident_bytes() - before for _ in frames) < 30e6  # these frames are 110 MB


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_real_videos_give_a_frame_and_a_second_of_sound_each_second(shared_dir: Path) -> None:
    for path in sorted((shared_dir / "videos").glob("*.mp4"))[::4]:
        info = probe(path)
        times = frame_times(path)
        assert len(list(read_frames(path))) == len(times) == int(np.ceil(info.duration_s))
        assert all(0 <= second - at < 1.5 / info.frame_rate for second, at in enumerate(times))
        assert len(read_waveform(path)) == round(info.duration_s * 32_000)
