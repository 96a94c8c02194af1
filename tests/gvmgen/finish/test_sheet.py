"""The contact sheet: one page that shows and plays every take."""

from __future__ import annotations

import base64
import io
import re
from fractions import Fraction
from pathlib import Path
from urllib.parse import unquote

import av

from gvmgen.finish.mastering import Mastering, write_sound
from gvmgen.finish.sheet import Card, contact_sheet
from tests import media as made
from tests.gvmgen.finish.made_music import as_sound, tone


def test_the_sheet_shows_every_take_and_finds_its_files(tmp_path: Path) -> None:
    video = made.make_numbered(tmp_path / 'a "b" & ü.mp4', made.constant_times(1.0, Fraction(10)))
    folder = tmp_path / "takes"
    folder.mkdir()
    cards = []
    for seed in (3, 4):
        path = folder / f"seed_{seed}.wav"
        write_sound(as_sound(tone(1.0)), path, Mastering(), {})
        cards.append(Card(path, seed, float(seed), {"cut_onsets": 0.25, "energy_motion": None}))
    contact_sheet(folder / "index.html", video, 0.5, 0.4, cards)
    page = (folder / "index.html").read_text(encoding="utf-8")
    linked = [unquote(link) for link in re.findall(r'<(?:video|audio)[^>]* src="([^"]*)"', page)]
    assert [(folder / link).resolve() for link in linked] == [video, cards[0].path, video, cards[1].path]
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Seed 3", "Seed 4"]
    assert page.count("<dt>notes on cuts</dt><dd>0.25</dd>") == 2
    assert page.count("<dt>loudness with motion</dt><dd>–</dd>") == 2
    assert "const start = 0.5" in page
    posters = re.findall(r'poster="data:image/jpeg;base64,([^"]*)"', page)
    assert len(posters) == 2
    with av.open(io.BytesIO(base64.b64decode(posters[0])), "r", format="mjpeg") as shown:
        assert made.read_number(next(shown.decode(video=0)).to_ndarray(format="rgb24")) == 7  # at 0.7 s
    assert "<title>Takes for a &quot;b&quot; &amp; ü.mp4</title>" in page
    pictures = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]*)"', page)]
    assert len(pictures) == 4
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


def test_where_the_picture_ends_before_the_music_there_is_no_poster(tmp_path: Path) -> None:
    picture = made.make_numbered(tmp_path / "picture.mp4", made.constant_times(1.0, Fraction(10)))
    sound = made.make_clicks(tmp_path / "sound.wav", 4.0)
    video = made.join(picture, sound, tmp_path / "video.mp4", codec="aac")
    path = tmp_path / "seed_3.wav"
    write_sound(as_sound(tone(1.0)), path, Mastering(), {})
    contact_sheet(tmp_path / "index.html", video, 2.0, 2.0, [Card(path, 3, 1.0, {})])
    assert "poster" not in (tmp_path / "index.html").read_text(encoding="utf-8")
