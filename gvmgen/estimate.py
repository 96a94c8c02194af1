"""`gvm-train --estimate`: how many parameters, and what memory they, their training and a step take.

The step is run on tensors without contents, and what it keeps for its backward pass is counted: nothing is
computed and no GPU is needed. B batch, F video frames, P patches, K codebooks, T code frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from gvmgen.config import TrainConfig
from gvmgen.learnable import choose_learnable
from gvmgen.model import GVMGen, code_losses
from gvmgen.optimiser import moment_bytes
from shards.spec import NUM_PATCHES

GB = 1e9
CARD_GB = 24  # what a large consumer's GPU has
RESERVED_GB = 1  # CUDA's own, and fragments


@dataclass(frozen=True)
class Memory:
    """Bytes of one process."""

    weights: float
    gradients: float
    moments: float  # AdamW's two
    average: float
    copies: float  # of the weights, in half precision
    activations: float  # what the backward pass needs
    logits: float  # their gradient, and float32 copies of both

    @property
    def peak(self) -> float:
        """While gradients appear, activations go."""
        step = max(self.copies + self.activations + self.logits, self.gradients)
        return self.weights + self.moments + self.average + step

    def sharded(self, num_processes: int) -> Memory:
        """FSDP2: every process holds its share of what belongs to the weights."""
        shares = {
            name: getattr(self, name) / num_processes
            for name in ("weights", "gradients", "moments", "average", "copies")
        }
        return replace(self, **shares)


Choices = list[tuple[str, Memory]]  # settings by name, the largest first


def estimate_memory(config: TrainConfig) -> str:
    """A table for the user: parameters, memory by part, and what it takes to fit a card of 24 GB."""
    with torch.device("meta"):
        network = GVMGen(config.model_config).train()
        choose_learnable(network, config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cpu")  # only now: peft moves the adapters, which fake tensors do not allow
        asked = memory_of(network, config)
        smaller = replace(config, grad_accum=config.batch_size, recompute=True)
        smallest = memory_of(network, smaller)
        in_full = memory_of(network, replace(smaller, optimizer="adamw"))
        in_8_bits = memory_of(network, replace(smaller, optimizer="adamw8bit"))
    flags = f"--grad-accum {config.batch_size} --recompute"
    alone: Choices = [("as asked", asked), (flags, smallest)]
    shared_flags = (
        flags if config.optimizer == "adamw" else f"{flags} --optimizer adamw"
    )  # 8 bits are not shared
    shared: Choices = [(f"{shared_flags}, FSDP over {n} GPUs", in_full.sharded(n)) for n in (2, 4, 8)]
    packed: Choices = [(f"{flags} --optimizer adamw8bit", in_8_bits)] if config.optimizer == "adamw" else []
    return "\n".join([*_table(network, asked, config), "", *_verdict(alone, [shared, packed])])


def memory_of(network: GVMGen, config: TrainConfig) -> Memory:
    """What one process needs for a step of the whole batch, cut into `grad_accum` pieces."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    learning = sum(size for size, learns in sizes if learns)
    moments = sum(moment_bytes(size, config.optimizer) for size, learns in sizes if learns)
    piece = config.batch_size // config.grad_accum
    network.decoder.recompute_layers = config.recompute
    copies, one = kept_bytes(network, config, num_segments=1)
    model, seconds = config.model_config, duration_s(config)
    num_logits = piece * seconds * model.code_rate * model.num_codebooks * model.codebook_size
    accumulated = 4.0 * learning if config.grad_accum > 1 else 0.0  # they outlive a piece
    return Memory(
        weights=4.0 * sum(size for size, _ in sizes) + accumulated,
        gradients=4.0 * learning - accumulated,
        moments=moments,
        average=4.0 * learning if config.ema else 0.0,
        copies=copies,
        activations=one * piece,
        logits=8.0 * num_logits,
    )


def duration_s(config: TrainConfig) -> int:
    if config.crop_s is None:
        return config.model_config.window_s
    return int(config.crop_s) + config.model_config.anchor_s


def kept_bytes(network: GVMGen, config: TrainConfig, num_segments: int) -> tuple[float, float]:
    """What a forward pass keeps: bytes of half-precision copies of weights, and of everything else."""
    parameters = {storage_of(parameter) for parameter in network.parameters()}
    shapes = {shape for p in network.parameters() if p.ndim == 2 for shape in (p.shape, p.mT.shape)}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[storage_of(tensor)] = tensor
        return tensor

    precision = torch.float16 if config.precision == "fp16" else torch.bfloat16
    features, codes = empty_batch(config, num_segments)
    with (
        torch.autocast("cpu", precision, enabled=config.precision != "no"),
        saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        logits, mask = network(features, codes, by_frames=config.train == "frame-codes")
        _loss = code_losses(logits, codes, mask).mean()  # held: its graph holds what is kept
    copies = others = 0.0
    for storage, tensor in kept.items():
        if storage not in parameters:
            is_copy = tensor.dtype == precision and tensor.shape in shapes
            copies += tensor.untyped_storage().nbytes() * is_copy
            others += tensor.untyped_storage().nbytes() * (not is_copy)
    return copies, others


def storage_of(tensor: Tensor) -> int:
    """Names the memory behind a tensor, while it lives. Without contents it has no address."""
    return tensor.untyped_storage()._cdata


def empty_batch(config: TrainConfig, num_segments: int) -> tuple[Tensor, Tensor]:
    """features [B, F, P, D] and codes [B, K, T] of whole segments."""
    model, seconds = config.model_config, duration_s(config)
    frames = seconds * model.frame_rate
    features = torch.zeros(num_segments, frames, NUM_PATCHES, model.feature_dim, dtype=torch.float16)
    codes = torch.zeros(num_segments, model.num_codebooks, seconds * model.code_rate, dtype=torch.int64)
    return features, codes


def _table(network: GVMGen, memory: Memory, config: TrainConfig) -> list[str]:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    size, learning = sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns)
    piece = config.batch_size // config.grad_accum
    rows = (
        ("weights" + (", gradients" if config.grad_accum > 1 else ""), memory.weights),
        ("gradients", memory.gradients),
        ("AdamW's moments", memory.moments),
        ("average of the weights", memory.average),
        ("half-precision copies", memory.copies),
        (f"activations of {piece} x {duration_s(config)} s", memory.activations),
        ("logits' gradient", memory.logits),
    )
    return [
        f"{config.preset}: {size / 1e6:.1f} M parameters, of which {learning / 1e6:.1f} M learn",
        *(f"  {name:30} {value / GB:6.1f} GB" for name, value in rows if value),
        f"  {'at most, while gradients replace activations':44} {memory.peak / GB:6.1f} GB",
    ]


def _verdict(alone: Choices, others: list[Choices]) -> list[str]:
    """What fits a card of 24 GB: one GPU, from what was asked to the smallest, or else each other way."""
    lines, fits = _up_to_what_fits(alone)
    if fits:
        return lines
    found = [_up_to_what_fits(choices) for choices in others]
    lines += [line for more, _ in found for line in more]
    if any(fits for _, fits in found):
        return lines
    return [*lines, "Or train less of it: --lora 16, --train feature-transformation, --crop-s 10"]


def _up_to_what_fits(choices: Choices) -> tuple[list[str], bool]:
    """(a line for each choice up to the first that fits, whether one does)."""
    lines = []
    for name, memory in choices:
        fits = memory.peak / GB + RESERVED_GB <= CARD_GB
        lines.append(f"{CARD_GB} GB, {name}: {memory.peak / GB:.1f} GB, {'fits' if fits else 'does not fit'}")
        if fits:
            return lines, True
    return lines, False
