"""Models on disk: a folder of safetensors and JSON, and the weights of others brought into it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gvmgen.config import ModelConfig
from gvmgen.model import GVMGen

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a model folder says of its weights beside their sizes."""

    preset: str  # whose encoders the model reads
    encoder_fingerprint: dict[str, Any] | None = None  # None: not known, as in weights of others
    step: int = 0
    trained: bool = False
    licence: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)


def save_model(folder: Path, model: GVMGen, info: ModelInfo) -> None:
    """Write a model folder; each file is complete when it has its name, `config.json` last."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    config = {"format_version": FORMAT_VERSION, "model": model.config.to_json(), **asdict(info)}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
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
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[GVMGen, ModelInfo]:
    """Read a model folder. dtype: None keeps the file's own. Raises ValueError for what does not fit.

    No second copy of the weights is made: the network is built without memory and takes the file's tensors.
    """
    config, info = read_config(folder)
    with torch.device("meta"):
        model = GVMGen(config)
    with safe_open(folder / WEIGHTS, framework="pt", device=str(device)) as file:
        tensors = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
        assign(model, tensors, where=str(folder / WEIGHTS), dtype=dtype)
    return model.eval(), info


def read_config(folder: Path) -> tuple[ModelConfig, ModelInfo]:
    """A model folder's `config.json`."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a model folder holds {CONFIG} and {WEIGHTS}")
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version is {values.get('format_version')!r}, this program reads {FORMAT_VERSION}"
        )
    info = {f.name: values[f.name] for f in fields(ModelInfo) if f.name in values}
    return ModelConfig.from_json(values["model"]), ModelInfo(**info)


def assign(
    model: GVMGen, tensors: Iterable[tuple[str, Tensor]], *, where: str, dtype: torch.dtype | None = None
) -> None:
    """Make `tensors` the model's weights, one at a time. Raises ValueError that names all that do not fit."""
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    taken: dict[str, Tensor] = {}
    problems = []
    for name, tensor in tensors:
        if name not in wanted:
            problems.append(f"unexpected {name}")
        elif tensor.shape != wanted[name]:
            problems.append(f"{name} is {list(tensor.shape)}, wanted {list(wanted[name])}")
        else:
            taken[name] = tensor if dtype is None else tensor.to(dtype)
    named = {problem.split()[0] for problem in problems}
    problems += [f"missing {name}" for name in wanted if name not in taken and name not in named]
    if problems:
        raise ValueError(f"{where} does not fit the model: {'; '.join(problems)}")
    model.load_state_dict(taken, assign=True)
