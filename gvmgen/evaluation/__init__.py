"""Judging music for videos: the publication's evaluation model, and measures of any system's music. No torch.

>>> from gvmgen.evaluation import load_evaluator
>>> evaluator = load_evaluator("runs/eval")                   # a run of `gvm-eval train`
>>> evaluator.score("video.mp4", "music.wav").cmr             # -1 … 1, higher where they belong together
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gvmgen.evaluation.evaluator import load_evaluator

__all__ = ["load_evaluator"]


def __getattr__(name: str) -> Any:
    """`gvmgen.evaluation.load_evaluator`, loaded when it is first asked for."""
    if name == "load_evaluator":
        from gvmgen.evaluation.evaluator import load_evaluator

        return load_evaluator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
