"""`python full_disk.py DATA DISK CACHE`: encode on a small disk that fills up half-way.

Started in a mount namespace of its own by test_full_disk.py. DISK is where the disk is mounted; the finished
shards are copied back into DATA.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch

from pipeline.folder import DataFolder
from pipeline.run import encode
from pipeline.selection import EncodeConfig
from shards.reader import record_files
from shards.verify import verify_shard

SIZE_MB = 160
WRITTEN_BYTES = 1 << 20  # of new data after which the rest of the disk is taken


def main(source: Path, disk: Path, cache: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "none", str(disk)], check=True)
    data = DataFolder(shutil.copytree(source, disk / "data"))
    filler = disk / "of-somebody-else"
    filling = threading.Thread(target=fill_soon, args=(disk, filler), daemon=True)
    filling.start()
    torch.set_num_threads(1)  # tests share the machine's cores
    config = EncodeConfig(preset="pocket", device="cpu", cache=cache)  # type: ignore[arg-type]
    try:
        encode(data, config)
    except OSError as error:
        print(error)
    else:
        sys.exit("the disk was not filled in time")
    leftovers = [path.name for path in data.shards.glob(".*.tmp")]
    problems = [
        p for path in record_files(data.shards) for p in verify_shard(data.shards, int(path.stem), True)
    ]
    if leftovers or problems:
        sys.exit(f"left behind: {leftovers}, broken: {problems}")
    filling.join()  # it may be writing still: a file removed while it is open keeps its room
    filler.unlink()
    encode(data, config)
    shutil.copytree(data.shards, source / "shards")


def fill_soon(disk: Path, filler: Path) -> None:
    """Take all that is left of the disk once the run has written some."""
    before = shutil.disk_usage(disk).used
    while shutil.disk_usage(disk).used < before + WRITTEN_BYTES:
        time.sleep(0.001)
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        with suppress(OSError):  # at once, since the run goes on meanwhile and would be done
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free)
            file.seek(0, os.SEEK_END)
        while True:  # until there is no byte left, whatever the run takes meanwhile
            file.write(bytes(1 << 20))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
