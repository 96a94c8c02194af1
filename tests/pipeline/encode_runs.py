"""Runs of `gvm-prep encode` over two short videos whose segments overlap."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from multiprocessing.context import ForkServerProcess

import pytest
import torch

from pipeline.cutting import CrawlConfig
from pipeline.folder import DataFolder
from pipeline.run import Report, encode
from pipeline.selection import EncodeConfig

CONFIG = EncodeConfig(preset="pocket", device="cpu")
CRAWL = CrawlConfig(segment_s=2, stride_s=1, min_s=1.0, num_shards=3)
NUM_SOURCE_FRAMES = 3 + 4
NUM_SEGMENTS = 2 + 3  # of 2 s, each a second later than the one before

Bytes = dict[str, bytes]


def run(data: DataFolder, **changes: object) -> Report:
    torch.set_num_threads(1)  # tests share the machine's cores
    return encode(data, replace(CONFIG, **changes))  # type: ignore[arg-type]


def written(data: DataFolder) -> Bytes:
    """Every file that a shard consists of; locks are of no account."""
    return {path.name: path.read_bytes() for path in data.shards.iterdir() if path.suffix != ".lock"}


def start(data: DataFolder) -> ForkServerProcess:
    """A real process, forked from a server that has imported what takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.run", "webdataset", "zarr"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        process = context.Process(target=encode, args=(data, CONFIG))
        process.start()
    return process
