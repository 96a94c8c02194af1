"""What the tests of several rooms share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

# What a shell starts in the background ignores ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder beside the checkout with real videos and the official implementation's numbers."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared, the folder with real videos and parity data")
    return SHARED
