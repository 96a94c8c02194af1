"""The unit of work in processes of their own: what engines of many workers share.

A worker needs this package, the data folder and the sources; what it makes does not depend on which it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

from pipeline.encode import Encoders, Progress
from pipeline.engines import Work, encode_shards
from pipeline.failures import Breaker
from pipeline.folder import DataFolder
from pipeline.manifest import Segment
from pipeline.plan import ShardPlan
from pipeline.selection import EncodeConfig, Precision
from shards.record import ShardRecord

PATIENCE_S = 60.0  # a killed worker's kernel or file server lets go of its shard within this time
LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Job:
    """One shard to make, with all that a worker has to know."""

    data: DataFolder
    config: EncodeConfig
    shard: ShardPlan
    rows: Mapping[str, Segment]  # of this shard, by key
    is_new: bool  # the run found no commit record of it
    patience_s: float = 0.0  # how long to wait for another process that holds the shard

    def on(self, device: str) -> Self:
        return replace(self, config=self.config.on(device))


@dataclass(frozen=True)
class Done:
    """What became of a job."""

    record: ShardRecord | None  # None: another process holds the shard
    num_encoded: int = 0  # frames that went through CLIP
    num_cached: int = 0


class WorkerEngine:
    """An engine whose jobs run elsewhere. A subclass says how: `fingerprint`, `run_all`, `close`."""

    def __init__(self, data: DataFolder, rows: Mapping[str, Segment], config: EncodeConfig) -> None:
        self.data = replace(data, root=data.root.absolute())
        self.rows, self.config = rows, config
        self.progress = Progress()

    def run_all(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Done]]:
        """Each job with what became of it, in no order."""
        raise NotImplementedError

    def encode(self, todo: Sequence[ShardPlan]) -> Iterator[ShardRecord]:
        """Records of the shards as they are made. One that is held elsewhere has a second try at the end:
        its holder may be a worker that was just killed."""
        recorded = self.data.recorded()
        jobs = (self._job(shard, is_new=shard.shard not in recorded) for shard in todo)
        busy: list[Job] = []
        for job, done in self.run_all(jobs):
            if done.record is None:
                busy.append(replace(job, patience_s=PATIENCE_S))
            else:
                yield self._counted(done)
        for _, done in self.run_all(busy):
            if done.record is not None:
                yield self._counted(done)

    def _job(self, shard: ShardPlan, *, is_new: bool) -> Job:
        rows = {key: self.rows[key] for key in shard.keys if key in self.rows}
        return Job(self.data, self.config, shard, rows, is_new)

    def _counted(self, done: Done) -> ShardRecord:
        assert done.record is not None
        self.progress.num_encoded += done.num_encoded
        self.progress.num_cached += done.num_cached
        return done.record


def run_job(job: Job) -> Done:
    """Make the job's shard in this process. Encoders stay loaded for the next job."""
    encoders = load_encoders(job.config.preset, job.config.device, job.config.precision)
    work = Work.of(job.data, job.rows, encoders, job.config, _breaker(job.config.stop_after))
    deadline = time.monotonic() + job.patience_s
    while True:
        if job.is_new and (record := job.data.record(job.shard.shard)) is not None:
            return Done(record)  # an earlier try made it, and died before it could tell
        for record in encode_shards([job.shard], work):
            return Done(record, work.progress.num_encoded, work.progress.num_cached)
        if time.monotonic() >= deadline:
            return Done(None)
        time.sleep(LOOK_EVERY_S)


def worker_fingerprint(config: EncodeConfig) -> dict[str, Any]:
    """What a worker's encoders are. The machine that hands out the jobs may have no GPU to load them on."""
    return load_encoders(config.preset, config.device, config.precision).fingerprint


@lru_cache(maxsize=1)
def load_encoders(preset: str, device: str | None, precision: Precision | None) -> Encoders:
    return Encoders.load(preset, device, precision)


@lru_cache(maxsize=1)
def _breaker(limit: int) -> Breaker:
    """One a process, over all its jobs: a machine where everything fails would else use up every shard."""
    return Breaker(limit)
