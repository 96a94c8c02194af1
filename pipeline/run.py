"""One run of `gvm-prep encode`: what is left to do, done, and reported."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from tqdm import tqdm

from pipeline.encode import Encoders
from pipeline.engines import Work, encode_shards
from pipeline.folder import DataFolder, choose, planned_frames
from pipeline.selection import EncodeConfig, split_complete
from shards.record import ShardRecord


@dataclass(frozen=True)
class Report:
    """What a run did."""

    num_planned: int  # shards that were asked for
    made: list[ShardRecord]
    complete: list[ShardRecord]  # before the run
    seconds: float

    @property
    def num_failed(self) -> int:
        """Segments that failed in this run."""
        return sum(len(record.left_out) for record in self.made)

    @property
    def num_frames(self) -> int:
        return sum(sample.num_frames for record in self.made for sample in record.samples)

    def lines(self, data: DataFolder, config: EncodeConfig) -> list[str]:
        """The report for a person."""
        num_busy = self.num_planned - len(self.made) - len(self.complete)
        lines = [
            f"{data.shards}: {len(self.made)} shards made, {len(self.complete)} complete before; "
            f"{self.num_frames} frames in {self.seconds:.1f} s, {self.num_frames / self.seconds:.2f} a second"
        ]
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
    plan = choose(data.freeze_plan(rows), config.shards)
    encoders = Encoders.load(config.preset, config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    todo, complete = split_complete(plan, data, encoders.fingerprint, config)
    made = []
    with tqdm(total=planned_frames(todo), desc="encode", unit=" frames", disable=None) as bar:
        work = Work(data.manifest, rows, data.shards, encoders, config.force, bar.update)
        num_done = 0
        for record in encode_shards(todo, work):
            made.append(record)
            num_done += planned_frames([plan[record.shard]])
            bar.update(num_done - bar.n)  # a failed segment's frames count as done, too
    return Report(len(plan), made, complete, time.monotonic() - started)
