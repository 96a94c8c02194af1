"""Music in films made for the purpose, looked into with PyAV: what is kept, and that nothing moves."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from gvmgen.encoders.media import frame_times, read_frames
from gvmgen.encoders.probe import probe
from gvmgen.encoders.process import MediaError
from gvmgen.finish.film import Original, check_film, left_out, read_streams, write_film
from gvmgen.finish.mastering import Mastering, Mix, measure
from tests import media as made
from tests.gvmgen.finish.made_music import as_sound, read_comment, read_sound, tone

AS_COMPOSED = Mastering(ending="cut", loudness=None)
SUBTITLES = "1\n00:00:00,500 --> 00:00:01,500\nA bird!\n\n"
CHAPTERS = (
    ";FFMETADATA1\ntitle=Holiday\ncomment=Our own\n"
    "[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=1000\ntitle=Dawn\n"
    "[CHAPTER]\nTIMEBASE=1/1000\nSTART=1000\nEND=2000\ntitle=Noon\n"
)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 s at 10 frames a second, without sound."""
    path = tmp_path_factory.mktemp("picture") / "numbered.mp4"
    return made.make_numbered(path, made.constant_times(2.0, Fraction(10)))


@pytest.fixture(scope="module")
def full(picture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The picture with two sound tracks, 660 Hz and 990 Hz, subtitles, chapters, a title and a comment."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "text.srt").write_text(SUBTITLES)
    (folder / "chapters.txt").write_text(CHAPTERS)
    tones = [f"sine=frequency={pitch}:duration=2:sample_rate=44100" for pitch in (660, 990)]
    inputs = ["-i", picture, "-f", "lavfi", "-i", tones[0], "-f", "lavfi", "-i", tones[1]]
    inputs += ["-i", folder / "text.srt", "-i", folder / "chapters.txt"]
    maps = ["-map", "0:v", "-map", "1:a", "-map", "2:a", "-map", "3:s", "-map_metadata", "4"]
    coders = ["-c:v", "copy", "-c:a", "aac", "-c:s", "srt"]
    languages = ["-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=fra"]
    languages += ["-metadata:s:s:0", "language=ita"]
    path = folder / "full.mkv"
    made.run_ffmpeg([*map(str, inputs), *maps, *coders, *languages, str(path)])
    return path


def film_of(
    video: Path,
    path: Path,
    music: np.ndarray,
    original: Original = "drop",
    start_s: float = 0.0,
    mastering: Mastering = AS_COMPOSED,
) -> Path:
    write_film(video, as_sound(music), path, mastering, original=original, start_s=start_s, tags={"seed": 7})
    return path


def packets(path: Path) -> list[bytes]:
    """The picture's coded packets."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]


def level_db(samples: np.ndarray, rate: int, pitch: float) -> float:
    """Level of one pitch in a sound [N, C], in dB below a full-scale sine."""
    mono = samples.mean(axis=1)
    times = np.arange(len(mono)) / rate
    return float(20 * np.log10(2 * np.abs(np.mean(mono * np.exp(-2j * np.pi * pitch * times))) + 1e-9))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_a_film_has_the_same_picture_packet_by_packet(picture: Path, tmp_path: Path, suffix: str) -> None:
    film = film_of(picture, tmp_path / f"film{suffix}", tone(2.0))
    assert [made.read_number(frame) for frame in read_frames(film, duration_s=2.0)] == [0, 10]
    if suffix != ".mkv":  # Matroska packs them in another way
        assert packets(film) == packets(picture)
    assert probe(film).duration_s == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("original", ["drop", "keep"])
def test_subtitles_chapters_and_titles_are_kept(
    full: Path, tmp_path: Path, suffix: str, original: Original
) -> None:
    film = film_of(full, tmp_path / f"film{suffix}", tone(2.0), original)
    with av.open(str(film)) as container:
        assert container.streams.subtitles[0].metadata["language"] == "ita"
        chapters = [(c["metadata"]["title"], c["start"] * c["time_base"]) for c in container.chapters()]
        text = b"".join(bytes(packet) for packet in container.demux(container.streams.subtitles[0]))
        title = container.metadata["title"]
    assert chapters == [("Dawn", 0), ("Noon", 1)]
    assert b"A bird!" in text
    assert title == "Holiday"
    own, ours = read_comment(film).split("\n")
    assert own == "Our own"
    assert json.loads(ours) == {"seed": 7}


def test_dropped_sound_is_gone_with_all_its_tracks(full: Path, tmp_path: Path) -> None:
    film = film_of(full, tmp_path / "film.mp4", tone(2.0, pitch=440))
    with av.open(str(film)) as container:
        assert len(container.streams.audio) == 1
    samples, rate = read_sound(film)
    assert level_db(samples, rate, 440) == pytest.approx(-20, abs=1)
    assert level_db(samples, rate, 660) < -60


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_kept_sound_is_mixed_and_the_other_tracks_stay(full: Path, tmp_path: Path, suffix: str) -> None:
    film = film_of(full, tmp_path / f"film{suffix}", tone(2.0, pitch=440), "keep")
    with av.open(str(film)) as container:
        assert [sound.metadata["language"] for sound in container.streams.audio] == ["eng", "fra"]
    mixed, rate = read_sound(film, 0)
    before, before_rate = read_sound(full, 0)
    assert level_db(mixed, rate, 660) == pytest.approx(level_db(before, before_rate, 660), abs=0.5)
    assert -14 < level_db(mixed, rate, 440) - level_db(mixed, rate, 660) < -4  # a bed under it
    other, rate = read_sound(film, 1)
    assert level_db(other, rate, 990) > -30
    assert level_db(other, rate, 440) < -60


def test_a_surround_sound_that_is_kept_is_coded_as_well_as_a_stereo_one(
    picture: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    noise = (0.05 * rng.standard_normal((2 * 48_000, 6))).astype("<f4")  # the hardest to code
    (tmp_path / "noise.f32").write_bytes(noise.tobytes())
    raw = ["-f", "f32le", "-ar", "48000", "-ch_layout", "5.1", "-i", str(tmp_path / "noise.f32")]
    video = tmp_path / "surround.mkv"
    made.run_ffmpeg(
        ["-i", str(picture), *raw, "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "flac", str(video)]
    )
    film = film_of(video, tmp_path / "film.mp4", 0.001 * tone(2.0), "keep")
    with av.open(str(film)) as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.layout.name == "5.1"
        assert sum(packet.size for packet in container.demux(sound)) * 8 / 2.0 > 400_000


def test_a_mix_gets_the_wanted_loudness(full: Path, tmp_path: Path) -> None:
    film = film_of(full, tmp_path / "film.mkv", tone(2.0), "keep", mastering=Mastering(loudness=-16.0))
    assert measure(Mix(["-i", str(film)], "[0:a:0]anull", 48_000)).loudness == pytest.approx(-16, abs=0.4)


@pytest.mark.parametrize("num_channels", [1, 2, 6])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_whose_file_only_counts_its_channels_is_kept(
    picture: Path, tmp_path: Path, num_channels: int, suffix: str
) -> None:
    own, film = tmp_path / "camera.mkv", tmp_path / f"film{suffix}"
    sound = ["-f", "lavfi", "-i", "sine=frequency=660:duration=2"]
    coders = ["-c:v", "copy", "-c:a", "pcm_s16le", "-ac", str(num_channels)]
    made.run_ffmpeg(["-i", str(picture), *sound, *coders, str(own)])
    check_film(own, film, "keep")
    film_of(own, film, tone(2.0, pitch=440), "keep")
    samples, rate = read_sound(film)
    assert samples.shape[1] == num_channels
    assert level_db(samples, rate, 660) > -60


def test_a_video_without_sound_has_none_to_keep(picture: Path, tmp_path: Path) -> None:
    film = film_of(picture, tmp_path / "film.mp4", tone(2.0, pitch=440), "keep")
    samples, rate = read_sound(film)
    assert level_db(samples, rate, 440) == pytest.approx(-20, abs=1)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("original", ["drop", "keep"])
def test_music_for_a_part_begins_where_the_part_does(
    full: Path, tmp_path: Path, suffix: str, original: Original
) -> None:
    click = np.zeros(16_000)
    click[:40] = 0.9
    film = film_of(full, tmp_path / f"film{suffix}", click, original, start_s=1.25)
    samples, rate = read_sound(film)
    found = np.abs(np.diff(samples.mean(axis=1))).argmax() / rate
    assert found == pytest.approx(1.25, abs=0.002)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_a_late_picture_stays_where_it_was_and_music_begins_at_zero(
    picture: Path, tmp_path: Path, suffix: str
) -> None:
    late = made.delay_picture(picture, tmp_path / "late.mp4", 0.4)
    click = np.zeros(32_000)
    click[16_000:16_040] = 0.9
    film = film_of(late, tmp_path / f"film{suffix}", click)
    assert probe(film).video_start_s == pytest.approx(probe(late).video_start_s, abs=0.002)
    samples, rate = read_sound(film)
    assert np.abs(samples[:, 0]).argmax() / rate == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_rotation_and_uneven_frame_times_are_kept(tmp_path: Path, suffix: str) -> None:
    uneven = made.make_numbered(tmp_path / "uneven.mp4", made.variable_times(6.0))
    turned = made.rotate(uneven, tmp_path / "turned.mp4", 90)
    film = film_of(turned, tmp_path / f"film{suffix}", tone(6.0))
    assert probe(film).rotation % 360 == probe(turned).rotation % 360
    np.testing.assert_allclose(frame_times(film), frame_times(turned), atol=0.002)


def test_the_same_music_makes_the_same_film(picture: Path, tmp_path: Path) -> None:
    for suffix in (".mp4", ".mkv"):
        films = [film_of(picture, tmp_path / f"{name}{suffix}", tone(2.0)) for name in ("one", "two")]
        assert films[0].read_bytes() == films[1].read_bytes()


@pytest.mark.parametrize(("suffix", "num_lost"), [(".mp4", 0), (".mov", 1)])
def test_a_cover_picture_is_kept_or_said_to_be_left_out(
    picture: Path, tmp_path: Path, suffix: str, num_lost: int
) -> None:
    made.run_ffmpeg(["-i", str(picture), "-frames:v", "1", str(tmp_path / "cover.png")])
    inputs = ["-i", str(picture), "-i", str(tmp_path / "cover.png"), "-map", "0", "-map", "1"]
    video = tmp_path / "video.mp4"
    made.run_ffmpeg([*inputs, "-c", "copy", "-disposition:v:1", "attached_pic", str(video)])
    path = tmp_path / f"film{suffix}"
    lines = left_out(video, path)
    film = read_streams(film_of(video, path, tone(2.0)))
    assert len(lines) == num_lost
    assert film.has_cover == (num_lost == 0)
    assert all("no cover picture" in line for line in lines)


def test_a_film_that_cannot_hold_the_video_is_refused_before_the_work(picture: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.mkv"
    made.run_ffmpeg(["-i", str(picture), "-c:v", "wmv2", str(old)])
    with pytest.raises(MediaError, match=r"cannot hold .*; take .mkv"):
        check_film(old, tmp_path / "film.mp4", "drop")
    check_film(old, tmp_path / "film.mkv", "drop")
    assert [path.name for path in tmp_path.iterdir()] == ["old.mkv"]


def test_an_unknown_wish_for_the_sound_is_refused(picture: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="known: drop, keep, duck"):
        check_film(picture, tmp_path / "film.mp4", "louder")  # type: ignore[arg-type]
