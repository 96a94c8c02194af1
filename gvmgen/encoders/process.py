"""One run of ffmpeg: found, started, read under a deadline, its complaints kept. No torch."""

from __future__ import annotations

import errno
import io
import math
import os
import select
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

DEADLINE_S = 120.0  # seconds that ffmpeg may stay silent while we wait for it
# A file may be a playlist, and a playlist may name any address: only local files are opened.
PROTOCOLS = "file,pipe"
_FEED_END_S = 5.0  # a feeding thread ends by itself when ffmpeg has, unless it waits for a disk
_TAIL_CHARACTERS = 600  # of ffmpeg's stderr in an error


class MediaError(ValueError):
    """A media file cannot be used. Says which, why, and what to do."""


class MediaTimeoutError(MediaError):
    """ffmpeg was too slow: another time it may be quicker."""


@cache
def ffmpeg_path() -> str:
    """The ffmpeg on PATH, else the one imageio-ffmpeg brings. Raises OSError where there is none."""
    on_path = shutil.which("ffmpeg")
    if on_path:
        return on_path
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise OSError(
            "no ffmpeg on PATH, and imageio-ffmpeg has none for this machine: install ffmpeg"
        ) from error


def local_file(path: Path | str) -> str:
    """The path as an ffmpeg URL that can only mean a local file, whatever characters are in the name."""
    return f"file:{path}"


class _DeadlineReader(io.RawIOBase):
    """A pipe's read end that raises TimeoutError where nothing arrives for `deadline_s`, or at `ends_at`."""

    def __init__(self, pipe: IO[bytes], deadline_s: float, ends_at: float) -> None:
        self._pipe = pipe
        self._deadline_s, self._ends_at = deadline_s, ends_at
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wait_s = min(self._deadline_s, self._ends_at - time.monotonic())
        if wait_s <= 0 or not self._poll.poll(wait_s * 1000):
            raise TimeoutError
        return os.readv(self._pipe.fileno(), [buffer])


class FfmpegOutput:
    """What one ffmpeg run writes to its standard output, as a stream. Leaving the context ends the run.

    source: the file that errors name. deadline_s: how long it may stay silent. ends_at: when it has to be
    done, in seconds of time.monotonic(). feed: writes its standard input, in a thread.
    """

    def __init__(
        self,
        arguments: list[str],
        source: Path,
        deadline_s: float = DEADLINE_S,
        ends_at: float = math.inf,
        feed: Callable[[IO[bytes]], None] | None = None,
    ) -> None:
        self._source = source
        self._deadline_s, self._ends_at = deadline_s, ends_at
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__; a pipe could fill up
        self._process = subprocess.Popen(
            [ffmpeg_path(), *arguments],
            stdin=subprocess.DEVNULL if feed is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        assert self._process.stdout is not None
        self._feeding: threading.Thread | None = None
        if feed is not None:
            # Daemonic: a file that never answers must hold up no one.
            self._feeding = threading.Thread(target=self._feed, args=(feed,), daemon=True)
            self._feeding.start()
        self._stream = io.BufferedReader(_DeadlineReader(self._process.stdout, deadline_s, ends_at), 1 << 20)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        if self._feeding is not None:
            self._feeding.join(_FEED_END_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._stderr.close()

    def _feed(self, feed: Callable[[IO[bytes]], None]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as stdin:  # ffmpeg may end before the input
            feed(stdin)

    def read_line(self) -> bytes:
        """The next line; empty at the end of the output."""
        try:
            return self._stream.readline()
        except TimeoutError as error:
            raise self._too_slow() from error

    def read_into(self, buffer: memoryview) -> int:
        """Fill the buffer; returns its bytes filled, fewer only at the end of the output."""
        try:
            return self._stream.readinto(buffer)
        except TimeoutError as error:
            raise self._too_slow() from error

    def complaints(self) -> str:
        """The tail of ffmpeg's stderr, once it has ended. Raises MediaError if it failed."""
        try:
            failed = self._process.wait(self._deadline_s) != 0
        except subprocess.TimeoutExpired as error:
            raise self._too_slow() from error
        self._stderr.seek(0)
        tail = _tail(self._stderr.read())
        if failed:
            raise MediaError(f"{self._source}: ffmpeg cannot read it: {tail}")
        return tail

    def _too_slow(self) -> MediaTimeoutError:
        is_over = time.monotonic() >= self._ends_at
        what = "was not read in its time" if is_over else f"ffmpeg gave nothing for {self._deadline_s:.0f} s"
        return MediaTimeoutError(f"{self._source}: {what}; is the file on a slow disk, or damaged?")


def run_ffmpeg(
    arguments: list[str], source: Path, stdin: bytes = b"", deadline_s: float = DEADLINE_S
) -> None:
    """Run ffmpeg to its end. Raises MediaError, with the tail of its stderr, when it fails or is too slow."""
    try:
        done = subprocess.run(
            [ffmpeg_path(), *arguments], input=stdin, capture_output=True, timeout=deadline_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise MediaTimeoutError(f"{source}: ffmpeg did not finish in {deadline_s:.0f} s") from error
    if b"No space left on device" in done.stderr:
        raise OSError(errno.ENOSPC, "no space left on the disk while ffmpeg wrote", str(source))
    if done.returncode != 0:
        raise MediaError(f"{source}: ffmpeg failed: {_tail(done.stderr)}")


def _tail(stderr: bytes) -> str:
    text = " ".join(stderr.decode(errors="replace").split())
    return text[-_TAIL_CHARACTERS:] or "it gave no reason"
