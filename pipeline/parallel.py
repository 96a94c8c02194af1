"""Threads over a stream of any length."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 4  # items taken from the stream for each thread


def ordered_map(function: Callable[[T], R], items: Iterable[T], num_threads: int) -> Iterator[R]:
    """Results in the order of the items; only a few are under way at a time, however many there are."""
    running: deque[Future[R]] = deque()
    with ThreadPoolExecutor(num_threads) as threads:
        try:
            for item in items:
                running.append(threads.submit(function, item))
                if len(running) >= AHEAD * num_threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def bounded_map(
    function: Callable[[T], R],
    items: Iterable[T],
    num_threads: int,
    is_quick: Callable[[T], bool] = lambda item: False,
) -> Iterator[R]:
    """Results as they come; only a few items are under way at a time, however many there are.

    is_quick: for which items to call the function here: handing one to a thread takes some 50 microseconds.
    """
    running: set[Future[R]] = set()
    with ThreadPoolExecutor(num_threads) as threads:
        try:
            for item in items:
                if is_quick(item):
                    yield function(item)
                    continue
                running.add(threads.submit(function, item))
                if len(running) == AHEAD * num_threads:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in as_completed(running))
        finally:
            for future in running:
                future.cancel()
