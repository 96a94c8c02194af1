"""What encoding will take: bytes on disk, and time. No torch, until a product is timed."""

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
FULL_CLIP = {"width": 1024, "layers": 24, "patch_size": 14}  # ViT-L/14@336, the publication's


def num_bytes(shards: Iterable[ShardPlan], feature_dim: int, is_int8: bool = False) -> int:
    """Bytes that the shards take: their features; all else is less than a hundredth of it."""
    return planned_frames(shards) * NUM_PATCHES * feature_dim * (1 if is_int8 else 2)


def feature_dim(records: Iterable[ShardRecord], preset: str) -> int:
    """Width of the features: of those there are, else of the preset's CLIP."""
    for record in records:
        for sample in record.samples:
            return sample.fields[FEATURES].shape[-1]
    return _clip(preset)["width"]


def _clip(preset: str) -> dict[str, int]:
    """Sizes of the preset's CLIP, as open_clip names them."""
    folder = encoder_config(preset).clip_model.removeprefix("local-dir:")
    description = Path(folder) / "open_clip_config.json"
    if not description.is_file():
        return FULL_CLIP
    sizes: dict[str, int] = json.loads(description.read_text())["model_cfg"]["vision_cfg"]
    return sizes


def clip_flop(preset: str) -> float:
    """Floating point operations of CLIP for one frame: 382e9 of ViT-L/14@336."""
    clip = _clip(preset)
    width, tokens = clip["width"], NUM_PATCHES
    products = clip["layers"] * (12 * tokens * width**2 + 2 * tokens**2 * width)
    return 2.0 * (products + (tokens - 1) * 3 * clip["patch_size"] ** 2 * width)


def highest_frames_per_s(preset: str, device: str | None, precision: str | None) -> float:
    """What CLIP alone cannot be faster than here, by a matrix product that is timed now."""
    import torch

    from gvmgen.machine import matrix_rate

    first = device.split(",")[0] if device else "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(first)
    own = "bf16" if chosen.type == "cuda" else "fp32"
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision or own]
    return matrix_rate(chosen, dtype) / clip_flop(preset)


def frames_per_s(records: Sequence[ShardRecord], data: DataFolder) -> float | None:
    """Frames a second over the latest shards, from the times of their records; None with fewer than two."""
    times = {int(path.stem): path.stat().st_mtime for path in record_files(data.shards)}
    known = [record for record in records if record.shard in times]
    latest = sorted(known, key=lambda record: times[record.shard])[-SPEED_SHARDS:]
    seconds = times[latest[-1].shard] - times[latest[0].shard] if latest else 0.0
    if seconds <= 0:
        return None
    return sum(sample.num_frames for record in latest[1:] for sample in record.samples) / seconds
