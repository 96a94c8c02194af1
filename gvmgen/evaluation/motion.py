"""What moves in a video and where it is cut, by ffmpeg's `scdet` in one pass. G steps of the grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gvmgen.encoders.media import probe
from gvmgen.encoders.process import PROTOCOLS, FfmpegOutput, local_file

GRID_RATE = 10  # Hz; of every curve that is compared over time
_WIDTH = 160  # pixels; cuts and motion need no more
_CUT_THRESHOLD = 10  # scdet's own default, in per cent of full change


@dataclass(frozen=True, kw_only=True)
class Motion:
    """A video's picture over time."""

    curve: np.ndarray  # float32 [G]; change of the picture per step, in grey levels; cuts included
    cuts: np.ndarray  # float64; seconds at which a new shot starts
    duration_s: float


def measure_motion(path: Path) -> Motion:
    """Motion and cuts of a video file. Raises MediaError where it cannot be read."""
    info = probe(path)
    curve = np.zeros(max(1, round(info.duration_s * GRID_RATE)), np.float32)
    cuts = []
    time_s = 0.0
    with FfmpegOutput(_arguments(path), path) as output:
        while line := output.read_line():
            name, _, value = line.decode().strip().rpartition("=")
            if line.startswith(b"frame:"):
                time_s = float(line.rsplit(b":", 1)[1])
            elif name == "lavfi.scd.mafd":
                # Summed, not averaged: the same motion at another frame rate makes the same curve.
                curve[min(int(time_s * GRID_RATE), len(curve) - 1)] += float(value)
            elif name == "lavfi.scd.time":
                cuts.append(float(value))
        output.complaints()
    return Motion(curve=curve, cuts=np.array(cuts, np.float64), duration_s=info.duration_s)


def _arguments(path: Path) -> list[str]:
    filters = (
        f"scale={_WIDTH}:-2:flags=fast_bilinear,scdet=threshold={_CUT_THRESHOLD},metadata=mode=print:file=-"
    )
    quiet = ["-nostdin", "-hide_banner", "-v", "error", "-protocol_whitelist", PROTOCOLS]
    return [*quiet, "-i", local_file(path), "-map", "0:V:0", "-vf", filters, "-f", "null", "-"]
