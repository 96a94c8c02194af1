"""One segment through the filters. Frames and waveform are decoded once, whatever the number of filters."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.filters.clipping import clipping
from pipeline.filters.extras import HOW_TO_INSTALL, is_there
from pipeline.filters.fingerprint import fingerprint
from pipeline.filters.loudness import loudness
from pipeline.filters.picture import picture
from pipeline.filters.silence import silence
from pipeline.filters.speech import speech
from pipeline.filters.tags import tags
from pipeline.filters.text import text
from shards.spec import SAMPLE_RATE

LARGEST_SIDE = 640  # pixels; a caption is legible at this size, and thirty frames fit in 20 MB


@dataclass(frozen=True)
class Excerpt:
    """A segment of a file, decoded when a filter asks for it."""

    path: Path
    start_s: float
    duration_s: float
    tagger: Path | None = None

    @cached_property
    def waveform(self) -> np.ndarray:
        """float32 [N] at the data's sample rate."""
        from gvmgen.encoders.media import read_waveform

        return read_waveform(self.path, self.start_s, self.duration_s)

    @cached_property
    def frames(self) -> list[np.ndarray]:
        """uint8 [H, W, 3], one a second, scaled down."""
        from gvmgen.encoders.media import read_frames

        return [_small(frame) for frame in read_frames(self.path, self.start_s, self.duration_s)]


@dataclass(frozen=True)
class Filter:
    """How a filter is called, which version of it made a score, and what it needs."""

    run: Callable[[Excerpt], dict[str, Any]]
    version: int = 1  # a new version measures again
    modules: tuple[str, ...] = ()


FILTERS = {
    "silence": Filter(lambda e: silence(e.waveform, SAMPLE_RATE)),
    "clipping": Filter(lambda e: clipping(e.waveform)),
    "loudness": Filter(lambda e: loudness(e.waveform, SAMPLE_RATE)),
    "picture": Filter(lambda e: picture(e.frames)),
    "fingerprint": Filter(lambda e: fingerprint(e.waveform, SAMPLE_RATE, e.frames)),
    "speech": Filter(lambda e: speech(e.waveform, SAMPLE_RATE), modules=("silero_vad", "onnxruntime")),
    "text": Filter(lambda e: text(e.frames), modules=("rapidocr", "onnxruntime")),
    "tags": Filter(lambda e: tags(e.waveform, SAMPLE_RATE, e.tagger or Path("--tagger"))),
}


def usable_filters(tagger: Path | None) -> tuple[list[str], dict[str, str]]:
    """(filters that can run here, why not by name of the others)."""
    missing = {}
    for name, one in FILTERS.items():
        lacking = [module for module in one.modules if not is_there(module)]
        if lacking:
            missing[name] = f"{name}: not scored; needs {', '.join(lacking)}. {HOW_TO_INSTALL}"
    if tagger is None:
        missing["tags"] = "tags: music, singing, talking are not scored; name a model: --tagger FOLDER"
    return [name for name in FILTERS if name not in missing], missing


def score(excerpt: Excerpt, filters: Collection[str]) -> dict[str, Any]:
    """What these filters say of the excerpt. Raises MediaError where the file cannot be decoded."""
    scores: dict[str, Any] = {}
    for name in filters:
        scores |= FILTERS[name].run(excerpt)
    return scores


def _small(frame: np.ndarray) -> np.ndarray:
    image = Image.fromarray(frame)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(image)
