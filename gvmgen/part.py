"""The part of a video that is scored. No torch."""

from __future__ import annotations

from pathlib import Path

ROUNDING_S = 0.005  # an end is told, and so given, to a hundredth of a second
SHORTEST_S = 0.02  # a code frame


def part_duration(video: Path, start_s: float, wanted_s: float | None) -> float:
    """How many seconds are to be scored from `start_s` on: the wanted ones, or all to the video's end.

    Raises MediaError where the file cannot be read as a video, ValueError for a part that it does not have.
    """
    from gvmgen.encoders.probe import probe  # it imports more than `--help` has time for

    available_s = probe(video).duration_s
    if not 0 <= start_s < available_s:
        raise ValueError(f"{video}: cannot start at {start_s:g} s, it lasts {available_s:.2f} s")
    if wanted_s is None:
        return available_s - start_s
    left_s = available_s - start_s
    if not SHORTEST_S <= wanted_s <= left_s + ROUNDING_S:
        raise ValueError(
            f"{video}: has no {wanted_s:g} s from {start_s:g} s on, it lasts {available_s:.2f} s; "
            f"take {SHORTEST_S:g} s or more, up to its end"
        )
    return min(wanted_s, left_s)
