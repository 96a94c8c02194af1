"""One run of `gvm-prep encode`: what is left to do, done, and reported."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from pipeline.cache import FeatureCache
from pipeline.encode import Encoders, Progress
from pipeline.engines import Work, encode_shards
from pipeline.failures import Breaker
from pipeline.folder import DataFolder, choose, planned_frames, ranges
from pipeline.plan import ShardPlan
from pipeline.selection import EncodeConfig, split_complete
from pipeline.tidy import Tidier
from shards.record import ShardRecord


@dataclass(frozen=True)
class Report:
    """What a run did."""

    num_planned: int  # shards that were asked for
    made: list[ShardRecord]
    complete: list[ShardRecord]  # before the run
    progress: Progress
    seconds: float

    @property
    def num_failed(self) -> int:
        """Segments that failed in this run."""
        return sum(len(record.left_out) for record in self.made)

    def lines(self, data: DataFolder, config: EncodeConfig) -> list[str]:
        """The report for a person."""
        num_busy = self.num_planned - len(self.made) - len(self.complete)
        lines = []
        if config.shards != "all":
            asked = sum(len(numbers) for numbers in ranges(config.shards))
            lines.append(f"{self.num_planned} of the {asked} shards {config.shards} hold segments")
        lines += [
            f"{data.shards}: {len(self.made)} shards made, {len(self.complete)} complete before; "
            f"{self.progress.num_encoded} frames encoded in {self.seconds:.1f} s, "
            f"{self.progress.num_encoded / self.seconds:.1f} a second"
        ]
        if self.progress.num_cached:
            lines.append(f"  {self.progress.num_cached} frames came from the cache")
        if num_busy:
            lines.append(f"  {num_busy} shards were left to another process")
        if self.num_failed:
            lines.append(
                f"  {self.num_failed} segments failed and are left out; why: {data.shards}/*.failures.jsonl; "
                f"once mended: gvm-prep encode --shards {config.shards} --retry all"
            )
        num_lacking = sum(len(record.left_out) for record in self.complete)
        if num_lacking:
            lines.append(f"  {num_lacking} segments failed in earlier runs; to try them again: --retry all")
        return lines


def encode(data: DataFolder, config: EncodeConfig) -> Report:
    """Encode the chosen shards that are not complete.

    Raises ShardError where a complete shard is not what this plan and these encoders make.
    """
    started = time.monotonic()
    rows = data.read_segments()
    plan = data.freeze_plan(rows.values(), config.shards if config.force else "")
    chosen = choose(plan, config.shards)
    encoders = Encoders.load(config.preset, config.device)
    todo, complete = split_complete(chosen, data, encoders.fingerprint, config)
    cache = FeatureCache(data.cache, encoders.video.fingerprint)
    tidier = Tidier(config.cache, cache, plan, rows, data.is_complete)
    for record in complete:
        tidier.tidy(plan[record.shard])  # a kill may have come between the record and this
    work = Work(
        manifest=data.manifest,
        rows=rows,
        shards=data.shards,
        encoders=encoders,
        cache=None if config.cache == "off" else cache,
        force=config.force,
        mend=config.mend,
        breaker=Breaker(config.stop_after),
    )
    made = _encode(todo, work, tidier)
    return Report(len(chosen), made, complete, work.progress, time.monotonic() - started)


def _encode(todo: Sequence[ShardPlan], work: Work, tidier: Tidier) -> list[ShardRecord]:
    """Encode the shards under a progress bar."""
    plan = {shard.shard: shard for shard in todo}
    made: list[ShardRecord] = []
    num_done = 0  # frames of the shards that are done, those of failed segments, too
    with tqdm(total=planned_frames(todo), desc="encode", unit=" frames", disable=None) as bar:
        work.progress.on_frames = bar.update
        for record in encode_shards(todo, work):
            made.append(record)
            tidier.tidy(plan[record.shard])
            num_done += planned_frames([plan[record.shard]])
            bar.update(num_done - bar.n)
    return made
