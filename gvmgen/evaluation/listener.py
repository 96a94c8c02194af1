"""A process that measures sound beside the one that composes it: librosa alone is four seconds of imports.

It reads waveforms and writes curves until its input ends, as it does with its parent.
"""

from __future__ import annotations

import io
import subprocess
import sys
from functools import cache
from typing import IO

import numpy as np

from gvmgen.evaluation.extras import needed
from gvmgen.evaluation.sound import Course, measure_course

COMMAND = [sys.executable, "-m", "gvmgen.evaluation.listener"]
CURVES = tuple(Course.__dataclass_fields__)
CLICK = np.eye(1, 32_000, 16_000, dtype=np.float32)[0]  # a second of sound in which something begins


class Listener:
    """`measure_course` in another process; in this one should the other have ended."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        # a session of its own: ctrl-C ends it by ending its parent, not by a traceback of its own
        self.process = subprocess.Popen(COMMAND, stdin=pipe, stdout=pipe, start_new_session=True)

    def course(self, waveform: np.ndarray) -> Course:
        """waveform: float32 [N] at 32 kHz, mono."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            put(waveform, self.process.stdin)
            return Course(**{name: take(self.process.stdout) for name in CURVES})
        except (BrokenPipeError, EOFError):
            return measure_course(waveform)


@cache
def listener() -> Listener:
    """This process's one. Raises MissingExtraError where librosa is not installed."""
    needed("librosa")
    return Listener()


def put(array: np.ndarray, stream: IO[bytes]) -> None:
    """Its size in bytes, then itself as NumPy's file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    stream.write(file.tell().to_bytes(8, "little") + file.getbuffer())
    stream.flush()


def take(stream: IO[bytes]) -> np.ndarray:
    """What was put. Raises EOFError where nothing is left."""
    size = int.from_bytes(stream.read(8), "little")
    array: np.ndarray = np.load(io.BytesIO(stream.read(size)), allow_pickle=False)
    return array


def main() -> None:
    measure_course(CLICK)  # imports what it takes, before it is asked
    while True:
        try:
            course = measure_course(take(sys.stdin.buffer))
        except EOFError:
            return
        for name in CURVES:
            put(getattr(course, name), sys.stdout.buffer)


if __name__ == "__main__":
    main()
