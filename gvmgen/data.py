"""Shards -> batches: a pure function of (data, seed, position), so any run can be stopped and gone on with.

B batch, F video frames, P patches, D width, K codebooks, T code frames.

The samples stand in one endless sequence, a fresh permutation an epoch. Batch after batch is cut from it,
over the borders of epochs, and each process takes its share of every batch; nothing depends on the number
of processes or threads. Threads read straight into reused buffers: to hand samples of 35 MB from worker
processes would cost four to seven times the read itself.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, islice
from typing import Any, Literal, Self, TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from shards.reader import SampleRef, ShardSet
from shards.spec import CODE_RATE, CODES, FEATURES, FRAME_RATE, ShardError

OnCorrupt = Literal["stop", "substitute"]


class Batch(TypedDict):
    """Segments of one optimiser step, or of a piece of it. Valid until the next is asked for."""

    features: Tensor  # float16 [B, F, P, D]; zero after a row's own frames
    codes: Tensor  # int64 [B, K, T]; zero after a row's own code frames
    keys: list[str]
    num_frames: Tensor | None  # int64 [B]; None where no row is padded
    num_code_frames: Tensor | None  # int64 [B]; None where no row is padded
    anchored: Tensor | None  # bool [B]: rows that begin with an anchor; None where none does


@dataclass(frozen=True)
class Draw:
    """One place in the endless sequence of samples."""

    epoch: int
    place: int  # in the epoch's order
    index: int  # of the sample in the data


@dataclass(frozen=True)
class Stretch:
    """Frames and codes of a segment, from a whole second on."""

    start_s: int
    num_frames: int
    num_code_frames: int

    @classmethod
    def of(cls, start_s: int, num_seconds: int) -> Self:
        return cls(start_s, num_seconds * FRAME_RATE, num_seconds * CODE_RATE)

    def cut_to(self, num_frames: int, num_code_frames: int) -> Self:
        return replace(
            self,
            num_frames=min(self.num_frames, num_frames),
            num_code_frames=min(self.num_code_frames, num_code_frames),
        )


@dataclass(frozen=True)
class Window:
    """What a batch shows of a segment: a stretch, and before it, in some, an anchor from elsewhere."""

    stretch: Stretch
    anchor: Stretch | None = None

    @property
    def stretches(self) -> list[Stretch]:
        return [self.stretch] if self.anchor is None else [self.anchor, self.stretch]

    @property
    def num_frames(self) -> int:
        return sum(each.num_frames for each in self.stretches)

    @property
    def num_code_frames(self) -> int:
        return sum(each.num_code_frames for each in self.stretches)


@lru_cache(maxsize=3)
def permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's order. Sorts raw random words, which numpy keeps the same from version to version."""
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_samples)
    return np.argsort(words, kind="stable")


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Which sample stands where in the endless sequence."""

    num_samples: int
    batch_size: int  # samples a step, over all processes
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError("there are no samples to draw batches from")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")

    def draw(self, position: int) -> Draw:
        epoch, place = divmod(position, self.num_samples)
        return Draw(epoch, place, int(permutation(self.num_samples, self.seed, epoch)[place]))

    def share(self, position: int, rank: int, world_size: int) -> list[Draw]:
        """What one process takes of the batch at `position`; the shares in a row are the batch."""
        size = self.batch_size // world_size
        return [self.draw(position + rank * size + i) for i in range(size)]


def crop_window(ref: SampleRef, crop_s: int | None, seed: int, epoch: int, anchor_s: int = 0) -> Window:
    """The segment, or random `crop_s` seconds of it from a whole second on: frames and codes stay in step.

    anchor_s: half of the crops begin with so many seconds from elsewhere in the segment, the others are as
    much longer, so that all rows of a batch are of one length.
    """
    frames, code_frames = ref.record.num_frames, ref.record.num_code_frames
    whole_s = min(frames // FRAME_RATE, code_frames // CODE_RATE)
    if crop_s is None or whole_s < crop_s + anchor_s:
        return Window(Stretch(0, frames, code_frames))

    def draw(what: str, count: int) -> int:
        text = f"{seed} {epoch} {ref.record.key}{what}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % count

    start_s = draw("", whole_s - crop_s + 1)
    apart = [s for s in range(whole_s - anchor_s + 1) if s + anchor_s <= start_s or s >= start_s + crop_s]
    if anchor_s and apart and draw(" is anchored", 2):
        anchor = Stretch.of(apart[draw(" anchor", len(apart))], anchor_s)
        return Window(Stretch.of(start_s, crop_s), anchor)
    return Window(Stretch.of(draw("", whole_s - crop_s - anchor_s + 1), crop_s + anchor_s))


class SegmentLoader:
    """Batches of shards, read ahead by threads. Iterating goes on at `state`, without end."""

    def __init__(
        self,
        shards: ShardSet,
        *,
        batch_size: int,
        seed: int = 0,
        crop_s: float | None = None,
        anchor_s: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pieces: int = 1,
        prefetch: int = 2,
        num_threads: int = 4,
        device: torch.device | str = "cpu",
        on_corrupt: OnCorrupt = "stop",
    ) -> None:
        """batch_size: samples a step over all processes, cut into `pieces` for gradient accumulation.
        crop_s, anchor_s: as `crop_window` takes them. prefetch: pieces read ahead.
        on_corrupt: `stop` raises ShardError that names the sample; `substitute` takes the next sample of the
        epoch's order in its place and counts it in `substituted`.
        """
        if batch_size % (world_size * pieces):
            raise ValueError(
                f"batch_size {batch_size} cannot be shared by {world_size} processes in {pieces} pieces "
                f"each; take a multiple of {world_size * pieces}"
            )
        if crop_s is not None and not (crop_s >= 1 and float(crop_s).is_integer()):
            raise ValueError(f"crop_s is {crop_s}; it must be a whole number of seconds")
        self.shards = shards
        self.plan = BatchPlan(num_samples=len(shards), batch_size=batch_size, seed=seed)
        self.crop_s, self.anchor_s = None if crop_s is None else int(crop_s), anchor_s
        self.rank, self.world_size, self.pieces = rank, world_size, pieces
        self.prefetch, self.num_threads = prefetch, num_threads
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            # The current device belongs to a thread; the one that copies is another.
            self.device = torch.device("cuda", torch.cuda.current_device())
        codec = shards.samples[0].feature_codec  # the same for the whole data set
        self.scales = None if codec is None else torch.tensor(codec.scales, device=self.device)
        self.decodes_on_device = codec is not None and self.device.type != "cpu"  # half the bytes to move
        self.on_corrupt = on_corrupt
        self.substituted: Counter[str] = Counter()  # by key of the corrupt sample
        self._position = 0  # in the endless sequence, of the next batch to hand out
        self._checked: set[int] = set()
        self._lock = threading.Lock()

    @property
    def state(self) -> dict[str, Any]:
        """Where the run stands: what it takes to hand out the same next batch, on any number of processes."""
        epoch, consumed = divmod(self._position, self.plan.num_samples)
        return {
            "plan_hash": self.shards.plan_hash,
            "seed": self.plan.seed,
            "epoch": epoch,
            "samples_consumed": consumed,  # in this epoch
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Raises ValueError where it belongs to other data or another seed."""
        for name, wanted in self.state.items():
            if name in ("plan_hash", "seed") and state[name] != wanted:
                raise ValueError(
                    f"the state to resume has {name} {state[name]}, this run has {wanted}: "
                    "the batches would differ. Use the same data and seed, start another run with "
                    "--run NAME, or go on with the new ones: --accept-changes"
                )
        self.seek(state["epoch"] * self.plan.num_samples + state["samples_consumed"])

    def seek(self, position: int) -> None:
        """Go on as if so many samples had been handed out, over all processes."""
        self._position = position

    def windows(self, position: int) -> list[Window]:
        """What the batch at `position` shows, over all processes; a substitute may show less."""
        return [self._window(self.plan.draw(position + i)) for i in range(self.plan.batch_size)]

    @property
    def num_patches(self) -> int:
        return self.shards.samples[0].record.fields[FEATURES].shape[1]

    def __iter__(self) -> Generator[Batch, None, None]:
        start, size = self._position, self.plan.batch_size
        pieces = (
            piece
            for position in count(start, size)
            for piece in _cut(self.plan.share(position, self.rank, self.world_size), self.pieces)
        )
        for number, batch in enumerate(self._read_ahead(pieces), start=1):
            self._position = start + number // self.pieces * size
            yield batch

    def one_pass(self) -> Iterator[Batch]:
        """Every sample once, in the data's order: validation. Processes' shares may differ by a sample."""
        mine = [Draw(0, index, index) for index in range(self.rank, len(self.shards), self.world_size)]
        size = self._piece_size
        yield from self._read_ahead(mine[i : i + size] for i in range(0, len(mine), size))

    @property
    def rounds_of_one_pass(self) -> int:
        """Batches that the process with the most of them gets in one pass."""
        return -(-len(self.shards) // (self.world_size * self._piece_size))

    @property
    def _piece_size(self) -> int:
        return self.plan.batch_size // self.world_size // self.pieces

    def _read_ahead(self, pieces: Iterator[Sequence[Draw]]) -> Generator[Batch, None, None]:
        readers = ThreadPoolExecutor(self.num_threads, "read-rows")
        assembler = ThreadPoolExecutor(1, "assemble-batch")
        waiting: deque[tuple[_Buffer, Future[Batch]]] = deque()

        def start(buffer: _Buffer, piece: Sequence[Draw]) -> None:
            rows = self._start_rows(readers, buffer, piece)
            waiting.append((buffer, assembler.submit(self._assemble, rows)))

        try:
            pinned = self.device.type == "cuda"
            for piece in islice(pieces, self.prefetch + 1):
                start(_Buffer(pinned), piece)
            while waiting:
                buffer, batch = waiting.popleft()
                yield self._on_this_stream(batch.result())
                for piece in islice(pieces, 1):
                    start(buffer, piece)
        finally:
            readers.shutdown(cancel_futures=True)
            assembler.shutdown(cancel_futures=True)

    def _start_rows(self, readers: ThreadPoolExecutor, buffer: _Buffer, piece: Sequence[Draw]) -> _Rows:
        windows = [self._window(draw) for draw in piece]
        num_frames = max(window.num_frames for window in windows)
        num_code_frames = max(window.num_code_frames for window in windows)
        fields = self.shards.samples[piece[0].index].record.fields
        dtype = torch.int8 if self.decodes_on_device else torch.float16
        features = buffer.take((len(piece), num_frames, *fields[FEATURES].shape[1:]), dtype)
        codes = buffer.take((len(piece), fields[CODES].shape[0], num_code_frames), torch.int64)
        rows = zip(piece, features.numpy(), codes.numpy(), strict=True)
        return _Rows(features, codes, [readers.submit(self._fill_row, *row) for row in rows])

    def _window(self, draw: Draw) -> Window:
        ref = self.shards.samples[draw.index]
        return crop_window(ref, self.crop_s, self.plan.seed, draw.epoch, self.anchor_s)

    def _fill_row(self, draw: Draw, features: np.ndarray, codes: np.ndarray) -> tuple[str, Window]:
        """Read a sample, or its substitute no longer than it, into features [F, P, D] and codes [K, T]."""
        for candidate in self._candidates(draw):
            try:
                self._check_once(candidate.index)
                window = self._window(candidate)
                if candidate is not draw:  # it must not depend on the rows beside it, and may be longer
                    longest = self._window(draw)
                    stretch = window.stretch.cut_to(longest.num_frames, longest.num_code_frames)
                    window = Window(stretch)
                self._read_window(candidate.index, window, features, codes)
                return self.shards.samples[candidate.index].record.key, window
            except ShardError:
                if self.on_corrupt == "stop":
                    raise
                with self._lock:
                    self.substituted[self.shards.samples[candidate.index].record.key] += 1
        raise ShardError("every sample of the data is corrupt. Run: gvm-prep verify --deep")

    def _candidates(self, draw: Draw) -> Iterator[Draw]:
        """The sample itself, then those that follow it in its epoch's order, round to itself."""
        size = self.plan.num_samples
        for place in range(draw.place, draw.place + size):
            yield draw if place == draw.place else self.plan.draw(draw.epoch * size + place % size)

    def _check_once(self, index: int) -> None:
        """Compare checksums when a sample is first read, while it comes from the disk at the disk's pace."""
        if index not in self._checked:
            self.shards.check(index)
            self._checked.add(index)

    def _read_window(self, index: int, window: Window, features: np.ndarray, codes: np.ndarray) -> None:
        whole, frame, code_frame = self.shards.read_array(index, CODES), 0, 0
        for stretch in window.stretches:
            rows = features[frame : frame + stretch.num_frames]
            if self.decodes_on_device:
                self.shards.read_rows(index, FEATURES, rows, stretch.start_s * FRAME_RATE)
            else:
                self.shards.read_features(index, rows, stretch.start_s * FRAME_RATE)
            start, stop = stretch.start_s * CODE_RATE, code_frame + stretch.num_code_frames
            codes[:, code_frame:stop] = whole[:, start : start + stretch.num_code_frames]
            frame, code_frame = frame + stretch.num_frames, stop
        features[frame:] = 0
        codes[:, code_frame:] = 0

    def _assemble(self, rows: _Rows) -> Batch:
        """Wait for a batch's rows and bring it to the device."""
        filled = [row.result() for row in rows.futures]
        windows = [window for _, window in filled]
        batch = Batch(
            features=rows.features,
            codes=rows.codes,
            keys=[key for key, _ in filled],
            num_frames=_lengths([window.num_frames for window in windows], rows.features.shape[1]),
            num_code_frames=_lengths([window.num_code_frames for window in windows], rows.codes.shape[2]),
            anchored=_flags([window.anchor is not None for window in windows]),
        )
        return self._decoded(batch) if self.device.type == "cpu" else self._to_device(batch)

    def _to_device(self, batch: Batch) -> Batch:
        """Copy beside the computation, on a stream of its own, and wait for the copy in this thread."""
        if self.device.type != "cuda":
            return self._decoded(_map_tensors(batch, lambda tensor: tensor.to(self.device)))
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            moved = self._decoded(
                _map_tensors(batch, lambda tensor: tensor.to(self.device, non_blocking=True))
            )
        stream.synchronize()
        return moved

    def _decoded(self, batch: Batch) -> Batch:
        """Turn levels that were moved into the values that every reader of the shards gives."""
        if not self.decodes_on_device:
            return batch
        levels = batch["features"]
        values = torch.empty(levels.shape, dtype=torch.float16, device=levels.device)
        for row, out in zip(levels, values, strict=True):  # float32 of one row at a time
            out.copy_(row * self.scales)
        return {**batch, "features": values}

    def _on_this_stream(self, batch: Batch) -> Batch:
        """Tell the allocator that the caller's stream reads these tensors, so that it keeps them so long."""
        if self.device.type != "cuda":
            return batch
        stream = torch.cuda.current_stream(self.device)

        def keep(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        return _map_tensors(batch, keep)


@dataclass(frozen=True)
class _Rows:
    """A batch whose rows are being read."""

    features: Tensor  # float16, or int8 levels, [B, F, P, D]
    codes: Tensor  # int64 [B, K, T]
    futures: list[Future[tuple[str, Window]]]


class _Buffer:
    """The host memory of one batch, used again and again; page-locked where a GPU fetches from it."""

    def __init__(self, pinned: bool) -> None:
        self.pinned = pinned
        self._memory: dict[torch.dtype, Tensor] = {}

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape)
        if dtype not in self._memory or len(self._memory[dtype]) < size:
            self._memory[dtype] = torch.empty(size, dtype=dtype, pin_memory=self.pinned)
        return self._memory[dtype][:size].view(*shape)


def _cut(draws: Sequence[Draw], pieces: int) -> Iterator[Sequence[Draw]]:
    size = len(draws) // pieces
    return (draws[i : i + size] for i in range(0, len(draws), size))


def _lengths(lengths: list[int], longest: int) -> Tensor | None:
    return None if min(lengths) == longest else torch.tensor(lengths)


def _flags(flags: list[bool]) -> Tensor | None:
    return torch.tensor(flags) if any(flags) else None


def _map_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    moved = {name: function(value) if isinstance(value, Tensor) else value for name, value in batch.items()}
    return cast(Batch, moved)
