"""How long an order will still take: its own speed in this stage, the last order's pace in later ones."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Left:
    """What is left of an order."""

    seconds: float | None  # None: not known yet
    is_all: bool  # else only of the stage at work: the first order has no pace to go by


class Clock:
    """Stages of one order as they go by."""

    def __init__(self, stages: list[str], pace: Mapping[str, float], size: float) -> None:
        """stages: in order. pace: seconds by stage for an order of size 1. size: takes x seconds of music."""
        self.stages, self.size = stages, size
        self._usual = {stage: seconds * size for stage, seconds in pace.items()}
        self._spent: dict[str, float] = {}
        self.stage, self.done, self.total = "", 0, 1
        self._began = time.monotonic()

    def note(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self._close()
            self.stage = stage
        self.done, self.total = done, max(1, total)

    def _close(self) -> None:
        now = time.monotonic()
        if self.stage:
            self._spent[self.stage] = now - self._began
        self._began = now

    def pace(self) -> dict[str, float]:
        """Seconds by stage of the order that has just ended, for size 1."""
        self._close()
        return {stage: seconds / self.size for stage, seconds in self._spent.items()}

    def left(self) -> Left:
        later = self.stages[self.stages.index(self.stage) + 1 :] if self.stage in self.stages else []
        here = self._left_here()
        if here is not None and all(stage in self._usual for stage in later):
            return Left(here + sum(self._usual[stage] for stage in later), is_all=True)
        return Left(here, is_all=False)

    def _left_here(self) -> float | None:
        spent = time.monotonic() - self._began
        if self.done:
            return spent * (self.total - self.done) / self.done
        usual = self._usual.get(self.stage)
        return None if usual is None else max(0.0, usual - spent)

    def as_json(self) -> dict[str, Any]:
        left = self.left()
        return {
            "stage": self.stage,
            "step": self.stages.index(self.stage) + 1 if self.stage in self.stages else 0,
            "steps": len(self.stages),
            "share": self.done / self.total,
            "left_s": None if left.seconds is None else round(left.seconds, 1),
            "left_is_all": left.is_all,
        }
