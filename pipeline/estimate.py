"""What encoding will take: bytes on disk, and time. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from gvmgen.encoders.presets import encoder_config
from pipeline.folder import DataFolder, planned_frames
from pipeline.plan import ShardPlan
from shards.reader import record_files
from shards.record import ShardRecord
from shards.spec import FEATURES, NUM_PATCHES

SPEED_SHARDS = 20  # the latest ones tell the speed
FULL_FEATURE_DIM = 1024  # CLIP ViT-L/14@336, the publication's


def num_bytes(shards: Iterable[ShardPlan], feature_dim: int, is_int8: bool = False) -> int:
    """Bytes that the shards take: their features; all else is less than a hundredth of it."""
    return planned_frames(shards) * NUM_PATCHES * feature_dim * (1 if is_int8 else 2)


def feature_dim(records: Iterable[ShardRecord], preset: str) -> int:
    """Width of the features: of those there are, else of the preset's CLIP."""
    for record in records:
        for sample in record.samples:
            return sample.fields[FEATURES].shape[-1]
    folder = encoder_config(preset).clip_model.removeprefix("local-dir:")
    description = Path(folder) / "open_clip_config.json"
    if not description.is_file():
        return FULL_FEATURE_DIM
    return int(json.loads(description.read_text())["model_cfg"]["vision_cfg"]["width"])


def frames_per_s(records: Sequence[ShardRecord], data: DataFolder) -> float | None:
    """Frames a second over the latest shards, from the times of their records; None with fewer than two."""
    times = {int(path.stem): path.stat().st_mtime for path in record_files(data.shards)}
    known = [record for record in records if record.shard in times]
    latest = sorted(known, key=lambda record: times[record.shard])[-SPEED_SHARDS:]
    seconds = times[latest[-1].shard] - times[latest[0].shard] if latest else 0.0
    if seconds <= 0:
        return None
    return sum(sample.num_frames for record in latest[1:] for sample in record.samples) / seconds
