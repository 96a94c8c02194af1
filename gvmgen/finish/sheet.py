"""One HTML page of several takes: each over the video, its waveform, spectrogram, scores and seed."""

from __future__ import annotations

import base64
import html
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from string import Template
from urllib.parse import quote

from gvmgen.encoders.process import PROTOCOLS, MediaError, local_file, run_ffmpeg
from gvmgen.runs import write_text

_WAVEFORM = "aformat=channel_layouts=mono,showwavespic=s=640x96:colors=0x4f86c6:scale=sqrt"
_SPECTRUM = (
    "showspectrumpic=s=640x160:legend=0:color=magma:fscale=log:drange=60"  # dB: single notes stand out
)
_SPECTROGRAM = f"aformat=channel_layouts=mono,{_SPECTRUM}"
_POSTER = "scale=-2:'min(360,trunc(ih/2)*2)',format=yuvj420p"
_WORDS = {  # for scores, as on the studio's page
    "cmr": "fits the picture",
    "cut_onsets": "notes on cuts",
    "onset_motion": "notes with motion",
    "energy_motion": "loudness with motion",
}
_PAGE = Path(__file__).with_name("sheet.html")  # with $title, $start and $cards to fill in


@dataclass(frozen=True)
class Card:
    """One take on the page."""

    path: Path  # its sound, beside the page
    seed: int
    rank: float
    scores: Mapping[str, float | None]


def contact_sheet(path: Path, video: Path, start_s: float, duration_s: float, cards: Sequence[Card]) -> None:
    """Write the page. It holds its pictures, and plays video and sound from where they lie.

    start_s: where in the video the music begins; duration_s: how long it is.
    """
    link = _link(video, path.parent)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # ffmpeg draws, in processes of its own
        poster = pool.submit(_poster, video, start_s + duration_s / 2)
        drawn = list(pool.map(_pictures, cards))
    articles = [
        _card(card, link, poster.result(), pictures) for card, pictures in zip(cards, drawn, strict=True)
    ]
    text = Template(_PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(video.name),
        start=start_s,
        cards="\n".join(articles),
    )
    write_text(path, text)


def _link(path: Path, folder: Path) -> str:
    return html.escape(quote(os.fsencode(os.path.relpath(path, folder))))


def _card(card: Card, video: str, poster: str, pictures: str) -> str:
    scores = "".join(
        f"<dt>{_WORDS[name]}</dt><dd>{'–' if value is None else value}</dd>"
        for name, value in card.scores.items()
    )
    return (
        f"<article><h2>Seed {card.seed}</h2>"
        f'<video muted playsinline preload="metadata"{poster} src="{video}"></video>'
        f'<audio controls preload="metadata" src="{_link(card.path, card.path.parent)}"></audio>{pictures}'
        f"<dl><dt>mean place</dt><dd>{card.rank}</dd>{scores}</dl></article>"
    )


def _pictures(card: Card) -> str:
    return "".join(
        f'<img alt="{kind} of seed {card.seed}" src="data:image/png;base64,{_picture(card.path, filters)}">'
        for kind, filters in (("waveform", _WAVEFORM), ("spectrogram", _SPECTROGRAM))
    )


def _poster(video: Path, at_s: float) -> str:
    """An attribute with the picture on show then: for browsers that cannot play the video, or not yet.

    Empty where the picture has ended before.
    """
    picture = ""
    with suppress(MediaError):
        picture = _still(video, f"[0:V:0]{_POSTER}", ".jpg", at_s)
    return picture and f' poster="data:image/jpeg;base64,{picture}"'


def _picture(sound: Path, filters: str) -> str:
    """A PNG of a sound file in base64."""
    return _still(sound, f"[0:a]{filters}", ".png")


def _still(source: Path, graph: str, suffix: str, at_s: float = 0.0) -> str:
    """The first picture that a filter graph makes of a file from then on, in base64."""
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        inputs = ["-protocol_whitelist", PROTOCOLS, "-ss", f"{at_s:.3f}", "-i", local_file(source)]
        picture = ["-filter_complex", f"{graph}[out]", "-map", "[out]", "-frames:v", "1"]
        arguments = ["-nostdin", "-v", "error", *inputs, *picture, "-y", local_file(file.name)]
        run_ffmpeg(arguments, source, deadline_s=3600.0)
        return base64.b64encode(file.read()).decode()
