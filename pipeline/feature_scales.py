"""The scales of int8 features: measured once for a data set, before its first shard, and then fixed.

They lie in data/feature-scales.json and in every commit record. No torch, but to measure them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.failures import SegmentError, stage
from pipeline.folder import DataFolder
from pipeline.manifest import Segment, frames_of, hash_fraction, source_path
from pipeline.plan import held
from pipeline.selection import EncodeConfig
from shards.feature_codec import Int8Codec
from shards.reader import record_files
from shards.record import ShardRecord, canonical_json
from shards.writer import write_durably

if TYPE_CHECKING:
    from pipeline.encode import Encoders

NUM_SEGMENTS = 32  # that are measured, drawn by hash over the whole set
NUM_FRAMES = 4  # of each: 128 frames are 74,000 values a channel


def feature_codec(data: DataFolder, config: EncodeConfig) -> Int8Codec | None:
    """The data set's codec; None for fp16. Raises ValueError where the scales' file is damaged or absent."""
    if config.feature_codec != "int8":
        return None
    return Int8Codec(tuple(_read(data)["scales"]))


def calibrate(data: DataFolder, rows: Mapping[str, Segment], config: EncodeConfig) -> None:
    """Measure the scales of an int8 data set that has none yet, and write them down. One process does it."""
    if config.feature_codec != "int8" or data.feature_scales.exists():
        return
    with held(data.feature_scales):
        if not data.feature_scales.exists():
            write_durably(data.feature_scales, canonical_json(_measure(data, rows, config)) + b"\n")


def refuse_other_clip(data: DataFolder, config: EncodeConfig, video: Mapping[str, Any]) -> None:
    """Raise ValueError where the scales were measured with another CLIP than `video`, its fingerprint."""
    if config.feature_codec == "int8" and _read(data)["weights_sha256"] != video["weights_sha256"]:
        raise ValueError(
            f"{data.feature_scales}: measured with another CLIP. Use the preset of before, "
            "or remove this file and make all shards again with --force"
        )


def _read(data: DataFolder) -> dict[str, Any]:
    path = data.feature_scales
    try:
        values = json.loads(path.read_bytes())
        return {"scales": values["scales"], "weights_sha256": values["weights_sha256"]}
    except FileNotFoundError as error:
        raise ValueError(f"{path}: not there. Run: gvm-prep encode --feature-codec int8") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: damaged ({error}). Put back a copy, or remove it: shards that are there know its scales"
        ) from error


def _measure(data: DataFolder, rows: Mapping[str, Segment], config: EncodeConfig) -> dict[str, Any]:
    from pipeline.encode import Encoders

    encoders = Encoders.load(config.preset, config.device, config.precision)
    weights = encoders.video.fingerprint["weights_sha256"]
    codec = _recorded(data) or Int8Codec.calibrated(_largest(data, rows, encoders))
    return {"scales": codec.scales, "weights_sha256": weights}


def _recorded(data: DataFolder) -> Int8Codec | None:
    """The scales that shards were made with, for a data set whose file of scales got lost."""
    found = (ShardRecord.load(path).feature_codec for path in record_files(data.shards))
    return next((codec for codec in found if codec is not None), None)


def _largest(data: DataFolder, rows: Mapping[str, Segment], encoders: Encoders) -> np.ndarray:
    """The largest magnitude of each channel, float [D], over segments drawn by hash; unreadable ones count
    for nothing. Raises ValueError where none can be read."""
    drawn = sorted(rows, key=lambda key: hash_fraction(f"scales {key}"))
    largest: list[np.ndarray] = []
    problem = None
    for key in drawn:
        try:
            largest.append(_largest_of(data, rows[key], encoders))
        except SegmentError as error:
            problem = error
        if len(largest) == NUM_SEGMENTS:
            break
    if not largest:
        raise ValueError(f"{data.manifest}: no segment can be read to measure scales: {problem}")
    return np.stack(largest).max(0)


def _largest_of(data: DataFolder, segment: Segment, encoders: Encoders) -> np.ndarray:
    """The largest magnitude of each channel in the segment's first frames, [D]. Raises SegmentError."""
    import torch

    from pipeline.encode import check_source, clip_features, read_pictures

    path = source_path(data.manifest, segment)
    with stage("source"):
        check_source(segment, path)
    with stage("frames"):
        pictures = read_pictures(path, list(frames_of(segment))[:NUM_FRAMES], encoders)
    with stage("clip"):
        features = clip_features(torch.stack(list(pictures.values())), encoders)  # [F, P, D]
    return np.abs(features).max((0, 1))
