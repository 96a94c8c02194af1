"""Remaining time, without waiting for it."""

from __future__ import annotations

import pytest

from gvmgen.studio import clock
from gvmgen.studio.clock import Clock, Left

STAGES = ["watching", "composing", "finishing"]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until it is set."""
    times = [100.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: times[0])
    return times


def test_the_first_order_knows_only_its_own_stage(now: list[float]) -> None:
    first = Clock(STAGES, {}, size=10)
    assert first.left() == Left(None, is_all=False)
    first.note("watching", 0, 4)
    assert first.left() == Left(None, is_all=False)
    now[0] += 2
    first.note("watching", 1, 4)
    assert first.left() == Left(6.0, is_all=False)
    first.note("finishing", 0, 1)
    now[0] += 5
    first.note("finishing", 1, 2)
    assert first.left() == Left(5.0, is_all=True)  # the last stage is all there is


def test_a_later_order_goes_by_the_pace_of_the_last(now: list[float]) -> None:
    first = Clock(STAGES, {}, size=10)
    for stage, seconds in (("watching", 2), ("composing", 20), ("finishing", 5)):
        first.note(stage, 0, 1)
        now[0] += seconds
    pace = first.pace()
    assert pace == pytest.approx({"watching": 0.2, "composing": 2.0, "finishing": 0.5})
    second = Clock(STAGES, pace, size=20)
    second.note("composing", 0, 100)
    assert second.left() == Left(50.0, is_all=True)
    now[0] += 4
    second.note("composing", 50, 100)  # quicker than the last
    assert second.left() == Left(14.0, is_all=True)
    assert second.as_json()["share"] == 0.5
    assert (second.as_json()["step"], second.as_json()["steps"]) == (2, 3)
