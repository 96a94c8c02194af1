"""The unit of work, shard in, shard out, the same whatever engine runs it; and the local engine."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

from pipeline.cache import FeatureCache
from pipeline.cache_budget import CacheBudget
from pipeline.code_cache import CodeCache
from pipeline.encode import Encoders, Media, Progress, SegmentEncoder, read_media
from pipeline.estimate import num_bytes
from pipeline.failures import Breaker, Failure, SegmentError
from pipeline.feature_scales import feature_codec
from pipeline.folder import DataFolder
from pipeline.jsonl import read_journal, write_rows
from pipeline.manifest import Segment, source_path
from pipeline.plan import ShardPlan
from pipeline.publish import publish
from pipeline.read_ahead import ReadAhead
from pipeline.remote_sources import bring_back
from pipeline.selection import EncodeConfig, differences
from shards.feature_codec import Int8Codec, with_codec
from shards.reader import ShardSet
from shards.record import ShardRecord
from shards.remote import RemotePath
from shards.spec import Sample, ShardBusyError, ShardError, failures_path, record_path, tar_path
from shards.writer import write_shard

SPARE_BYTES = 64 << 20  # left free for records, plans and logs


@dataclass(frozen=True)
class Work:
    """What the shards of a run share."""

    manifest: Path
    rows: Mapping[str, Segment]  # by key
    shards: Path  # their home, which may be in an object store
    staging: Path  # the folder here that they are written to; their home where that is here
    encoders: Encoders
    cache: FeatureCache | None = None
    codes: CodeCache | None = None
    feature_codec: Int8Codec | None = None  # None: float16
    deadline_s: float = math.inf  # for reading a segment
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
        budget = None if config.cache_gb is None else CacheBudget(data.cache, round(config.cache_gb * 1e9))
        cache = FeatureCache(data.cache, encoders.video.fingerprint, budget)
        return cls(
            manifest=data.manifest,
            rows=rows,
            shards=data.shards,
            staging=data.staging,
            encoders=encoders,
            cache=None if config.cache == "off" else cache,
            codes=None if config.cache == "off" else CodeCache(data.cache, encoders.audio.fingerprint),
            feature_codec=feature_codec(data, config),
            deadline_s=config.deadline_s,
            force=config.force,
            mend=config.mend,
            breaker=breaker or Breaker(config.stop_after),
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What makes the shards."""
        return with_codec(self.encoders.fingerprint, self.feature_codec)

    def read(self, segment: Segment) -> Media:
        path = source_path(self.manifest, segment)
        bring_back(segment, path)
        return read_media(segment, path, self.encoders, self.cache, self.codes, self.deadline_s)

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
    with ReadAhead(segments, work.read, work.encoders.num_readers) as media:
        encoder = SegmentEncoder(work.encoders, work.cache, work.progress, media.peek, work.codes)
        for shard in filter(is_open, todo):
            _refuse_full_disk(shard, work)
            with suppress(ShardBusyError):
                yield make_shard(shard, work, lambda segment: encoder.encode(segment, media.take(segment)))


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
        encoders = Encoders.load(config.preset, config.device, config.precision)
        self.work = Work.of(data, rows, encoders, config)
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
    needed: float = num_bytes([shard], width, work.feature_codec is not None)
    if work.cache is not None:
        room = math.inf if work.cache.budget is None else work.cache.budget.max_bytes
        needed += min(num_bytes([shard], width), room)
    free = shutil.disk_usage(work.manifest.parent).free
    if free < needed + SPARE_BYTES:
        raise OSError(
            f"{work.shards}: shard {shard.shard} takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free. "
            "Make room and run again; what is complete stays"
        )


def make_shard(shard: ShardPlan, work: Work, encode: Callable[[Segment], Sample]) -> ShardRecord:
    """Encode one shard and bring it home; one that an earlier run could not bring home only goes there."""
    if not isinstance(work.shards, RemotePath):
        return encode_shard(shard, work, encode)
    record = None if work.force else former_record(shard, work, work.staging)
    if record is None or record.left_out:
        record = encode_shard(shard, work, encode)
    publish(record, work.staging, work.shards)
    return record


def encode_shard(shard: ShardPlan, work: Work, encode: Callable[[Segment], Sample]) -> ShardRecord:
    """Encode one shard and commit it; a segment that fails is left out, and `000042.failures.jsonl` says why.

    A pure map: the same plan, sources and encoders give the same bytes, wherever and however often it runs.
    Raises ShardBusyError where another process is at it.
    """
    former = former_samples(shard, work)
    path = failures_path(work.staging, shard.shard)
    journal = read_journal(failures_path(work.shards, shard.shard))
    attempts = {row["key"]: row["attempt"] for row in journal}
    failures: list[Failure] = []
    left_out: list[dict[str, str]] = []

    def samples() -> Iterator[Sample]:
        for key in shard.keys:
            try:
                sample = former[key]() if key in former else encode(_segment(key, work))
                work.breaker.passed()
                yield sample
            except SegmentError as error:
                work.breaker.failed(error)
                failures.append(_failure(key, error, work, attempts.get(key, 0) + 1))
                left_out.append({"key": key, "kind": error.kind, "stage": error.stage})
        # Before the record: who sees the shard also sees why it lacks something.
        if failures:
            write_rows(path, [failure.to_json() for failure in failures])

    record = write_shard(
        work.staging,
        shard.shard,
        samples(),
        plan_hash=shard.plan_hash,
        fingerprint=work.fingerprint,
        left_out=left_out,
        feature_codec=work.feature_codec,
    )
    if not failures:
        path.unlink(missing_ok=True)
    return record


def _segment(key: str, work: Work) -> Segment:
    segment = work.rows.get(key)
    if segment is None:
        raise SegmentError("manifest", "permanent", "the manifest no longer has this segment")
    return segment


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
    if work.force:
        return {}
    found = ((folder, former_record(shard, work, folder)) for folder in (work.staging, work.shards))
    folder, record = next((pair for pair in found if pair[1] is not None), (work.shards, None))
    if record is None:
        return {}
    shard_set = ShardSet([(tar_path(folder, shard.shard), record)])
    return {
        ref.record.key: partial(shard_set.read, i)
        for i, ref in enumerate(shard_set.samples)
        if shard.shard not in work.mend or _is_sound(shard_set, i)
    }


def former_record(shard: ShardPlan, work: Work, folder: Path) -> ShardRecord | None:
    """What an earlier run made of this very shard in that folder."""
    path = record_path(folder, shard.shard)
    if not (path.exists() and path.with_suffix(".tar").exists()):
        return None
    record = ShardRecord.load(path)
    return None if differences(record, shard, work.fingerprint) else record


def _is_sound(shard_set: ShardSet, index: int) -> bool:
    try:
        shard_set.check(index)
    except ShardError:
        return False
    return True
