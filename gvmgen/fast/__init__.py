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

# Below this many weights of the decoder PyTorch is fast enough, and one need not wait for a compiler. Its
# threads would then wait for one another more than they compute, for minutes where the processors are busy.
LITTLE = 20_000_000


@dataclass(frozen=True)
class Engines:
    """Makes an engine for conditions [R, M, dim] and a number of steps, and says what it is."""

    make: Callable[[Tensor, int], DecodingEngine]
    description: str
    in_one_thread: bool = False  # PyTorch is quickest so

    def at_work(self) -> AbstractContextManager[None]:
        """Within, PyTorch has the threads that suit the engine."""
        return one_thread() if self.in_one_thread else nullcontext()


def choose_engines(model: GVMGen, precision: str = "auto") -> Engines:
    """The fastest way to decode with this network here. The network is then used up but for `conditions`.

    precision: fp32, bf16, int8, or auto: int8 on a CPU, bf16 on a GPU, fp32 for a little network and where
    the decoder cannot be compiled. Raises ValueError for others, and for int8 where only PyTorch can decode.
    """
    if precision not in ("auto", "fp32", "bf16", "int8"):
        raise ValueError(f"precision {precision!r} is unknown; known: auto, fp32, bf16, int8")
    reason = why_plain(model, precision)
    if reason is None:
        wanted: Precision = "int8" if precision == "auto" else precision  # type: ignore[assignment]
        try:
            packed = PackedDecoder(model, wanted)
        except BuildError as error:
            reason = str(error)
        else:
            return Engines(packed.engine, f"{wanted}, compiled, {packed.num_threads} threads")
    return plain_engines(model, precision, reason)


def why_plain(model: GVMGen, precision: str) -> str | None:
    """Why the compiled decoder is not for this network, or this wish; None where it is."""
    weight = model.decoder.heads.weight
    if weight.device.type != "cpu":
        return weight.device.type
    if precision == "auto" and decoder_size(model) < LITTLE:
        return "a little network"
    return unsupported(model.config)


def plain_engines(model: GVMGen, precision: str, reason: str) -> Engines:
    """PyTorch decodes. reason: why it has to."""
    if precision == "int8":
        raise ValueError(f"--precision int8 cannot be had: {reason}. Take auto, fp32 or bf16")
    on_cpu = model.decoder.heads.weight.device.type == "cpu"
    wanted = precision if precision != "auto" else "fp32" if on_cpu else "bf16"
    model.decoder.to(torch.float32 if wanted == "fp32" else torch.bfloat16)
    is_little = on_cpu and decoder_size(model) < LITTLE
    return Engines(partial(PlainEngine, model), f"{wanted}, PyTorch ({reason})", is_little)


def decoder_size(model: GVMGen) -> int:
    """How many weights a step reads, nearly."""
    return sum(parameter.numel() for parameter in model.decoder.parameters())
