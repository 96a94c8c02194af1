"""What a checkpoint holds, and how it comes to disk while the run goes on.

model.safetensors, config.json   what composes: the averaged weights where there are some, adapters merged
optimizer.safetensors            per parameter its moments; also its own value where the model's is another
state.json                       where the run stands, written last
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from gvmgen.average import Average
from gvmgen.checkpoint import ModelInfo, save_weights
from gvmgen.config import ModelConfig
from gvmgen.learnable import is_adapted
from gvmgen.model import GVMGen
from gvmgen.optimiser import TABLES, state_names
from gvmgen.runs import STATE

OPTIMISER = "optimizer.safetensors"
VALUE, AVERAGE = "value", "average"  # beside a parameter's moments


@dataclass(frozen=True)
class Snapshot:
    """A run between two steps, in host memory."""

    weights: Mapping[str, Tensor]
    training: Mapping[str, Tensor]
    config: ModelConfig
    info: ModelInfo
    state: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Fill a checkpoint's folder. Raises OSError where the disk is full."""
        try:
            save_weights(folder, dict(self.weights), self.config, self.info)
            save_file(dict(self.training), folder / OPTIMISER)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        (folder / STATE).write_text(json.dumps(self.state, indent=2) + "\n")


class HostCopy:
    """Copies tensors into host memory that it uses again; page-locked where a GPU sends them."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
        """The tensors, whole, as they are now. A sharded one is gathered, for which all processes must call.

        keep: whether this process wants them. They are valid until the next call.
        """
        for name, tensor in tensors.items():
            all_of_it = whole(tensor.detach())
            if keep:
                self._place(name, all_of_it).copy_(all_of_it, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return {name: self._memory[name] for name in tensors} if keep else {}

    def _place(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._memory:
            self._memory[name] = torch.empty(
                tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda
            )
        return self._memory[name]


class BackgroundWriter:
    """One write at a time, in a thread. Its error comes out where the run next looks."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "write-checkpoint")
        self._pending: Future[Any] | None = None

    def start(self, write: Callable[[], Any]) -> None:
        self.wait()
        self._pending = self._thread.submit(write)

    def check(self) -> None:
        """Raise what a finished write raised; an unfinished one goes on."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def reshard(network: nn.Module) -> None:
    """Let go of weights that a forward pass gathered, and that no backward pass will let go of."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The tensor of which this process may hold a shard."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor, as it holds the parameter."""
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor


def training_tensors(
    network: GVMGen, optimiser: torch.optim.Optimizer, average: Average | None
) -> dict[str, Tensor]:
    """What it takes to go on, as `<parameter>/<moment>`: no pickle, and no order of parameters to keep."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        moments = optimiser.state.get(parameter, {})
        tensors |= {f"{name}/{moment}": torch.as_tensor(x) for moment, x in moments.items()}
        if is_adapted(name) or (average and name in average.tensors):
            tensors[f"{name}/{VALUE}"] = parameter
        if average and name in average.tensors:
            tensors[f"{name}/{AVERAGE}"] = average.tensors[name]
    return tensors


@torch.no_grad()
def load_training_tensors(
    network: GVMGen,
    optimiser: torch.optim.Optimizer,
    average: Average | None,
    tensors: Mapping[str, Tensor],
    where: str,
) -> None:
    """Undo `training_tensors`.

    Raises ValueError where a tensor is of no parameter, of another shape or of another optimiser.
    """
    parameters = dict(network.named_parameters())
    known = (*state_names(optimiser), VALUE, AVERAGE)
    for name, tensor in tensors.items():
        parameter_name, kind = name.rsplit("/", 1)
        parameter = parameters.get(parameter_name)
        fits_any = tensor.ndim == 0 or kind in TABLES
        if parameter is None or not (fits_any or tensor.shape == parameter.shape):
            raise ValueError(f"{where}: {name} {list(tensor.shape)} is of no parameter of this model")
        if kind not in known:
            raise ValueError(
                f"{where}: {name} is of another --optimizer. Go on with that one, or start another run from "
                f"these weights: --run NAME --init {Path(where).parent}"
            )
        if kind == VALUE:
            parameter.copy_(sharded_like(tensor, parameter))
        elif kind == AVERAGE and average:
            average.tensors[parameter_name].copy_(sharded_like(tensor, parameter))
        elif kind != AVERAGE:
            optimiser.state[parameter][kind] = _moment(tensor, kind, parameter)


def _moment(tensor: Tensor, kind: str, parameter: Tensor) -> Tensor | int:
    if kind != "step":
        return sharded_like(tensor, parameter)
    if not tensor.is_floating_point():
        return int(tensor)  # AdamW of 8 bits counts outside tensors
    return tensor.to(parameter.device if parameter.is_cuda else "cpu")
