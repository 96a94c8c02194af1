"""Films of which only a part is decoded, against the same films decoded whole."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from gvmgen.encoders import media, needed_packets
from gvmgen.encoders.media import read_frames
from gvmgen.encoders.needed_packets import ORIGIN_S, Picture, UnsuitedError, feed_needed, needed
from gvmgen.encoders.process import run_ffmpeg
from tests import media as made

FILMS = {
    "closed groups": "keyint=40",
    "open groups": "keyint=40:open-gop=1",
    "one group": "keyint=10000",
    "no B": "keyint=40:bframes=0",
    "many B": "keyint=70:bframes=8:b-adapt=2:ref=6",
    "pyramid": "keyint=40:bframes=3:b-adapt=0:b-pyramid=normal:ref=5:weightp=2",
    "refreshed bit by bit": "keyint=40:intra-refresh=1",
    "headers in the pictures": "keyint=40:repeat-headers=1",
    "fields": "keyint=40:tff=1",
    "slices": "keyint=40:slices=3",
}


def make_film(path: Path, x264: str, rate: str = "30000/1001", duration_s: float = 14.0) -> Path:
    picture = f"testsrc2=size=160x128:rate={rate}:duration={duration_s},noise=alls=20:allf=t"
    codec = ["-c:v", "libx264", "-preset", "veryfast", "-x264-params", x264, "-pix_fmt", "yuv420p"]
    run_ffmpeg(["-f", "lavfi", "-i", picture, *codec, str(path)], source=path)
    return path


def whole(path: Path, monkeypatch: pytest.MonkeyPatch, start_s: float, duration_s: float) -> list[np.ndarray]:
    """The frames where every picture is decoded."""

    def refuse(*_: object) -> None:
        raise UnsuitedError

    with monkeypatch.context() as patch:
        patch.setattr(media, "feed_needed", refuse)
        return list(read_frames(path, start_s, duration_s))


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
@pytest.mark.parametrize("x264", FILMS.values(), ids=FILMS)
def test_frames_are_those_of_the_whole_film_to_the_last_bit(
    x264: str, extension: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_film(tmp_path / f"a.{extension}", x264)
    for start_s, duration_s in ((0.0, 14.0), (3.3, 5.0), (12.0, 1.0)):
        wanted = whole(path, monkeypatch, start_s, duration_s)
        with monkeypatch.context() as patch:
            patch.setattr(media, "_frames_of_all", None)  # not even the last frame comes from there
            frames = list(read_frames(path, start_s, duration_s))
        assert np.array_equal(frames, wanted)


def test_half_of_a_usual_film_is_left_out(tmp_path: Path) -> None:
    path = make_film(tmp_path / "a.mp4", "keyint=60:b-adapt=0:bframes=3")
    assert len(list(fed(path, 0.0, 14))) < 0.55 * num_packets(path)
    assert len(list(fed(path, 12.0, 1))) < 0.1 * num_packets(path)  # nor is the way there decoded


def fed(path: Path, start_s: float, wanted: int) -> Iterator[av.Packet]:
    reduced = io.BytesIO()
    reduced.close = lambda: None  # type: ignore[method-assign]
    feed_needed(path, 0.0, start_s, wanted, reduced)
    reduced.seek(0)
    with av.open(reduced) as film:
        yield from (packet for packet in film.demux(video=0) if packet.size)


def num_packets(path: Path) -> int:
    with av.open(str(path)) as film:
        return sum(packet.size > 0 for packet in film.demux(video=0))


def test_where_it_cannot_be_told_midway_the_rest_is_decoded_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_film(tmp_path / "a.mp4", "keyint=40")
    wanted = whole(path, monkeypatch, 0.0, 14.0)
    pictures = needed_packets._pictures

    def troubled(*arguments: object) -> Iterator[Picture]:
        for picture in pictures(*arguments):
            if picture.time > 7:
                raise UnsuitedError
            yield picture

    monkeypatch.setattr(needed_packets, "_pictures", troubled)
    assert np.array_equal(list(read_frames(path, 0.0, 14.0)), wanted)


def test_pictures_that_an_edit_list_hides_are_not_shown(tmp_path: Path) -> None:
    film = made.make_numbered(tmp_path / "a.mp4", made.constant_times(24.0, Fraction(10)))
    cut = made.cut_by_edit_list(film, tmp_path / "b.mp4", 1.25)
    with pytest.raises(UnsuitedError):
        list(fed(cut, 0.0, 5))


@pytest.mark.parametrize("seed", range(20))
def test_all_that_a_wanted_picture_may_refer_to_is_kept(seed: int) -> None:
    pictures, wanted = random_pictures(random.Random(seed)), 12
    chosen = dict(needed(iter(pictures), wanted))
    shown = {}
    for moment in range(wanted):
        on_show = max((p for p in pictures if p.time <= moment), key=lambda p: p.time, default=None)
        shown[moment] = on_show or min(pictures, key=lambda p: p.time)
    for moment, picture in shown.items():
        assert picture in chosen
        until = pictures.index(picture)
        begin = max(i for i in range(until + 1) if pictures[i].is_idr)
        assert all(p in chosen for p in pictures[begin:until] if p.is_reference)
        assert all(p in chosen for p in pictures[:until] if p.has_parameters)
        at_ms = [ms - ORIGIN_S * 1000 for ms in chosen.values()]
        if picture.time <= moment:
            assert chosen[picture] - ORIGIN_S * 1000 == max(ms for ms in at_ms if ms <= moment * 1000)
    by_time = sorted(chosen, key=lambda p: p.time)
    assert [chosen[p] for p in by_time] == sorted(chosen.values())
    spare = [p for p in chosen if p not in shown.values()]
    if pictures[0].time <= 0:
        assert all(p.is_reference or p.has_parameters for p in spare)


def random_pictures(rng: random.Random) -> list[Picture]:
    """In coded order: IDR pictures, and between them references, each before pictures shown earlier."""
    pictures: list[Picture] = []
    time = Fraction(rng.choice([-40, -3, 0, 5, 21]), 10)
    while time < 15:
        is_idr = not pictures or rng.random() < 0.15
        num_between = 0 if is_idr else rng.randrange(4)
        step = Fraction(rng.choice([1, 1, 1, 8]), rng.choice([24, 30]))
        times = [time + step * i for i in range(num_between + 1)]
        headers = rng.random() < 0.03
        pictures.append(Picture(times[-1], time - 1, True, is_idr, headers, len(pictures)))
        for between in times[:-1]:
            pictures.append(Picture(between, time - 1, False, packet=len(pictures)))
        time = times[-1] + step
    return pictures
