"""Training runs of a tiny network on small shards of random samples."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from gvmgen.config import TrainConfig
from shards.spec import CODE_RATE, NUM_PATCHES, Sample
from shards.writer import write_shard

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 32
TINY = {
    "feature_dim": WIDTH,
    "projection_dim": WIDTH,
    "transformation_num_heads": 2,
    "transformation_num_layers": 2,
    "dim": 32,
    "num_layers": 2,
    "num_heads": 2,
}


def make_sample(number: int, seconds: int, split: str) -> Sample:
    random = np.random.default_rng(number)
    features = random.standard_normal((seconds, NUM_PATCHES, WIDTH)).astype(np.float16)
    codes = random.integers(0, 2048, (4, seconds * CODE_RATE)).astype(np.int16)
    return Sample(f"segment_{number}", features, codes, {"split": split, "duration_s": float(seconds)})


def make_data(folder: Path) -> Path:
    """Eight segments of 2 and 3 s, one of them of the test split."""
    samples = [make_sample(i, 2 + i % 2, "test" if i == 7 else "train") for i in range(8)]
    write_shard(folder / "shards", 0, samples, plan_hash="plan", fingerprint={"codec": "none"})
    return folder


def tiny_config(data: Path, runs: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data": str(data),
        "runs": str(runs),
        "run": "tiny",
        "preset": "pocket",
        "model": TINY,
        "lr": 3e-3,
        "batch_size": 2,
        "steps": 6,
        "warmup_steps": 2,
        "save_every": 100,
        "eval_every": 0,
        "log_every": 1,
        "precision": "no",
        "tracker": "none",
    }
    return TrainConfig(**settings | changes)


def lines(runs: Path, split: str) -> list[dict[str, Any]]:
    """What a run logged of a split."""
    logged = map(json.loads, (runs / "tiny" / "metrics.jsonl").read_text().splitlines())
    return [line for line in logged if line["split"] == split]


def losses(runs: Path) -> list[float]:
    return [line["loss"] for line in lines(runs, "train")]


def checkpoint(runs: Path, step: int) -> Path:
    return runs / "tiny" / "checkpoints" / f"step_{step:08d}"


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors") | load_file(checkpoint / "optimizer.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def command(config: TrainConfig, folder: Path) -> list[str]:
    """`gvm-train` with these settings, as a user's command line."""
    file = folder / "settings.json"
    file.write_text(json.dumps(asdict(config)))
    return [str(ROOT / "gvm-train"), "--config", str(file)]


def two_processes(arguments: list[str]) -> list[str]:
    """A script in two processes of this machine; `accelerate launch --cpu` would start one."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *arguments,
    ]


def wait_for_lines(file: Path, number: int) -> None:
    """Return once a process has written this many lines; a machine with much else to do takes its time."""
    for _ in range(6000):
        if file.exists() and len(file.read_text().splitlines()) >= number:
            return
        time.sleep(0.1)
    raise AssertionError(f"{file} never had {number} lines")
