"""Whether the shards on disk are sound. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tqdm import tqdm

from pipeline.folder import DataFolder
from pipeline.parallel import ordered_map
from shards.reader import ShardSet, record_files
from shards.spec import ShardError
from shards.verify import verify_shard

NUM_THREADS = 4  # reading waits for the disk, hashing does not hold Python's lock


def verify(data: DataFolder, deep: bool) -> tuple[int, list[str]]:
    """(shards looked at, problems, a sentence each). A shard without its record is unfinished, not a problem.

    deep: read every byte and compare its checksums; else headers and sizes. Raises FileNotFoundError where
    there is no shard.
    """
    shards = [int(path.stem) for path in record_files(data.shards)]
    if not shards:
        raise FileNotFoundError(f"{data.shards}: no complete shard. Run: gvm-prep encode --shards 0-99")
    problems = []
    check = partial(verify_shard, data.shards, deep=deep)
    with tqdm(total=len(shards), desc="verify", unit=" shards", disable=None) as bar:
        for found in ordered_map(check, shards, NUM_THREADS):
            problems += found
            bar.update()
    if not problems:
        problems += _as_a_whole(data)
    return len(shards), problems


def _as_a_whole(data: DataFolder) -> Iterator[str]:
    """What is wrong with sound shards together: other encoders, a sample twice."""
    try:
        ShardSet.open(data.shards)
    except ShardError as error:
        yield str(error)
