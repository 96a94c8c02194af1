"""Stop requests: real signals to this process."""

from __future__ import annotations

import os
import signal

import pytest

from gvmgen.signals import STOP_SIGNALS, StopRequest


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_noted_instead_of_ending_the_process(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert stop.reason() is None
        signal.raise_signal(number)
        assert stop.reason() == number.name


def test_a_scheduler_may_repeat_its_signal() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.reason() == "SIGTERM"


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    with StopRequest():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_signals_act_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopRequest():
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_launcher_that_is_gone_is_a_request_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with StopRequest() as stop:
        assert stop.reason() is None
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert stop.reason() == "its launcher is gone"


def test_a_shell_that_is_gone_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    with StopRequest() as stop:
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert stop.reason() is None
