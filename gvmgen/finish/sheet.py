"""One HTML page of several takes: each over the video, its waveform, spectrogram, scores and seed."""

from __future__ import annotations

import base64
import html
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from urllib.parse import quote

from gvmgen.encoders.process import local_file, run_ffmpeg

_SIZE = "640x96"
_WAVEFORM = f"aformat=channel_layouts=mono,showwavespic=s={_SIZE}:colors=0x4f86c6"
_SPECTROGRAM = f"aformat=channel_layouts=mono,showspectrumpic=s={_SIZE}:legend=0:color=magma:fscale=log"
_PAGE = Path(__file__).with_name("sheet.html")  # with $title, $start and $cards to fill in


@dataclass(frozen=True)
class Card:
    """One take on the page."""

    path: Path  # its sound, beside the page
    seed: int
    rank: float
    scores: Mapping[str, float | None]


def contact_sheet(path: Path, video: Path, start_s: float, cards: Sequence[Card]) -> None:
    """Write the page. It holds its pictures, and plays video and sound from where they lie.

    start_s: where in the video the music begins.
    """
    text = Template(_PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(video.name),
        start=start_s,
        cards="\n".join(_card(card, _link(video, path.parent)) for card in cards),
    )
    path.write_text(text, encoding="utf-8")


def _link(path: Path, folder: Path) -> str:
    return html.escape(quote(os.path.relpath(path, folder)))


def _card(card: Card, video: str) -> str:
    scores = "".join(
        f"<dt>{html.escape(name.replace('_', ' '))}</dt><dd>{'–' if value is None else value}</dd>"
        for name, value in card.scores.items()
    )
    pictures = "".join(
        f'<img alt="{kind} of seed {card.seed}" src="data:image/png;base64,{_picture(card.path, filters)}">'
        for kind, filters in (("waveform", _WAVEFORM), ("spectrogram", _SPECTROGRAM))
    )
    return (
        f"<article><h2>Seed {card.seed}</h2>"
        f'<video muted playsinline preload="metadata" src="{video}"></video>'
        f'<audio controls preload="metadata" src="{_link(card.path, card.path.parent)}"></audio>{pictures}'
        f"<dl><dt>mean place</dt><dd>{card.rank}</dd>{scores}</dl></article>"
    )


def _picture(sound: Path, filters: str) -> str:
    """A PNG of a sound file in base64."""
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        source = ["-nostdin", "-v", "error", "-i", local_file(sound)]
        picture = ["-filter_complex", f"[0:a]{filters}[out]", "-map", "[out]", "-frames:v", "1"]
        run_ffmpeg([*source, *picture, "-y", local_file(file.name)], sound, deadline_s=3600.0)
        return base64.b64encode(file.read()).decode()
