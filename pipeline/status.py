"""How far a data set is. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.estimate import frames_per_s
from pipeline.folder import DataFolder, finished, plan_summary, planned_frames
from pipeline.jsonl import read_journal
from pipeline.manifest import Segment, read_manifest
from pipeline.plan import ContradictionError, Plan, ShardPlan, freeze, read_plan
from pipeline.selection import differences
from shards.record import ShardRecord
from shards.spec import failures_path, tar_path


@dataclass
class Status:
    """A data folder, shard by shard."""

    complete: list[ShardPlan] = field(default_factory=list)
    missing: list[ShardPlan] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)  # complete, but not as planned: a sentence each
    failures: list[dict[str, Any]] = field(default_factory=list)  # rows of the failures files
    num_bytes: int = 0  # of the complete shards
    num_unplanned: int = 0  # segments that the manifest has gained since the plan
    contradiction: str = ""  # where the manifest now says otherwise of complete shards: encode refuses that
    frames_per_s: float | None = None  # None: nothing to tell it from

    def lines(self, data: DataFolder) -> list[str]:
        """The status for a person."""
        num_planned = len(self.complete) + len(self.missing)
        lines = [f"{data.root}: {len(self.complete)} of {num_planned} planned shards are complete"]
        lines.append(f"  complete    {plan_summary(self.complete)}, {self.num_bytes / 1e9:.2f} GB")
        lines.append(f"  missing     {plan_summary(self.missing)}")
        if self.num_unplanned:
            lines.append(f"  unplanned   {self.num_unplanned} segments; the next encode adds shards for them")
        if self.missing and self.frames_per_s:
            hours = planned_frames(self.missing) / self.frames_per_s / 3600
            lines.append(f"  remaining   {hours:.1f} h at {self.frames_per_s:.1f} frames a second")
        if self.contradiction:
            lines.append(f"  refused     {self.contradiction}")
        lines += [f"  stale       {sentence}" for sentence in self.stale]
        return lines + self._failure_lines()

    def _failure_lines(self) -> list[str]:
        """Failed segments by kind, and the commonest reasons."""
        if not self.failures:
            return ["  failed      0 segments"]
        kinds = Counter(row["kind"] for row in self.failures)
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        lines = [
            f"  failed      {len(self.failures)} segments ({told}); to try them again: encode --retry all"
        ]
        reasons = Counter((row["stage"], _shortened(row)) for row in self.failures)
        return lines + [f"    {count} x {stage}: {text}" for (stage, text), count in reasons.most_common(5)]


def status(data: DataFolder) -> Status:
    """Look at every planned shard. Raises FileNotFoundError where nothing is planned yet."""
    plan = read_plan(data.plan)
    if not plan:
        raise FileNotFoundError(f"{data.plan}: nothing is planned yet. Run: gvm-prep encode --shards 0-99")
    found = Status()
    looked_up = dict(zip(plan, data.records(plan), strict=True))
    found.num_unplanned, found.contradiction = _against_manifest(data, plan, looked_up)
    records = []
    for shard in plan.values():
        record = looked_up[shard.shard]
        if record is None:
            found.missing.append(shard)
            continue
        records.append(record)
        found.complete.append(shard)
        found.num_bytes += record.tar_bytes
        found.stale += _stale(record, shard, records[0], data)
        if record.left_out:
            found.failures += read_journal(failures_path(data.shards, shard.shard))
    found.frames_per_s = frames_per_s(records, data)
    return found


def _against_manifest(
    data: DataFolder, plan: Plan, records: Mapping[int, ShardRecord | None]
) -> tuple[int, str]:
    """(segments that the manifest has gained, what it contradicts), read once."""
    if not data.manifest.is_file():  # shards may have come without it
        return 0, ""
    planned = {key for shard in plan.values() for key in shard.keys}
    num_unplanned = 0

    def counted() -> Iterator[Segment]:
        nonlocal num_unplanned
        for segment in read_manifest(data.manifest):
            num_unplanned += segment.key not in planned
            yield segment

    try:
        freeze(plan, counted(), lambda shard: finished(records[shard]))
    except ContradictionError as error:
        return num_unplanned, str(error)
    return num_unplanned, ""


def _stale(record: ShardRecord, shard: ShardPlan, first: ShardRecord, data: DataFolder) -> list[str]:
    """Where a complete shard is not as planned, or made by other encoders than the first one."""
    found = differences(record, shard, first.fingerprint)
    return [f"{tar_path(data.shards, shard.shard)}: {'; '.join(found)}"] if found else []


def _shortened(failure: Mapping[str, Any]) -> str:
    """Its message without the path it starts with, and in one line: so that equal reasons count together."""
    message = failure["message"]
    if failure["kind"] == "bug":  # a traceback, whose last line tells
        message = message.strip().splitlines()[-1]
    path, colon, reason = message.partition(": ")
    return " ".join((reason if colon and "/" in path else message).split())[:120]
