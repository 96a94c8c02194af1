"""Failures are data: what went wrong with a segment, at which stage, and whether trying again can help."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["permanent", "transient", "bug"]
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc")
FATAL_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no segment's fault: the run stops


class SegmentError(Exception):
    """One segment cannot be encoded; the others go on."""

    def __init__(self, stage: str, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.stage, self.kind = stage, kind


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A row of `000042.failures.jsonl`."""

    key: str
    source: str
    stage: str
    kind: Kind
    message: str
    attempt: int  # 1: the first try

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Breaker:
    """Stops a run whose segments fail one after the other at the same stage: the cause is not in them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit  # 0: never
        self._stage, self._num_alike = "", 0

    def passed(self) -> None:
        self._num_alike = 0

    def failed(self, error: SegmentError) -> None:
        """Raises ValueError with the last failure."""
        self._num_alike = self._num_alike + 1 if error.stage == self._stage else 1
        self._stage = error.stage
        if self._num_alike == self.limit:
            raise ValueError(
                f"{self.limit} segments in a row failed at the stage '{error.stage}', the last with: {error} "
                "Mend it and run again; --stop-after 0 goes on regardless"
            ) from error


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Turn what goes wrong inside into a SegmentError, unless no segment is to blame for it."""
    try:
        yield
    except SegmentError:
        raise
    except Exception as error:
        kind = _kind(error)
        if kind is None:
            raise
        raise SegmentError(name, kind, _message(error, kind)) from error


def _kind(error: Exception) -> Kind | None:
    from gvmgen.encoders.presets import MissingWeightsError
    from gvmgen.encoders.process import MediaError, MediaTimeoutError

    if isinstance(error, MissingWeightsError) or (isinstance(error, OSError) and error.errno in FATAL_ERRNO):
        return None
    if isinstance(error, OSError | MediaTimeoutError) or is_out_of_memory(error):
        return "transient"
    return "permanent" if isinstance(error, MediaError) else "bug"


def is_out_of_memory(error: Exception) -> bool:
    """On a CPU torch says it in words only."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def _message(error: Exception, kind: Kind) -> str:
    if kind == "bug":
        return "".join(traceback.format_exception(error)).strip()
    return str(error) or type(error).__name__
