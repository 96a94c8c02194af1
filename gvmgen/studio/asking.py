"""What a page asks for, checked as `gvm-gen` checks its flags. No torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from gvmgen.finish.speech import MissingExtraError, check_detector
from gvmgen.jobs import Job, check_finish, seconds
from gvmgen.part import ROUNDING_S

MAX_TAKES = 8
_KNOWN = ("takes", "seed", "from", "to", "ending", "loudness", "original")


def read_job(asked: Any, name: str, duration_s: float) -> Job:
    """The job that a page asks for. Raises ValueError for what cannot be done with this video."""
    if not isinstance(asked, dict) or not set(asked) <= set(_KNOWN):
        raise ValueError(f"settings are a JSON object of {', '.join(_KNOWN)}")
    start, stop = str(asked.get("from") or "0"), asked.get("to")
    job = Job(
        takes=_whole("takes", asked.get("takes", 1), 1, MAX_TAKES),
        seed=_whole("seed", asked.get("seed", 0), 0, 2**32 - MAX_TAKES),
        start_s=seconds("from", start),
        stop_s=seconds("to", str(stop)) if stop else None,
        ending=asked.get("ending", "fade"),
        loudness=str(asked.get("loudness", "-14")),
        original=asked.get("original", "drop"),
    )
    if job.start_s >= duration_s:
        raise ValueError(f"{name}: cannot start at {job.start_s:g} s, it lasts {duration_s:.2f} s")
    if job.stop_s is not None and job.stop_s > duration_s + ROUNDING_S:
        raise ValueError(f"{name}: cannot end at {job.stop_s:g} s, it lasts {duration_s:.2f} s")
    if job.original not in ("drop", "keep", "duck"):
        raise ValueError(f"original {job.original!r} is unknown; known: drop, keep, duck")
    check_finish(job, Path("music.wav"))
    return job


def _whole(what: str, value: Any, lowest: int, highest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise ValueError(f"{what} {value!r}: give a whole number from {lowest} to {highest}")
    return value


def missing_extras() -> dict[str, str]:
    """What cannot be offered on this machine, and the line that tells how to get it."""
    missing = {}
    try:
        check_detector()
    except MissingExtraError as error:
        missing["duck"] = str(error)
    if importlib.util.find_spec("librosa") is None:
        missing["ranking"] = "takes come in order of their seeds; to rank them: pip install 'gvmgen[eval]'"
    return missing
