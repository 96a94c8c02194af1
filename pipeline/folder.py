"""Where the pieces of a data set lie, and what the plan and the records on disk say together."""

from __future__ import annotations

import re
from array import array
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.manifest import MANIFEST_NAME, Segment
from pipeline.parallel import ordered_map
from pipeline.plan import PLAN_NAME, FinishedShard, Plan, ShardPlan, freeze, held, read_plan, write_plan
from pipeline.rows import ManifestRows
from shards.reader import record_files
from shards.record import ShardRecord
from shards.remote import POINTER_NAME, located, shards_of
from shards.spec import num_frames, record_path, tar_path
from shards.writer import write_durably

NUM_LOADERS = 16  # records under way at a time


@dataclass(frozen=True)
class DataFolder:
    """`data/`: the manifest, the plan, the shards, the cache."""

    root: Path
    home: str | None = None  # URL of a data set in an object store; None: as `remote.url` says, else here

    def __post_init__(self) -> None:
        if self.home is not None and "://" not in self.home:
            raise ValueError(
                f"{self.home}: no URL. Shards go to s3://…, gs://…, hf://…, or into --data FOLDER"
            )

    @property
    def manifest(self) -> Path:
        return self.root / MANIFEST_NAME

    @property
    def plan(self) -> Path:
        return self.root / PLAN_NAME

    @property
    def shards(self) -> Path:
        """Their home, which may be in an object store."""
        return shards_of(self.home or self.root)

    @property
    def staging(self) -> Path:
        """Where shards are written; a remote home gets them from here."""
        return self.root / "shards"

    def settle(self, home: str) -> None:
        """Note where the shards live from now on. Raises ValueError where they live elsewhere."""
        pointer = self.root / POINTER_NAME
        former = pointer.read_text().strip() if pointer.is_file() else home
        if former.rstrip("/") != home.rstrip("/"):
            raise ValueError(
                f"{pointer}: the shards live in {former}, not in {home}. To move them: copy them there, "
                f"then remove this file and run with --out {home}"
            )
        located(home)  # what nothing can open is refused first
        write_durably(pointer, f"{home}\n".encode())

    @property
    def feature_scales(self) -> Path:
        return self.root / "feature-scales.json"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def is_complete(self, shard: int) -> bool:
        return record_path(self.shards, shard).exists() and tar_path(self.shards, shard).exists()

    def recorded(self) -> set[int]:
        """The shards that have a commit record."""
        return {int(path.stem) for path in record_files(self.shards)}

    def record(self, shard: int) -> ShardRecord | None:
        """The shard's commit record, None where it is not complete. Raises ShardError for a damaged one."""
        try:
            return ShardRecord.load(record_path(self.shards, shard)) if self.is_complete(shard) else None
        except FileNotFoundError:  # another process has just begun to replace the shard
            return None

    def records(self, shards: Iterable[int]) -> Iterator[ShardRecord | None]:
        """`record` of each, in order. An object store answers many questions as fast as one."""
        yield from ordered_map(self.record, shards, NUM_LOADERS)

    def read_segments(self) -> ManifestRows:
        """The manifest by key."""
        return ManifestRows(self.manifest)

    def freeze_plan(self, segments: Iterable[Segment], forced: str = "") -> Plan:
        """The plan that covers these segments, written down.

        forced: shards that may change although they are finished, as in `choose`. Raises ValueError where
        the manifest contradicts any other finished shard.
        """
        with held(self.plan):
            plan = self.foresee_plan(segments, forced)
            if plan != read_plan(self.plan):
                write_plan(self.plan, plan)
        return plan

    def foresee_plan(self, segments: Iterable[Segment], forced: str = "") -> Plan:
        """What `freeze_plan` would write down."""
        old = read_plan(self.plan)
        records = dict(zip(old, map(finished, self.records(old)), strict=True))
        return freeze(old, segments, records.get, choose(old, forced).keys())


def finished(record: ShardRecord | None) -> FinishedShard | None:
    """What `freeze` asks of a shard's commit record."""
    if record is None:
        return None
    return FinishedShard(record.plan_hash, frozenset(row["key"] for row in record.left_out))


def choose(plan: Plan, numbers: str) -> Plan:
    """The planned shards among `numbers`: `all`, a share of them (`2/4`), or as `ranges` reads them."""
    if numbers == "all":
        return plan
    if share := re.fullmatch(r"(\d+)/(\d+)", numbers):
        return _share(plan, int(share[1]), int(share[2]))
    asked = ranges(numbers)
    return {shard: plan[shard] for shard in sorted(plan) if any(shard in numbers for numbers in asked)}


def _share(plan: Plan, number: int, count: int) -> Plan:
    """The `number`-th of `count` equal stretches of the plan, from 1 on: together they are the plan."""
    if not 1 <= number <= count:
        raise ValueError(f"--shards {number}/{count}: shares are numbered 1/{count} … {count}/{count}")
    shards = sorted(plan)
    begin, end = ((number - 1) * len(shards) // count, number * len(shards) // count)
    return {shard: plan[shard] for shard in shards[begin:end]}


def ranges(numbers: str) -> list[range]:
    """`0-99` or `3,7,10-12` as ranges; empty, none. Raises ValueError for another form."""
    found = []
    for part in numbers.split(",") if numbers else ():
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise ValueError(
                f"--shards {numbers}: {part!r} is no shard and no range; write 0-99, 3,7,10-12 or 1/4"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"--shards {numbers}: {part.strip()} runs backwards")
        found.append(range(first, last + 1))
    return found


def planned_frames(shards: Iterable[ShardPlan]) -> int:
    return sum(num_frames(segment["duration_s"]) for shard in shards for segment in shard.segments)


def plan_summary(shards: Collection[ShardPlan]) -> str:
    durations_s = array("d", (segment["duration_s"] for shard in shards for segment in shard.segments))
    frames = sum(map(num_frames, durations_s))
    return (
        f"{len(shards)} shards, {len(durations_s)} segments, {sum(durations_s) / 3600:.2f} h, {frames} frames"
    )
