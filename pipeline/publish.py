"""A shard that was made here goes to its home in an object store: the tar first, the commit record last.

Killed at any moment, the shard is absent there or complete, and what was made here waits for the next run.
"""

from __future__ import annotations

from pathlib import Path

from shards.record import ShardRecord
from shards.remote import RemotePath, StoreError
from shards.spec import ShardBusyError, failures_path, record_path, tar_path
from shards.writer import only_writer


def publish(record: ShardRecord, staging: Path, home: RemotePath) -> None:
    """Upload a complete shard, and remove it here. Raises StoreError where the store refuses or does not
    answer, ShardBusyError where another machine put the same shard there meanwhile."""
    shard = record.shard
    with only_writer(staging, shard):
        if not record_path(staging, shard).exists():
            raise ShardBusyError(f"{tar_path(home, shard)}: another process has just brought it there")
        version = _publish_tar(record, tar_path(staging, shard), tar_path(home, shard))
        _publish_failures(failures_path(staging, shard), failures_path(home, shard))
        record_path(home, shard).write_bytes(record.to_bytes())
        if tar_path(home, shard).version() != version:
            record_path(home, shard).unlink(missing_ok=True)
            raise ShardBusyError(
                f"{tar_path(home, shard)}: another machine writes this shard, too. Give each its own: "
                "--shards 1/2, --shards 2/2"
            )
        discard(staging, shard)


def _publish_tar(record: ShardRecord, here: Path, there: RemotePath) -> str:
    """The version that the store gave it."""
    there.with_suffix(".json").unlink(missing_ok=True)  # a former record must never stand beside the new tar
    there.upload(here)
    if there.stat().st_size != record.tar_bytes:
        raise StoreError(f"{there}: the upload arrived incomplete. What was made here stays; run again")
    return there.version()


def discard(staging: Path, shard: int) -> None:
    """Remove what lies here of a shard that is complete in its home."""
    for path in (tar_path(staging, shard), record_path(staging, shard), failures_path(staging, shard)):
        path.unlink(missing_ok=True)


def _publish_failures(here: Path, there: RemotePath) -> None:
    if here.exists():
        there.upload(here)
    else:
        there.unlink(missing_ok=True)
