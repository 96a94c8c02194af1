"""Black, static and frozen pictures. Shapes: F frames, H height, W width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

SMALL = (64, 36)  # enough to see a cut or a pan, too little to see grain
BLACK_LUMA = 20.0  # of 255; video black is 16
STILL_DIFFERENCE = 0.8  # mean levels between two frames; noise of a codec stays below, a slow zoom above


def picture(frames: Sequence[np.ndarray]) -> dict[str, float]:
    """Scores of frames one second apart, uint8 [H, W, 3].

    black: share of dark and even frames. static: share of seconds in which nothing moves.
    frozen: longest such stretch as a share of the segment: a slideshow is static, a stuck encoder frozen.
    """
    grey = np.stack([_small(frame) for frame in frames])  # [F, 36, 64]
    black = (grey.mean(axis=(1, 2)) < BLACK_LUMA) & (grey.std(axis=(1, 2)) < 4)
    still = np.abs(np.diff(grey, axis=0)).mean(axis=(1, 2)) < STILL_DIFFERENCE  # [F - 1]
    seconds = max(1, len(still))
    return {
        "black": round(float(black.mean()), 3),
        "static": round(float(still.sum() / seconds), 3),
        "frozen": round(_longest_run(still) / seconds, 3),
    }


def _small(frame: np.ndarray) -> np.ndarray:
    image = Image.fromarray(frame).convert("L").resize(SMALL, Image.Resampling.BOX, reducing_gap=2)
    return np.asarray(image, np.float32)


def _longest_run(flags: np.ndarray) -> int:
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest
