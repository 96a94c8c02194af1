"""The plan: which segments lie in which shard, frozen at the first encode. Standard library only.

A finished shard never changes. Rows that the manifest gains go into new shards, after the last.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.jsonl import read_rows, to_line, write_rows
from pipeline.manifest import Segment

PLAN_NAME = "plan.jsonl"
Identity = Mapping[str, Any]  # of a segment; see Segment.identity


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard's segments, in the order they are written."""

    shard: int
    segments: tuple[Identity, ...]  # by source and start

    @property
    def plan_hash(self) -> str:
        lines = "".join(to_line(segment) for segment in self.segments)
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def keys(self) -> list[str]:
        return [segment["key"] for segment in self.segments]

    def to_json(self) -> dict[str, Any]:
        return {"plan_hash": self.plan_hash, "segments": list(self.segments), "shard": self.shard}


Plan = dict[int, ShardPlan]  # by shard number


@dataclass(frozen=True)
class FinishedShard:
    """What a commit record says of its shard, as far as the plan is concerned."""

    plan_hash: str
    left_out: frozenset[str]  # keys that failed; the shard does not hold them


def read_plan(path: Path) -> Plan:
    """The frozen plan; empty where there is none yet. Raises ValueError where the file is damaged."""
    plan: Plan = {}
    for row in read_rows(path) if path.is_file() else ():
        try:
            shard = ShardPlan(row["shard"], tuple(row["segments"]))
            is_intact = shard.plan_hash == row["plan_hash"] and shard.shard not in plan
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: a row lacks {error}; the plan is damaged") from error
        if not is_intact:
            raise ValueError(
                f"{path}: shard {shard.shard} is not what its plan hash says; the plan is damaged"
            )
        plan[shard.shard] = shard
    return plan


def write_plan(path: Path, plan: Plan) -> None:
    write_rows(path, (plan[shard].to_json() for shard in sorted(plan)))


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the plan against other processes while it is read, compared and written; waits for its turn."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def freeze(
    old: Plan,
    segments: Sequence[Segment],
    finished: Callable[[int], FinishedShard | None],
    forced: Collection[int] = (),
) -> Plan:
    """The plan that covers the manifest's segments.

    old: the frozen plan. finished: what a shard's commit record says, None where it has none; a shard without
    one follows the manifest where a planned segment changed or went, and gains none; so do `forced` shards.
    Raises ValueError where the manifest contradicts a finished shard; the message says in what.
    """
    rows = {segment.key: segment.identity for segment in segments}
    plan: Plan = {}
    for shard in old.values():
        is_forced = shard.shard in forced
        record = None if is_forced else finished(shard.shard)
        if record is not None:
            _refuse_contradiction(shard, rows, record.left_out)
            plan[shard.shard] = shard
        elif (kept := _ordered(rows[key] for key in shard.keys if key in rows)) or is_forced:
            plan[shard.shard] = ShardPlan(shard.shard, kept)  # a forced shard that lost all is made empty
    planned = {key for shard in plan.values() for key in shard.keys}
    new = [segment for segment in segments if segment.key not in planned]
    return plan | (_append(plan, new) if plan else _by_hash(new))


def _by_hash(segments: Iterable[Segment]) -> Plan:
    """The first plan: every segment in the shard that the manifest gives it."""
    members: dict[int, list[Identity]] = {}
    for segment in segments:
        members.setdefault(segment.shard, []).append(segment.identity)
    return {shard: ShardPlan(shard, _ordered(rows)) for shard, rows in members.items()}


def _append(plan: Plan, segments: Sequence[Segment]) -> Plan:
    """New shards after the last, each as large as the largest there is; mixed by key, which is a hash."""
    size = max(1, *(len(shard.segments) for shard in plan.values()))
    by_key = sorted((segment.identity for segment in segments), key=lambda row: row["key"])
    groups = [by_key[i : i + size] for i in range(0, len(by_key), size)]
    return {shard: ShardPlan(shard, _ordered(rows)) for shard, rows in enumerate(groups, start=max(plan) + 1)}


def _ordered(rows: Iterable[Identity]) -> tuple[Identity, ...]:
    """By source and start, so that a shard reads each source from front to back."""
    return tuple(sorted(rows, key=lambda row: (row["source_sha256"], row["start_s"], row["key"])))


def _refuse_contradiction(shard: ShardPlan, rows: Mapping[str, Identity], left_out: frozenset[str]) -> None:
    """A segment that failed may go or change: the shard does not hold it."""
    differences = []
    for segment in shard.segments:
        row = rows.get(segment["key"])
        if row == segment or segment["key"] in left_out:
            continue
        differences += _differences(segment, row)
    if differences:
        shown = "; ".join(differences[:3]) + (
            f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        )
        raise ValueError(
            f"shard {shard.shard} is finished, and the manifest now says otherwise: {shown}. "
            "Crawl and filter with the options and sources of before (--append adds to them), "
            f"or make it again as the manifest says: gvm-prep encode --shards {shard.shard} --force"
        )


def _differences(planned: Identity, row: Identity | None) -> list[str]:
    key = planned["key"]
    if row is None:
        return [f"{key} is gone from it"]
    return [
        f"{key}: {name} was {planned[name]!r}, is {row.get(name)!r}"
        for name in planned
        if row.get(name) != planned[name]
    ]
