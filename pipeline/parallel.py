"""Threads over a stream of any length."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
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


def bounded_map(function: Callable[[T], R], items: Iterable[T], num_threads: int) -> Iterator[R]:
    """Results as they come; only a few items are under way at a time, however many there are."""
    items = iter(items)
    running: set[Future[R]] = set()
    with ThreadPoolExecutor(num_threads) as threads:
        try:
            while True:
                fresh = islice(items, AHEAD * num_threads - len(running))
                running |= {threads.submit(function, item) for item in fresh}
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            for future in running:
                future.cancel()
