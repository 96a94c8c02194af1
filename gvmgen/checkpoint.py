"""Models on disk: a folder of safetensors and JSON, or an official checkpoint read as one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gvmgen.config import MODEL_PRESETS, ModelConfig
from gvmgen.decoding import SamplingConfig
from gvmgen.formats import audiocraft_file, is_audiocraft
from gvmgen.imports import import_official
from gvmgen.model import GVMGen
from gvmgen.weights import assign, empty_model

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
AUDIOCRAFT_CODEC = "compression_state_dict.bin"


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a model folder says of its weights beside their sizes."""

    preset: str  # whose encoders the model reads
    encoder_fingerprint: dict[str, Any] | None = None  # None: not known, as in weights of others
    step: int = 0
    trained: bool = False
    licence: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)  # what these weights do best with: SamplingConfig
    codec: str | None = None  # EnCodec weights of the model's own, in its folder; None: the preset's


def save_model(folder: Path, model: GVMGen, info: ModelInfo) -> None:
    """Write a model folder; each file is complete when it has its name, `config.json` last."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_weights(folder, tensors, model.config, info)


def save_weights(folder: Path, tensors: dict[str, Tensor], config: ModelConfig, info: ModelInfo) -> None:
    """`save_model` for a network's weights by name, contiguous."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"format_version": FORMAT_VERSION, "model": config.to_json(), **asdict(info)}
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    _write_whole(folder / WEIGHTS, lambda path: save_file(tensors, path))
    _write_whole(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def load_model(
    path: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[GVMGen, ModelInfo]:
    """Read a model folder, or an official GVMGen checkpoint: its folder or its `state_dict.bin`.

    dtype: None keeps a folder's own, and takes float32 for an official checkpoint, which may be float16.
    No second copy of the weights is made: the network is built without memory and takes the file's tensors.
    Raises ValueError for what does not fit, FileNotFoundError where there is no model.
    """
    if is_audiocraft(path):
        model, _ = import_official(path, device, dtype or torch.float32)
        return model, official_info(model.config, path)
    config, info = read_config(path)
    if info.codec is not None:
        info = replace(info, codec=str(path / info.codec))
    model = empty_model(config)
    weights = path / WEIGHTS
    try:
        with safe_open(weights, framework="pt", device=str(device)) as file:
            tensors = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
            assign(model, tensors, where=str(weights), device=device, dtype=dtype)
    except SafetensorError as error:
        raise ValueError(f"{weights}: cannot be read: {error}. Is it complete?") from error
    return model, info


def weights_file(path: Path) -> Path:
    """The one file that holds the weights of what `load_model` reads."""
    return audiocraft_file(path) if is_audiocraft(path) else path / WEIGHTS


def official_info(config: ModelConfig, path: Path) -> ModelInfo:
    """What can be said of an official checkpoint; its own codec where it lies beside the weights."""
    codec = (path if path.is_dir() else path.parent) / AUDIOCRAFT_CODEC
    return ModelInfo(
        preset=_nearest_preset(config),
        trained=True,
        licence="as its authors released it; trained from MusicGen's weights, which are CC-BY-NC-4.0",
        provenance={"imported_from": path.name, "format": "official GVMGen"},
        codec=str(codec) if codec.is_file() else None,
    )


def _nearest_preset(config: ModelConfig) -> str:
    """The preset with the same encoders and, among those, the same decoder's width."""
    same = [name for name, preset in MODEL_PRESETS.items() if preset.feature_dim == config.feature_dim]
    same_width = [name for name in same if MODEL_PRESETS[name].dim == config.dim]
    return next(iter(same_width or same), "small")


def read_config(folder: Path) -> tuple[ModelConfig, ModelInfo]:
    """A model folder's `config.json`."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a model folder holds {CONFIG} and {WEIGHTS}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON: {error}") from error
    if not isinstance(values, dict) or "format_version" not in values:
        raise ValueError(f"{path}: is no configuration of a GVMGen model, it has no 'format_version'")
    if values["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version is {values['format_version']!r}, this program reads {FORMAT_VERSION}"
        )
    for name in ("model", "preset"):
        if name not in values:
            raise ValueError(f"{path}: has no {name!r}")
    info = {f.name: values[f.name] for f in fields(ModelInfo) if f.name in values}
    try:
        _check_sampling(info.get("sampling", {}))
        return ModelConfig.from_json(values["model"]), ModelInfo(**info)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_sampling(values: Any) -> None:
    """Raise ValueError where a model's own settings are none of `SamplingConfig`."""
    known = [f.name for f in fields(SamplingConfig)]
    if (
        not isinstance(values, dict)
        or not set(values) <= set(known)
        or not all(isinstance(value, int | float) for value in values.values())
    ):
        raise ValueError(f"sampling is {values!r}; give an object of numbers, of {', '.join(known)}")
    SamplingConfig(**values)
