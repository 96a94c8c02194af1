"""The part of a video that is scored. No torch."""

from __future__ import annotations

from pathlib import Path

from gvmgen.encoders.probe import probe

_ROUNDING_S = 1e-6  # 8.3 s and 6.7 s more are 15 s


def part_duration(video: Path, start_s: float, wanted_s: float | None) -> float:
    """How many seconds are to be scored from `start_s` on: the wanted ones, or all to the video's end.

    Raises MediaError where the file cannot be read as a video, ValueError for a part that it does not have.
    """
    available_s = probe(video).duration_s
    if not 0 <= start_s < available_s:
        raise ValueError(f"{video}: cannot start at {start_s:g} s, it lasts {available_s:.2f} s")
    if wanted_s is None:
        return available_s - start_s
    left_s = available_s - start_s
    if not 0 < wanted_s <= left_s + _ROUNDING_S:
        raise ValueError(
            f"{video}: has no {wanted_s:g} s from {start_s:g} s on, it lasts {available_s:.2f} s; "
            "end above 0 s and up to its end"
        )
    return min(wanted_s, left_s)
