"""The part of an H.264 film that a decoder needs for one picture a second: about half of its work.

Left out are pictures that no other one refers to, and what lies between the last picture wanted and the next
IDR picture, at which decoding begins anew. What is shown stays the same to the last bit.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av

from gvmgen.encoders.probe import open_media, picture_stream
from shards.spec import FRAME_RATE

FORMAT = "matroska"  # of what is fed: it names colours as the film does, and can be read from a pipe
ORIGIN_S = 1_000_000  # where the start lies in it: it takes no time before zero
_SLICES, _IDR, _PARAMETERS = range(1, 6), 5, {7, 8, 13, 15}  # types of H.264's units
_MAX_HELD = 1000  # pictures; there may be no IDR for hours
_MILLISECOND = Fraction(1, 1000)


class UnsuitedError(ValueError):
    """The film has to be decoded whole."""


@dataclass(frozen=True)
class Picture:
    """A coded picture. Times in seconds from the first moment wanted."""

    time: Fraction  # when it is shown
    due: Fraction | None  # no later one in the file is shown before
    is_reference: bool = True
    is_idr: bool = False  # none after it refers to one before it
    has_parameters: bool = False  # which any later one may need
    packet: Any = None

    @property
    def moment(self) -> int:
        """The first wanted moment at which it may be on show: 0, 1, 2 … seconds."""
        return max(0, math.ceil(self.time * FRAME_RATE))


def feed_needed(path: Path, seek_s: float, start_s: float, wanted: int, out: IO[bytes]) -> None:
    """Write what `wanted` pictures, one a second from start_s on, need, from the key frame before seek_s on.

    Raises UnsuitedError where leaving something out could change them.
    """
    with open_media(path) as film, av.open(out, "w", format=FORMAT) as reduced:
        video = picture_stream(film)
        stream = reduced.add_stream_from_template(video)
        pictures = needed(_pictures(film, video, seek_s, start_s), wanted)
        for order, (picture, shown_ms) in enumerate(pictures):
            packet = picture.packet
            packet.stream, packet.time_base = stream, _MILLISECOND
            packet.pts, packet.dts = shown_ms, order  # only the order of the second is looked at
            reduced.mux_one(packet)


def needed(pictures: Iterable[Picture], wanted: int) -> Iterator[tuple[Picture, int]]:
    """In coded order what decoding needs, each with the milliseconds at which to show it.

    The last picture at or before each wanted moment is shown at that very moment.
    """
    selection = _Selection(wanted)
    for picture in pictures:
        yield from selection.take(picture)
        if selection.is_over(picture.due):
            break
    yield from selection.rest()


class _Selection:
    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._last: dict[int, Fraction] = {}  # time of each moment's picture, as far as known
        self._undecided: deque[Picture] = deque()
        self._held: list[Picture] = []  # needed only if a later one is

    def take(self, picture: Picture) -> Iterator[tuple[Picture, int]]:
        moment = picture.moment
        self._last[moment] = max(picture.time, self._last.get(moment, picture.time))
        self._undecided.append(picture)
        while self._undecided and self._is_known(self._undecided[0], picture.due):
            yield from self._decide(self._undecided.popleft())

    def rest(self) -> Iterator[tuple[Picture, int]]:
        for picture in self._undecided:
            yield from self._decide(picture)

    def is_over(self, due: Fraction | None) -> bool:
        return due is not None and due * FRAME_RATE > max(self._wanted - 1, min(self._last))

    def _is_known(self, picture: Picture, due: Fraction | None) -> bool:
        is_over = due is not None and due * FRAME_RATE > picture.moment
        return is_over or picture.time < self._last[picture.moment]

    def _decide(self, picture: Picture) -> Iterator[tuple[Picture, int]]:
        is_wanted = self._is_wanted(picture)
        if picture.is_idr and not any(earlier.has_parameters for earlier in self._held):
            self._held.clear()
        if is_wanted or picture.is_reference or picture.has_parameters:
            self._held.append(picture)
        if is_wanted or len(self._held) > _MAX_HELD:
            yield from [(one, self._shown_ms(one)) for one in self._held]
            self._held.clear()

    def _is_wanted(self, picture: Picture) -> bool:
        moment = picture.moment
        if moment == min(self._last) > 0:
            return True  # the film begins here: whichever is first stands in for the moments before
        return moment < self._wanted and picture.time == self._last[moment]

    def _shown_ms(self, picture: Picture) -> int:
        at_ms = picture.moment * 1000 // FRAME_RATE
        if picture.time < self._last[picture.moment]:
            at_ms = min(math.ceil(picture.time * 1000), at_ms - 1)
        return ORIGIN_S * 1000 + at_ms


def _pictures(film: Any, video: Any, seek_s: float, start_s: float) -> Iterator[Picture]:
    """The coded pictures from the key frame before seek_s on."""
    zero = Fraction(film.start_time or 0, av.time_base)
    size = 1 + (video.codec_context.extradata[4] & 3)  # bytes of a unit's length
    if seek_s > 0:
        film.seek(int((seek_s + zero) * av.time_base))
    start = zero + Fraction(f"{start_s:.6f}")  # as ffmpeg's arguments say it elsewhere
    for packet in film.demux(video):
        if packet.size == 0:
            return  # the end
        if packet.pts is None or packet.is_discard or packet.has_sidedata("new_extradata"):
            raise UnsuitedError("a picture has no time, is not to be shown, or changes the decoder")
        units = list(_units(memoryview(packet), size))
        yield Picture(
            packet.pts * packet.time_base - start,
            None if packet.dts is None else packet.dts * packet.time_base - start,
            any(kind in _SLICES and importance > 0 for kind, importance in units),
            any(kind == _IDR for kind, _ in units),
            any(kind in _PARAMETERS for kind, _ in units),
            packet,
        )


def _units(packet: memoryview, size: int) -> Iterator[tuple[int, int]]:
    """Type and importance of each unit; 0 are those that nothing else refers to."""
    at = 0
    while at + size < len(packet):
        head = packet[at + size]
        yield head & 31, head >> 5 & 3
        at += size + int.from_bytes(packet[at : at + size], "big")
