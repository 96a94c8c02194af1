"""The plan: which segments lie in which shard, frozen at the first encode. Standard library only.

A finished shard never changes. Rows that the manifest gains go into new shards, after the last.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.jsonl import read_rows, to_line, write_rows
from pipeline.manifest import Segment

PLAN_NAME = "plan.jsonl"
Identity = Mapping[str, Any]  # of a segment; see Segment.identity


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard's segments, in the order they are written.

    Kept as the lines that the plan hash is made of: a million take 170 MB so, and a gigabyte as dicts.
    """

    shard: int
    lines: bytes  # JSON, a segment a line, by source and start

    @classmethod
    def of(cls, shard: int, segments: Iterable[bytes]) -> Self:
        """By source and start, so that a shard reads each source from front to back."""
        lines = sorted(segments, key=_place)
        return cls(shard, b"".join(lines))

    @property
    def plan_hash(self) -> str:
        return hashlib.sha256(self.lines).hexdigest()

    @property
    def segments(self) -> Iterator[Identity]:
        return map(json.loads, self.lines.splitlines())

    @property
    def keys(self) -> list[str]:
        return [segment["key"] for segment in self.segments]

    def to_json(self) -> dict[str, Any]:
        return {"plan_hash": self.plan_hash, "segments": list(self.segments), "shard": self.shard}


def line_of(segment: Identity) -> bytes:
    return to_line(segment).encode()


def _place(line: bytes) -> tuple[str, int, str]:
    row = json.loads(line)
    return row["source_sha256"], row["start_s"], row["key"]


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
            shard = ShardPlan(row["shard"], b"".join(map(line_of, row["segments"])))
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


class ContradictionError(ValueError):
    """The manifest says otherwise of finished shards."""


def freeze(
    old: Plan,
    segments: Iterable[Segment],
    finished: Callable[[int], FinishedShard | None],
    forced: Collection[int] = (),
) -> Plan:
    """The plan that covers the manifest's segments, which are read once, as a stream.

    old: the frozen plan. finished: what a shard's commit record says, None where it has none; a shard without
    one follows the manifest where a planned segment changed or went, and gains none; so do `forced` shards.
    Raises ContradictionError where the manifest contradicts finished shards; it says which and in what.
    """
    rows, new = _split_up(segments, {key for shard in old.values() for key in shard.keys})
    plan: Plan = {}
    contradicted: dict[int, list[str]] = {}
    for shard in old.values():
        is_forced = shard.shard in forced
        record = None if is_forced else finished(shard.shard)
        if record is not None:
            if found := _contradictions(shard, rows, record.left_out):
                contradicted[shard.shard] = found
            plan[shard.shard] = shard
        elif (kept := [rows[key] for key in shard.keys if key in rows]) or is_forced:
            plan[shard.shard] = ShardPlan.of(shard.shard, kept)  # a forced shard that lost all is made empty
    if contradicted:
        raise ContradictionError(_refusal(contradicted, forced))
    return plan | (_append(plan, new) if plan else {shard: ShardPlan.of(shard, new[shard]) for shard in new})


def _split_up(
    segments: Iterable[Segment], planned: Collection[str]
) -> tuple[dict[str, bytes], dict[int, list[bytes]]]:
    """(lines of planned segments by key, lines of the others by the shard that the manifest gives them)."""
    rows: dict[str, bytes] = {}
    new: dict[int, list[bytes]] = {}
    for segment in segments:
        line = line_of(segment.identity)
        if segment.key in planned:
            rows[segment.key] = line
        else:
            new.setdefault(segment.shard, []).append(line)
    return rows, new


def _append(plan: Plan, new: Mapping[int, list[bytes]]) -> Plan:
    """New shards after the last, each as large as the largest there is; mixed by key, which is a hash."""
    size = max(1, *(shard.lines.count(b"\n") for shard in plan.values()))
    by_key = sorted(
        (line for lines in new.values() for line in lines), key=lambda line: json.loads(line)["key"]
    )
    groups = [by_key[i : i + size] for i in range(0, len(by_key), size)]
    return {shard: ShardPlan.of(shard, lines) for shard, lines in enumerate(groups, start=max(plan) + 1)}


def _contradictions(shard: ShardPlan, rows: Mapping[str, bytes], left_out: frozenset[str]) -> list[str]:
    """A segment that failed may go or change: the shard does not hold it."""
    differences: list[str] = []
    for segment in shard.segments:
        line = rows.get(segment["key"])
        if segment["key"] not in left_out:
            differences += _differences(segment, json.loads(line) if line else None)
    return differences


def _refusal(contradicted: Mapping[int, list[str]], forced: Collection[int]) -> str:
    differences = [each for found in contradicted.values() for each in found]
    shown = "; ".join(differences[:3]) + (
        f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
    )
    which = f"shard {min(contradicted)} is" if len(contradicted) == 1 else f"{len(contradicted)} shards are"
    return (
        f"{which} finished, and the manifest now says otherwise: {shown}. "
        "Crawl and filter with the options and sources of before (--append adds to them), or make them again "
        f"as the manifest says: gvm-prep encode --shards {_in_ranges({*contradicted, *forced})} --force"
    )


def _in_ranges(numbers: Iterable[int]) -> str:
    """As `--shards` takes them: 0-3,7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _differences(planned: Identity, row: Identity | None) -> list[str]:
    key = planned["key"]
    if row is None:
        return [f"{key} is gone from it"]
    return [
        f"{key}: {name} was {planned[name]!r}, is {row.get(name)!r}"
        for name in planned
        if row.get(name) != planned[name]
    ]
