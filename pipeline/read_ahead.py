"""Sources are read while the encoders work on what came before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Self

from pipeline.encode import Media
from pipeline.manifest import Segment


class ReadAhead:
    """Media of segments, in order, read by threads."""

    def __init__(
        self, segments: Iterable[Segment], read: Callable[[Segment], Media], num_readers: int
    ) -> None:
        self._segments, self._read = iter(segments), read
        self._depth = num_readers + 1  # segments beyond the one that is taken
        self._threads = ThreadPoolExecutor(num_readers, "read-media")
        self._waiting: deque[tuple[Segment, Future[Media]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def take(self, segment: Segment) -> Media:
        """This segment's media; what waits before it is let go. Raises what reading it raised."""
        while True:
            self._fill()
            found, media = self._waiting.popleft()
            if found.key == segment.key:
                self._fill()
                return media.result()
            media.cancel()

    def peek(self) -> tuple[Segment, Media] | None:
        """The next segment with its media, where they are there already."""
        if not self._waiting:
            return None
        segment, media = self._waiting[0]
        is_there = media.done() and not media.cancelled() and media.exception() is None
        return (segment, media.result()) if is_there else None

    def _fill(self) -> None:
        for segment in islice(self._segments, 1 + self._depth - len(self._waiting)):
            self._waiting.append((segment, self._threads.submit(self._read, segment)))
