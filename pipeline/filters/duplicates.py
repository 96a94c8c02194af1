"""Segments that are the same again, across the whole set. R rows, E entries of the index.

Two segments sound alike where several values of their sound prints agree at one and the same offset. An
eighth of all
values, chosen by the value itself, is indexed: the choice is the same on both sides, and a million rows fit
in memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.filters.fingerprint import SOUND_RATE, decode

SAMPLED = 8  # one of so many values goes into the index
MIN_VOTES = 3  # agreeing values at one offset; by chance two segments have none
NEIGHBOURS = 8  # of one value that are compared; longer chains are joined link by link
PARTS = 16  # of the index, sorted one after the other: a sixteenth of the memory for the same work
MIN_OVERLAP = 0.5  # of the shorter segment; less is the same song, not the same segment
SAME_PICTURE = 12  # differing bits of 64, in the median frame


@dataclass(frozen=True)
class Print:
    """One row as `duplicates` needs it."""

    source: int  # rows of one source are never each other's duplicates: overlaps and refrains
    duration_s: float
    sound_print: str
    picture_print: str


@dataclass(frozen=True)
class Match:
    """Two rows that sound alike."""

    first: int
    second: int
    same_picture: bool  # and overlap by half: the same segment again, not only the same music


def duplicates(prints: Iterable[Print]) -> Iterator[Match]:
    """Pairs of rows with the same music, enough of them to join every cluster. Rows count from 0."""
    index = _Index()
    for one in prints:
        index.add(one)
    for first, second, shift_s in index.votes():
        if index.sources[first] != index.sources[second]:
            yield Match(first, second, index.is_same_segment(first, second, shift_s))


class _Index:
    """What is kept of all rows: plain arrays, about 600 bytes a row of 30 s."""

    def __init__(self) -> None:
        self.sources, self.durations_s = array("L"), array("f")
        self._values, self._rows, self._times = array("I"), array("I"), array("H")
        self._frames, self._frame_ends = array("Q"), array("L", [0])

    def add(self, one: Print) -> None:
        sound = decode(one.sound_print, "<u4")
        chosen = np.flatnonzero(_is_indexed(sound))
        self._values.frombytes(sound[chosen].tobytes())
        self._times.frombytes(chosen.astype(np.uint16).tobytes())
        self._rows.frombytes(np.full(len(chosen), len(self.sources), np.uint32).tobytes())
        self._frames.frombytes(decode(one.picture_print, "<u8").tobytes())
        self._frame_ends.append(len(self._frames))
        self.sources.append(one.source)
        self.durations_s.append(one.duration_s)

    def votes(self) -> Iterator[tuple[int, int, float]]:
        """(first row, second row, how many seconds later the music is in the second) of pairs with enough
        votes."""
        values, rows, times = (np.asarray(a) for a in (self._values, self._rows, self._times))
        remainders = values.view(np.uint8)[:: values.itemsize] % PARTS  # of the lowest byte: a byte an entry
        found = [
            _neighbours(values[part], rows[part], times[part])
            for part in (np.flatnonzero(remainders == number) for number in range(PARTS))
        ]
        yield from _agreeing(np.concatenate([p for p, _ in found]), np.concatenate([s for _, s in found]))

    def is_same_segment(self, first: int, second: int, shift_s: float) -> bool:
        """Whether the pictures agree over the time that both rows share, and that is half of the shorter
        one."""
        durations_s = self.durations_s[first], self.durations_s[second]
        begin_s, end_s = max(0.0, -shift_s), min(durations_s[0], durations_s[1] - shift_s)
        if end_s - begin_s < MIN_OVERLAP * min(durations_s):
            return False
        shift = round(shift_s)
        a, b = self._frames_of(first)[max(0, -shift) :], self._frames_of(second)[max(0, shift) :]
        count = min(len(a), len(b))
        return count > 0 and float(np.median(np.bitwise_count(a[:count] ^ b[:count]))) <= SAME_PICTURE

    def _frames_of(self, row: int) -> np.ndarray:
        return np.array(self._frames[self._frame_ends[row] : self._frame_ends[row + 1]], np.uint64)


def _neighbours(values: np.ndarray, rows: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row << 32 | row, steps from the first's time to the second's) of entries with one value."""
    order = np.argsort(values, kind="stable")
    values, rows, times = values[order], rows[order], times[order].astype(np.int32)
    pairs, shifts = [], []
    for lag in range(1, NEIGHBOURS + 1):
        same = np.flatnonzero((values[lag:] == values[:-lag]) & (rows[lag:] != rows[:-lag]))
        pairs.append(rows[same].astype(np.uint64) << np.uint64(32) | rows[same + lag])
        shifts.append(times[same + lag] - times[same])
    return np.concatenate(pairs), np.concatenate(shifts)


def _agreeing(pairs: np.ndarray, shifts: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Pairs with MIN_VOTES at one shift, or at two neighbouring ones: cuts lie between the prints' steps."""
    order = np.lexsort((shifts, pairs))
    pairs, shifts = pairs[order], shifts[order]
    reach = MIN_VOTES - 1
    near = (pairs[reach:] == pairs[:-reach]) & (shifts[reach:] - shifts[:-reach] <= 1)
    _, firsts = np.unique(pairs[:-reach][near], return_index=True)
    for at in np.flatnonzero(near)[firsts]:
        pair = int(pairs[at])
        yield pair >> 32, pair & 0xFFFFFFFF, float(shifts[at] / SOUND_RATE)


def _is_indexed(sound: np.ndarray) -> np.ndarray:
    """Chosen by the value; a value that stays is a held tone or silence and says little, so only its
    begin counts."""
    begins = np.ones(len(sound), bool)
    begins[1:] = sound[1:] != sound[:-1]
    mixed = (sound * np.uint32(2654435761)) >> np.uint32(16)  # Knuth's multiplicative hash
    return begins & (mixed % SAMPLED == 0)
