"""Asked to stop: a signal, or a launcher that is gone. The loop looks between two steps. No torch."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def is_launched() -> bool:
    """Whether `accelerate launch` started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ


class StopRequest:
    """While it is entered, a signal is noted instead of ending the process; a second ctrl-C ends it.

    Other repeats are not counted: a scheduler and the launcher may both send one.
    """

    def __init__(self) -> None:
        self.noted: str | None = None
        # `accelerate launch` forwards no signal to its one process: when it is killed, we stop as well.
        self._launcher = os.getppid() if is_launched() else None

    def __enter__(self) -> StopRequest:
        self._previous: dict[signal.Signals, Any] = {
            number: signal.signal(number, self._note) for number in STOP_SIGNALS
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def reason(self) -> str | None:
        """Why to stop now, or None."""
        if self.noted is None and self._launcher not in (None, os.getppid()):
            self.noted = "its launcher is gone"
        return self.noted

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.noted = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
