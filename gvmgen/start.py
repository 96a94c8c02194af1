"""What a run starts from: data that fits, a device, an untrained or a given network."""

from __future__ import annotations

import json
import os
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, LoggerType

from gvmgen.checkpoint import ModelInfo, load_model
from gvmgen.config import ModelConfig, TrainConfig
from gvmgen.imports import import_musicgen, is_official
from gvmgen.machine import keep_freed_memory
from gvmgen.model import GVMGen
from gvmgen.optimiser import learning_rate
from gvmgen.runs import MODEL_CONFIG, find_model
from gvmgen.signals import is_launched
from shards.reader import ShardSet
from shards.remote import shards_of
from shards.spec import Fingerprint, fingerprint_differences

WEIGHTLESS = ("dropout", "transformation_dropout", "anchor_s")  # settings that no weight depends on
OPTIONAL_PARTS = ("frame_changes", "frame_codes")  # that start silent
MUSICGEN_LICENCE = "CC-BY-NC-4.0, as MusicGen's weights that it was trained from"


def check_data(train_set: ShardSet, config: TrainConfig) -> None:
    """Raise ValueError unless the preset's network can read these shards."""
    where = shards_of(config.data)
    if not len(train_set):
        raise ValueError(f"{where}: no segment of the train split. Make more: gvm-prep encode --shards 0-99")
    width = train_set.samples[0].record.fields["features.npy"].shape[-1]
    wanted = config.model_config.feature_dim
    if width != wanted:
        raise ValueError(
            f"{where}: features are {width} wide, preset {config.preset} reads {wanted}. They were made with "
            f"another --preset: train with that one, or encode again with --preset {config.preset}"
        )


def identity(train_set: ShardSet, config: TrainConfig) -> dict[str, Any]:
    """What makes a run the run it is; a resumed one must have the same."""
    return {
        "train": config.recipe,
        "model": config.model_config.to_json(),
        "plan_hash": train_set.plan_hash,
        "encoders": dict(train_set.fingerprint),
    }


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Device, processes and precision; what we leave open, `accelerate launch` or its config decides."""
    precision: str | None = config.precision
    if precision == "auto":
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = "bf16" if has_bf16 else None
    accelerator = Accelerator(
        mixed_precision=precision, log_with=chosen_tracker(config.tracker), project_dir=config.run_folder
    )
    check_launch(accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
        if accelerator.num_processes == 1 and is_launched():
            torch.set_num_threads(num_cores())  # `accelerate launch` set it to one
    return accelerator


def check_launch(accelerator: Accelerator) -> None:
    """Raise ValueError where processes would share the work in a way that our checkpoints cannot hold."""
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(f"gvm-train does not run under {kind.value}. Choose DDP or FSDP: accelerate config")
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError(
            "gvm-train runs under FSDP of version 2 only. Set fsdp_version: 2: accelerate config"
        )


def chosen_tracker(name: str) -> str | None:
    """A tracker by Accelerate's name. Raises ValueError where it is unknown or not installed."""
    if name == "none":
        return None
    if name not in LoggerType.list():
        raise ValueError(f"--tracker {name}: unknown; known: none, {', '.join(LoggerType.list())}")
    if name != "all" and LoggerType(name) not in get_available_trackers():
        raise ValueError(f"--tracker {name}: its package is missing. Install it: pip install {name}")
    return name


def num_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def initial_model(config: TrainConfig, encoders: Fingerprint) -> tuple[GVMGen, ModelInfo]:
    """The network before its first step, float32: `init`'s weights, else random ones fixed by the seed.

    encoders: what made the data; weights that were trained on other encoders' features are refused.
    """
    torch.manual_seed(config.seed)
    if config.init is None:
        return GVMGen(config.model_config), ModelInfo(preset=config.preset)
    if not is_gvmgen(Path(config.init)):
        model, _ = import_musicgen(config.init, config.model_config)
        return model, ModelInfo(preset=config.preset, licence=MUSICGEN_LICENCE)
    model, info = load_model(find_model(config.init, Path(config.runs), None), dtype=torch.float32)
    model = grown(model, config.model_config, f"--init {config.init}")
    if info.encoder_fingerprint is not None:
        _refuse(f"--init {config.init} reads other encoders' features", info.encoder_fingerprint, encoders)
    return model, info


def grown(model: GVMGen, wanted: ModelConfig, name: str) -> GVMGen:
    """The network with the parts it lacks, which are silent until they have learned, and with
    other dropout and anchor.

    Raises ValueError where it is another network than wanted in anything else.
    """
    may_change = {setting: getattr(wanted, setting) for setting in WEIGHTLESS}
    may_change |= {part: True for part in OPTIONAL_PARTS if getattr(wanted, part)}
    config = replace(model.config, **may_change)
    _refuse(f"{name} is another network", config.to_json(), wanted.to_json())
    if config == model.config:
        return model
    larger = GVMGen(config)
    larger.load_state_dict(larger.state_dict() | model.state_dict())
    return larger


def _refuse(what: str, found: Fingerprint, wanted: Fingerprint) -> None:
    differences = fingerprint_differences(found, wanted)
    if differences:
        raise ValueError(f"{what} than asked for: {'; '.join(differences)}")


def is_gvmgen(path: Path) -> bool:
    """Whether weights to start from are a GVMGen: ours, a run's, its authors'. Else they are MusicGen's."""
    if (path / "checkpoints").is_dir() or is_official(path):
        return True
    config = path / MODEL_CONFIG
    return config.is_file() and "format_version" in json.loads(config.read_text())


def summary(
    config: TrainConfig,
    accelerator: Accelerator,
    network: GVMGen,
    num_segments: tuple[int, int],
    progress: tuple[int, int],
) -> str:
    """What is about to be trained, on what. num_segments: to train, to test on; progress: steps, of all."""
    (num_train, num_test), (step, num_steps) = num_segments, progress
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    size, learns = sum(n for n, _ in sizes), sum(n for n, does in sizes if does)
    lines = [
        f"{config.run_folder}: {config.preset}, {size / 1e6:.1f} M parameters"
        + ("" if learns == size else f", of which {learns / 1e6:.1f} M learn")
        + f"; {num_train} segments to train on, {num_test} to test on",
        f"{num_steps} steps of {config.batch_size} segments on {accelerator.num_processes} x "
        f"{accelerator.device.type}, {accelerator.mixed_precision} mixed precision",
    ]
    if step:
        lines.append(f"Resumes at step {step}")
    if config.eval_every and num_test < accelerator.num_processes:
        lines.append("Note: not one segment of the test split a process, so there will be no validation")
    if num_steps <= config.warmup_steps:
        peak = learning_rate(num_steps - 1, num_steps, config)
        lines.append(
            f"Note: warm-up takes {config.warmup_steps} steps, the run only {num_steps}: "
            f"the learning rate gets no higher than {peak:.1e}. "
            f"For little data: --lr 1e-3 --warmup-steps {num_steps // 10}"
        )
    return "\n".join(lines)


def peak_memory(device: torch.device) -> int:
    """The most bytes this process held: of the GPU it computes on, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
