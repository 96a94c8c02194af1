"""How fast batches come out of shards: the loader, raw reads, a default WebDataset pipeline, the disk.

    python tools/bench_loader.py [--json FILE]        about a minute

Makes a data set of full-size samples (35 MB) where --data has none. Rates are MB/s of features handed out to
a caller that never waits, start-up left out. Every round runs all contestants one after another, so that a
busy machine slows them alike; ratios are medians over the rounds, against the rival's best number of threads
or workers in that round. `checked` is the first epoch, in which every checksum is compared.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import webdataset

from gvmgen.data import Batch, SegmentLoader
from shards.reader import SampleRef, ShardSet, record_files
from shards.spec import CODEBOOK_SIZE, FEATURES, NUM_CODEBOOKS, NUM_PATCHES, Sample
from shards.writer import write_shard

DURATION_S, FEATURE_DIM, BATCH = 30, 1024, 6
SAMPLES_A_SHARD = 6
Rates = dict[str, float]  # MB/s by contestant


def main(
    data: Annotated[Path | None, typer.Option(help="Shards to read; made here where there are none.")] = None,
    samples: Annotated[int, typer.Option(help="Samples to make, 35 MB each.")] = 48,
    rounds: int = 3,
    threads: Annotated[int, typer.Option(help="Reading threads of the loader.")] = 4,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write flat keys here.")] = None,
) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        directory = data or Path(scratch)
        if not record_files(directory):
            make_data(directory, samples)
        figures = measure(ShardSet.open(directory), directory, rounds, threads)
    for name, value in figures.items():
        typer.echo(f"{name:28} {value:10.2f}")
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


def make_data(directory: Path, num_samples: int) -> None:
    for shard, first in enumerate(range(0, num_samples, SAMPLES_A_SHARD)):
        keys = [f"s{index}" for index in range(first, min(first + SAMPLES_A_SHARD, num_samples))]
        write_shard(directory, shard, map(full_size_sample, keys), plan_hash="bench", fingerprint={})


def full_size_sample(key: str) -> Sample:
    random = np.random.default_rng(list(key.encode()))
    bits = random.integers(0x3C00, size=(DURATION_S, NUM_PATCHES, FEATURE_DIM), dtype=np.uint16)
    codes = random.integers(CODEBOOK_SIZE, size=(NUM_CODEBOOKS, 50 * DURATION_S), dtype=np.int16)
    return Sample(key, bits.view(np.float16), codes, {"duration_s": float(DURATION_S)})


def measure(shards: ShardSet, directory: Path, rounds: int, threads: int) -> Rates:
    loader = SegmentLoader(shards, batch_size=BATCH, num_threads=threads)
    checked = rate(partial(loader_epoch, loader))
    raw = {f"pread.{count}_threads": RawReads(shards, count) for count in (1, 2, threads)}
    contestants: dict[str, Callable[[], float]] = {
        "loader": partial(steady_rate, loader),
        **{name: partial(rate, reads.run) for name, reads in raw.items()},
        **{f"webdataset.{count}_workers": partial(webdataset_rate, directory, count) for count in (0, 1, 2)},
    }
    results = [{name: measured() for name, measured in contestants.items()} for _ in range(rounds)]
    runs = {"loader": partial(loader_epoch, loader)} | {name: reads.run for name, reads in raw.items()}
    cold = [{name: cold_rate(shards, run) for name, run in runs.items()} for _ in range(2)]
    return summary(results, cold) | {"loader.checked_mb_s": checked}


def summary(results: list[Rates], cold: list[Rates]) -> Rates:
    figures = {f"{name}.mb_s": statistics.median(r[name] for r in results) for name in results[0]}
    figures |= {f"{name}.cold_mb_s": max(r[name] for r in cold) for name in cold[0]}
    for rival in ("pread", "webdataset"):
        figures[f"loader.vs_{rival}"] = statistics.median(r["loader"] / best(r, rival) for r in results)
    figures["loader.vs_disk"] = max(r["loader"] for r in cold) / max(best(r, "pread") for r in cold)
    return figures


def best(rates: Rates, rival: str) -> float:
    return max(rate for name, rate in rates.items() if name.startswith(rival))


def rate(run: Callable[[], int]) -> float:
    start = time.perf_counter()
    return run() / (time.perf_counter() - start) / 1e6


def cold_rate(shards: ShardSet, run: Callable[[], int]) -> float:
    for tar, _ in shards.records:
        with tar.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return rate(run)


def loader_epoch(loader: SegmentLoader) -> int:
    """Bytes of all samples, once: nothing is read ahead that is not handed out."""
    return handed_out(loader.one_pass(), len(loader.shards))


def steady_rate(loader: SegmentLoader) -> float:
    """The pace of batches for a caller that never waits: what was read ahead before must not count."""
    with closing(iter(loader)) as batches:
        handed_out(batches, loader.prefetch + 2)
        return rate(partial(handed_out, batches, len(loader.shards) // BATCH))


def handed_out(batches: Iterator[Batch], num_batches: int) -> int:
    return sum(batch["features"].nbytes for batch in islice(batches, num_batches))


class RawReads:
    """`preadv` of the same bytes into one reused buffer a thread: what the machine gives."""

    def __init__(self, shards: ShardSet, num_threads: int) -> None:
        self.samples = shards.samples
        self.buffers = [
            np.empty(self.samples[0].record.fields[FEATURES].size, np.uint8) for _ in range(num_threads)
        ]

    def run(self) -> int:
        with ThreadPoolExecutor(len(self.buffers)) as pool:
            return sum(pool.map(self.read_share, range(len(self.buffers))))

    def read_share(self, thread: int) -> int:
        return sum(
            read_features(ref, self.buffers[thread]) for ref in self.samples[thread :: len(self.buffers)]
        )


def read_features(ref: SampleRef, buffer: np.ndarray) -> int:
    field = ref.record.fields[FEATURES]
    descriptor = os.open(ref.tar, os.O_RDONLY)
    done = os.preadv(descriptor, [buffer[: field.row_bytes * field.shape[0]].data], field.array_offset)
    os.close(descriptor)
    return done


def webdataset_rate(directory: Path, num_workers: int) -> float:
    """The pipeline of WebDataset's own README, decoded to tensors, once its workers have begun."""
    urls = [str(path.with_suffix(".tar")) for path in record_files(directory)]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("torch").to_tuple(FEATURES, "codes.npy")
    batches = iter(webdataset.WebLoader(dataset, batch_size=BATCH, num_workers=num_workers))
    next(batches)
    return rate(lambda: sum(features.nbytes for features, _ in batches))


if __name__ == "__main__":
    typer.run(main)
