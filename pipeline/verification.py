"""Whether the shards on disk are sound. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tqdm import tqdm

from pipeline.folder import DataFolder
from pipeline.parallel import ordered_map
from shards.reader import ShardSet, record_files
from shards.spec import ShardError, record_path
from shards.verify import verify_shard

NUM_THREADS = 4  # reading waits for the disk, hashing does not hold Python's lock


def verify(data: DataFolder, deep: bool) -> tuple[int, list[str]]:
    """(shards looked at, problems, a sentence each). A shard without its record is unfinished, not a problem.

    deep: read every byte and compare its checksums; else headers and sizes. Raises FileNotFoundError where
    there is no shard.
    """
    found = problems_by_shard(data, deep)
    if not found:
        raise FileNotFoundError(f"{data.shards}: no complete shard. Run: gvm-prep encode --shards 0-99")
    problems = [problem for sentences in found.values() for problem in sentences]
    return len(found), problems or list(_as_a_whole(data))


def problems_by_shard(data: DataFolder, deep: bool) -> dict[int, list[str]]:
    """What `verify_shard` says of every shard that has a record."""
    shards = [int(path.stem) for path in record_files(data.shards)]
    check = partial(verify_shard, data.shards, deep=deep)
    with tqdm(total=len(shards), desc="verify", unit=" shards", disable=None) as bar:
        found = {}
        for shard, problems in zip(shards, ordered_map(check, shards, NUM_THREADS), strict=True):
            found[shard] = problems
            bar.update()
    return found


def set_aside_broken(data: DataFolder, deep: bool) -> frozenset[int]:
    """The broken shards, for `encode` to mend. A record that cannot be read goes: it says nothing."""
    broken = frozenset(shard for shard, problems in problems_by_shard(data, deep).items() if problems)
    for shard in broken:
        try:
            data.record(shard)
        except ShardError:
            record_path(data.shards, shard).unlink()
    return broken


def _as_a_whole(data: DataFolder) -> Iterator[str]:
    """What is wrong with sound shards together: other encoders, a sample twice."""
    try:
        ShardSet.open(data.shards)
    except ShardError as error:
        yield str(error)
