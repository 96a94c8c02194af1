"""The unit of work, shard in, shard out, the same whatever engine runs it; and the local engine."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self

from pipeline.cache import FeatureCache
from pipeline.encode import Encoders, Media, Progress, encode_media, read_media
from pipeline.estimate import num_bytes
from pipeline.failures import Breaker, Failure, SegmentError
from pipeline.feature_scales import feature_codec
from pipeline.folder import DataFolder
from pipeline.jsonl import read_journal, write_rows
from pipeline.manifest import Segment, source_path
from pipeline.plan import ShardPlan
from pipeline.selection import EncodeConfig, differences
from shards.feature_codec import Int8Codec, with_codec
from shards.reader import ShardSet
from shards.record import ShardRecord
from shards.spec import Sample, ShardBusyError, ShardError, failures_path, record_path
from shards.writer import write_shard

SPARE_BYTES = 64 << 20  # left free for records, plans and logs
READ_AHEAD = 2  # segments; 30 s are about 10 MB of frames


@dataclass(frozen=True)
class Work:
    """What the shards of a run share."""

    manifest: Path
    rows: Mapping[str, Segment]  # by key
    shards: Path  # the folder they are written to
    encoders: Encoders
    cache: FeatureCache | None = None
    feature_codec: Int8Codec | None = None  # None: float16
    force: bool = False  # make complete shards again
    mend: frozenset[int] = frozenset()  # broken shards: what is sound in them stays
    progress: Progress = field(default_factory=Progress)
    breaker: Breaker = field(default_factory=lambda: Breaker(limit=0))

    @classmethod
    def of(
        cls,
        data: DataFolder,
        rows: Mapping[str, Segment],
        encoders: Encoders,
        config: EncodeConfig,
        breaker: Breaker | None = None,
    ) -> Self:
        """As a run's settings say. `breaker`, where it outlives this work."""
        cache = FeatureCache(data.cache, encoders.video.fingerprint)
        return cls(
            manifest=data.manifest,
            rows=rows,
            shards=data.shards,
            encoders=encoders,
            cache=None if config.cache == "off" else cache,
            feature_codec=feature_codec(data, config),
            force=config.force,
            mend=config.mend,
            breaker=breaker or Breaker(config.stop_after),
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What makes the shards."""
        return with_codec(self.encoders.fingerprint, self.feature_codec)

    def read(self, segment: Segment) -> Media:
        return read_media(segment, source_path(self.manifest, segment), self.encoders, self.cache)

    def is_recorded(self, shard: ShardPlan) -> bool:
        return record_path(self.shards, shard.shard).exists()


def encode_shards(todo: Sequence[ShardPlan], work: Work) -> Iterator[ShardRecord]:
    """The local engine: one shard after the other in this process, the next segments read meanwhile.

    A shard that another process is writing, or has finished since, is left to it.
    """
    recorded = {shard.shard for shard in todo if work.is_recorded(shard)}

    def is_open(shard: ShardPlan) -> bool:
        return shard.shard in recorded or not work.is_recorded(shard)

    segments = (segment for shard in todo if is_open(shard) for segment in _to_encode(shard, work))
    with ReadAhead(segments, work.read) as media:
        for shard in filter(is_open, todo):
            _refuse_full_disk(shard, work)
            with suppress(ShardBusyError):
                yield encode_shard(shard, work, media.take)


class Engine(Protocol):
    """What makes shards, in this process or elsewhere."""

    progress: Progress

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What its encoders are."""

    def encode(self, todo: Sequence[ShardPlan]) -> Iterator[ShardRecord]:
        """Records of the shards as they are made, in any order; none of a shard that is left to another."""

    def close(self) -> None:
        """End what outlives `encode`."""


class LocalEngine:
    """Everything in this process."""

    def __init__(self, data: DataFolder, rows: Mapping[str, Segment], config: EncodeConfig) -> None:
        self.work = Work.of(data, rows, Encoders.load(config.preset, config.device), config)
        self.progress = self.work.progress

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self.work.encoders.fingerprint

    def encode(self, todo: Sequence[ShardPlan]) -> Iterator[ShardRecord]:
        yield from encode_shards(todo, self.work)

    def close(self) -> None:
        """Nothing outlives the run."""


def _refuse_full_disk(shard: ShardPlan, work: Work) -> None:
    """Raise OSError before a shard that cannot end well."""
    width = work.encoders.video.feature_dim
    needed = num_bytes([shard], width, work.feature_codec is not None)
    needed += 0 if work.cache is None else num_bytes([shard], width)
    free = shutil.disk_usage(work.manifest.parent).free
    if free < needed + SPARE_BYTES:
        raise OSError(
            f"{work.shards}: shard {shard.shard} takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free. "
            "Make room and run again; what is complete stays"
        )


def encode_shard(shard: ShardPlan, work: Work, read: Callable[[Segment], Media]) -> ShardRecord:
    """Encode one shard and commit it; a segment that fails is left out, and `000042.failures.jsonl` says why.

    A pure map: the same plan, sources and encoders give the same bytes, wherever and however often it runs.
    Raises ShardBusyError where another process is at it.
    """
    former = former_samples(shard, work)
    path = failures_path(work.shards, shard.shard)
    attempts = {row["key"]: row["attempt"] for row in read_journal(path)}
    failures: list[Failure] = []
    left_out: list[dict[str, str]] = []

    def samples() -> Iterator[Sample]:
        for key in shard.keys:
            try:
                sample = former[key]() if key in former else _encode_segment(key, work, read)
                work.breaker.passed()
                yield sample
            except SegmentError as error:
                work.breaker.failed(error)
                failures.append(_failure(key, error, work, attempts.get(key, 0) + 1))
                left_out.append({"key": key, "kind": error.kind, "stage": error.stage})
        # Before the record: who sees the shard also sees why it lacks something.
        write_rows(path, [failure.to_json() for failure in failures])

    record = write_shard(
        work.shards,
        shard.shard,
        samples(),
        plan_hash=shard.plan_hash,
        fingerprint=work.fingerprint,
        left_out=left_out,
        feature_codec=work.feature_codec,
    )
    if not failures:
        path.unlink()
    return record


def _encode_segment(key: str, work: Work, read: Callable[[Segment], Media]) -> Sample:
    segment = work.rows.get(key)
    if segment is None:
        raise SegmentError("manifest", "permanent", "the manifest no longer has this segment")
    return encode_media(segment, read(segment), work.encoders, work.cache, work.progress)


def _to_encode(shard: ShardPlan, work: Work) -> Iterator[Segment]:
    former = former_samples(shard, work)
    return (work.rows[key] for key in shard.keys if key in work.rows and key not in former)


def _failure(key: str, error: SegmentError, work: Work, attempt: int) -> Failure:
    source = work.rows[key].source if key in work.rows else ""
    return Failure(
        key=key, source=source, stage=error.stage, kind=error.kind, message=str(error), attempt=attempt
    )


def former_samples(shard: ShardPlan, work: Work) -> dict[str, Callable[[], Sample]]:
    """Samples that an earlier run made, by key: a retry encodes only what failed, a repair what broke."""
    path = record_path(work.shards, shard.shard)
    if work.force or not (path.exists() and path.with_suffix(".tar").exists()):
        return {}
    record = ShardRecord.load(path)
    if differences(record, shard, work.fingerprint):
        return {}
    shard_set = ShardSet([(path.with_suffix(".tar"), record)])
    return {
        ref.record.key: partial(shard_set.read, i)
        for i, ref in enumerate(shard_set.samples)
        if shard.shard not in work.mend or _is_sound(shard_set, i)
    }


def _is_sound(shard_set: ShardSet, index: int) -> bool:
    try:
        shard_set.check(index)
    except ShardError:
        return False
    return True


class ReadAhead:
    """Media of segments, read in order by a thread while the encoders work on what came before."""

    def __init__(self, segments: Iterable[Segment], read: Callable[[Segment], Media]) -> None:
        self._segments, self._read = iter(segments), read
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._waiting: deque[tuple[Segment, Future[Media]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, segment: Segment) -> Media:
        """This segment's media; what waits before it is let go. Raises what reading it raised."""
        while True:
            self._fill()
            found, media = self._waiting.popleft()
            if found is segment:
                self._fill()
                return media.result()
            media.cancel()

    def _fill(self) -> None:
        for segment in islice(self._segments, 1 + READ_AHEAD - len(self._waiting)):
            self._waiting.append((segment, self._thread.submit(self._read, segment)))
