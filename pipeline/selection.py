"""Which shards a run of `gvm-prep encode` has to make, and which are complete. No torch."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import Literal, Self

from gvmgen.encoders.presets import encoder_config
from pipeline.estimate import feature_dim, frames_per_s, highest_frames_per_s, num_bytes
from pipeline.folder import DataFolder, choose, plan_summary, planned_frames
from pipeline.plan import Plan, ShardPlan
from pipeline.tidy import CacheMode
from shards.reader import record_files
from shards.record import ShardRecord
from shards.spec import Fingerprint, ShardError, fingerprint_differences, tar_path

Retry = Literal["none", "transient", "all"]
EngineName = Literal["local", "ray"]
FeatureCodecName = Literal["fp16", "int8"]
Precision = Literal["fp32", "bf16"]
PRECISIONS: dict[str, Precision] = {"float32": "fp32", "bfloat16": "bf16"}  # by their name in fingerprints
RETRIED = {"none": (), "transient": ("transient",), "all": ("transient", "permanent", "bug")}  # kinds


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    preset: str
    shards: str = "all"
    device: str | None = None  # None: a GPU where there is one
    retry: Retry = "transient"  # failures of earlier runs to try again
    force: bool = False  # make complete shards again, as the manifest now says
    mend: frozenset[int] = frozenset()  # broken shards: their sound samples stay, the others are made again
    stop_after: int = 20  # segments in a row that fail at the same stage; 0: never stop
    # What a kill or a failure leaves behind is worth a shard's space; more than that only --cache keep takes.
    cache: CacheMode = "until-packed"
    feature_codec: FeatureCodecName | None = None  # None: as the shards that are there, else fp16
    precision: Precision | None = None  # of CLIP; None: as the shards that are there, else the device's own
    cache_gb: float | None = None  # room for the cache; None: as much as there is
    deadline_s: float = 600.0  # for ffmpeg to read a segment: a hanging file server must not stop the run
    engine: EngineName = "local"
    task_cpus: int | None = None  # of a Ray task; None: what the cluster's nodes can give
    task_gpus: float | None = None

    def __post_init__(self) -> None:
        encoder_config(self.preset)  # what nobody knows is refused before any work
        choose({}, self.shards)
        if self.cache_gb is not None and (self.cache == "off" or not self.cache_gb > 0):
            raise ValueError("--cache-gb is room above 0 for a cache; --cache off has none")
        if not self.deadline_s > 0:
            raise ValueError(f"--deadline-s is {self.deadline_s:g}; it must be above 0")
        if self.engine != "ray" and (self.task_cpus, self.task_gpus) != (None, None):
            raise ValueError("--task-cpus and --task-gpus are for --engine ray")

    def on(self, device: str) -> Self:
        """The same, on this device."""
        return replace(self, device=device)


def chosen_shards(plan: Plan, data: DataFolder, config: EncodeConfig) -> Plan:
    """The planned shards that the config names. Raises ValueError where that is nothing to work on."""
    if not plan:
        raise ValueError(f"{data.manifest}: every row is dropped, nothing is planned. See: gvm-prep filter")
    chosen = choose(plan, config.shards)
    if not chosen and "/" not in config.shards:  # a share of few shards may be empty
        raise ValueError(f"--shards {config.shards}: none is planned; planned are {min(plan)} … {max(plan)}")
    return chosen


def settled(data: DataFolder, config: EncodeConfig) -> EncodeConfig:
    """The config with its feature codec and precision: as asked for, else as the shards that are there."""
    path = next(iter(record_files(data.shards)), None)
    first = None if path is None else ShardRecord.load(path)
    is_int8 = data.feature_scales.exists() if first is None else first.feature_codec is not None
    dtype = None if first is None else first.fingerprint.get("video", {}).get("dtype")
    return replace(
        config,
        feature_codec=config.feature_codec or ("int8" if is_int8 else "fp16"),
        precision=config.precision or PRECISIONS.get(dtype or ""),
    )


def split_complete(
    plan: Plan, data: DataFolder, fingerprint: Fingerprint | None, config: EncodeConfig
) -> tuple[list[ShardPlan], list[ShardRecord]]:
    """(shards to encode, records of the complete ones).

    Raises ShardError where a complete shard is not what this plan and these encoders make. fingerprint: the
    encoders'; None where any will do.
    """
    todo, complete = [], []
    for shard, found in zip(plan.values(), data.records(plan), strict=True):
        is_to_be_made = config.force or shard.shard in config.mend
        record = None if is_to_be_made else found
        if record is not None:
            refuse_other(record, shard, data, record.fingerprint if fingerprint is None else fingerprint)
        if record is None or any(row["kind"] in RETRIED[config.retry] for row in record.left_out):
            todo.append(shard)
        else:
            complete.append(record)
    return todo, complete


def refuse_other(record: ShardRecord, shard: ShardPlan, data: DataFolder, fingerprint: Fingerprint) -> None:
    """Raise ShardError unless a complete shard is what this run would make."""
    tar = tar_path(data.shards, shard.shard)
    found = differences(record, shard, fingerprint)
    if tar.stat().st_size != record.tar_bytes:
        found.append(f"bytes of the tar: found {tar.stat().st_size}, wanted {record.tar_bytes}")
    if found:
        raise ShardError(
            f"{tar}: complete, but not what this run would make: {'; '.join(found)}. "
            "Use the preset, precision and feature codec of before, or make it again: "
            f"gvm-prep encode --shards {shard.shard} --force"
        )


def refuse_other_settings(plan: Plan, data: DataFolder, config: EncodeConfig) -> None:
    """Raise ShardError where complete shards were made with another precision or codec than is asked for."""
    if config.force or (config.precision is None and config.feature_codec is None):
        return
    record = next(filter(None, data.records(plan)), None)
    if record is None:
        return
    tar, dtype = tar_path(data.shards, record.shard), record.fingerprint.get("video", {}).get("dtype", "")
    codec = "fp16" if record.feature_codec is None else "int8"
    for flag, asked, found in (
        ("--precision", config.precision, PRECISIONS.get(dtype)),
        ("--feature-codec", config.feature_codec, codec),
    ):
        if asked is not None and found not in (None, asked):
            raise ShardError(
                f"{tar}: complete, and made with {flag} {found}, not {asked}. "
                "Leave the flag out, or make all of them again: --force"
            )


def differences(record: ShardRecord, shard: ShardPlan, fingerprint: Fingerprint) -> list[str]:
    """In what a complete shard is not what this plan and these encoders make."""
    found = {"plan_hash": record.plan_hash, "encoders": record.fingerprint}
    return fingerprint_differences(found, {"plan_hash": shard.plan_hash, "encoders": fingerprint})


def _least_time(num_frames: int, config: EncodeConfig) -> str:
    """What can be said of the time before there are shards to tell it."""
    try:
        highest = highest_frames_per_s(config.preset, config.device, config.precision)
    except (RuntimeError, AssertionError):  # torch's: a plan may be looked at where its device is not
        return f"not known until two shards are there: {config.device} is no device of this machine"
    return (
        f"{num_frames / highest / 3600:.2g} h at least: here CLIP cannot do more than "
        f"{highest:.1f} frames a second. Two shards will tell the real speed"
    )


def foresee(data: DataFolder, config: EncodeConfig) -> str:
    """What a run would do; writes nothing and loads no encoder. Of several devices, the time is one's."""
    with data.read_segments() as rows:
        plan = data.foresee_plan(rows.in_order(), config.shards if config.force else "")
    chosen = chosen_shards(plan, data, config)
    refuse_other_settings(chosen, data, config)
    todo, complete = split_complete(chosen, data, None, config)
    size = num_bytes(
        todo, feature_dim(complete, config.preset), settled(data, config).feature_codec == "int8"
    )
    speed = frames_per_s(complete, data)
    if speed:
        time = f"{planned_frames(todo) / speed / 3600:.1f} h at {speed:.1f} frames a second"
    else:
        time = _least_time(planned_frames(todo), config)
    return (
        f"chosen     {plan_summary(chosen.values())}\n"
        f"to encode  {plan_summary(todo)}\n"
        f"disk       {size / 1e9:.2f} GB; {shutil.disk_usage(data.root).free / 1e9:.2f} GB are free\n"
        f"time       {time}"
    )
