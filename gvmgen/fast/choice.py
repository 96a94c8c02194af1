"""Which engine decodes: the compiled one where this machine can build it, else plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gvmgen.decoding import DecodingEngine, PlainEngine, one_thread
from gvmgen.fast.build import BuildError
from gvmgen.fast.engine import PackedDecoder, Precision, unsupported
from gvmgen.model import GVMGen

# Below this many weights a step takes one thread: several would wait for one another more than they
# compute, for minutes where the processors are busy. Groups of pieces need not wait for one another.
LITTLE = 20_000_000


@dataclass(frozen=True)
class Engines:
    """Makes an engine for conditions [R, M, dim] and a number of steps, and says what it is."""

    make: Callable[[Tensor, int], DecodingEngine]
    description: str
    in_one_thread: bool = False  # PyTorch is quickest so
    num_groups: int = 1  # of pieces that are composed at once, each group by a thread of its own

    def at_work(self) -> AbstractContextManager[None]:
        """Within, PyTorch has the threads that suit the engine."""
        return one_thread() if self.in_one_thread else nullcontext()


def choose_engines(model: GVMGen, precision: str = "auto") -> Engines:
    """The fastest way to decode with this network here. The network is then used up but for `conditions`.

    precision: fp32, bf16, int8, or auto: int8 on a CPU, bf16 on a GPU, fp32 where the decoder cannot be
    compiled. Raises ValueError for others, and for int8 where only PyTorch can decode.
    """
    if precision not in ("auto", "fp32", "bf16", "int8"):
        raise ValueError(f"precision {precision!r} is unknown; known: auto, fp32, bf16, int8")
    reason = why_plain(model)
    if reason is None:
        wanted: Precision = "int8" if precision == "auto" else precision  # type: ignore[assignment]
        try:
            little = is_little(model)
            packed = PackedDecoder(model, wanted, num_threads=1 if little else None)
        except BuildError as error:
            reason = str(error)
        else:
            threads = "1 thread" if packed.num_threads == 1 else f"{packed.num_threads} threads"
            num_groups = torch.get_num_threads() if little else 1
            return Engines(packed.engine, f"{wanted}, compiled, {threads}", num_groups=num_groups)
    return plain_engines(model, precision, reason)


def why_plain(model: GVMGen) -> str | None:
    """Why the compiled decoder is not for this network; None where it is."""
    device = model.decoder.heads.weight.device.type
    return unsupported(model.config) if device == "cpu" else device


def plain_engines(model: GVMGen, precision: str, reason: str) -> Engines:
    """PyTorch decodes. reason: why it has to."""
    if precision == "int8":
        raise ValueError(f"--precision int8 cannot be had: {reason}. Take auto, fp32 or bf16")
    on_cpu = model.decoder.heads.weight.device.type == "cpu"
    wanted = precision if precision != "auto" else "fp32" if on_cpu else "bf16"
    model.decoder.to(torch.float32 if wanted == "fp32" else torch.bfloat16)
    in_one_thread = on_cpu and is_little(model)
    return Engines(partial(PlainEngine, model), f"{wanted}, PyTorch ({reason})", in_one_thread)


def is_little(model: GVMGen) -> bool:
    return sum(parameter.numel() for parameter in model.decoder.parameters()) < LITTLE
