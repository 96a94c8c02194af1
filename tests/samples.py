"""Small samples and data directories for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shards.spec import CODEBOOK_SIZE, NUM_CODEBOOKS, NUM_PATCHES, Sample, num_code_frames, num_frames
from shards.writer import write_shard

FINGERPRINT = {"video": {"model": "ViT-tiny", "layer": 5}, "audio": {"model": "codec-tiny"}}


def make_sample(key: str, duration_s: float = 1.0, *, split: str = "train", feature_dim: int = 1) -> Sample:
    """A sample whose arrays are a pure function of its key."""
    random = np.random.default_rng(list(key.encode()))
    return Sample(
        key=key,
        features=random.standard_normal(
            (num_frames(duration_s), NUM_PATCHES, feature_dim), np.float32
        ).astype(np.float16),
        codes=random.integers(
            CODEBOOK_SIZE, size=(NUM_CODEBOOKS, num_code_frames(duration_s)), dtype=np.int16
        ),
        meta={"duration_s": duration_s, "split": split, "source": "videos/ö.mp4"},
    )


def make_shards(directory: Path, shards: Sequence[Sequence[Sample]]) -> Path:
    """One shard a group of samples, from shard 0 on."""
    for number, samples in enumerate(shards):
        write_shard(directory, number, samples, plan_hash="plan", fingerprint=FINGERPRINT)
    return directory


def flipped(data: bytes, place: int) -> bytes:
    """The bytes with one bit wrong."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
