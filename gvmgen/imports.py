"""Weights of others become ours: official GVMGen checkpoints, and MusicGen to start training from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gvmgen.config import ModelConfig
from gvmgen.formats import (
    FROZEN_CLIP,
    OTHER_PARTS,
    TEXT_ATTENTION,
    VISUAL,
    Checkpoint,
    Rule,
    audiocraft_rules,
    audiocraft_sizes,
    find_musicgen,
    is_audiocraft,
    official_config,
    read_audiocraft,
    read_transformers,
    transformation_rules,
    transformers_rules,
    transformers_sizes,
)
from gvmgen.model import GVMGen
from gvmgen.weights import assign, empty_model, refuse


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What became of every tensor: of ours the loaded and the re-initialised, of theirs the dropped."""

    loaded: tuple[str, ...]
    initialised: tuple[str, ...] = ()
    dropped: tuple[str, ...]

    def lines(self) -> list[str]:
        """For a person to read: names that differ in a number only share a line."""
        fates = {"loaded": self.loaded, "re-initialised": self.initialised, "dropped": self.dropped}
        return [
            f"{fate}: {name} ({count} tensors)"
            for fate, names in fates.items()
            for name, count in _without_numbers(names).items()
        ]


def _without_numbers(names: Iterable[str]) -> dict[str, int]:
    """Names with `*` for their numbers -> how many there are."""
    counts: dict[str, int] = {}
    for name in names:
        pattern = re.sub(r"\.\d+(?=\.)", ".*", name)
        counts[pattern] = counts.get(pattern, 0) + 1
    return counts


def is_official(path: Path) -> bool:
    """Whether a path holds a GVMGen in audiocraft's format, not a MusicGen."""
    return is_audiocraft(path) and VISUAL + "query_tokens" in read_audiocraft(path).tensors


def import_official(
    path: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32
) -> tuple[GVMGen, ImportReport]:
    """The network of an official GVMGen checkpoint: `state_dict.bin` or the folder that holds it.

    Sizes come from the checkpoint's own configuration. Raises ValueError that names every tensor that is
    missing, unexpected or mis-shaped, and every setting that would make it another network.
    """
    checkpoint = read_audiocraft(path)
    model = empty_model(official_config(checkpoint))
    rules = transformation_rules(model.config) + audiocraft_rules(model.config)
    dropped = tuple(name for name in checkpoint.tensors if FROZEN_CLIP.match(name))
    translated = translate(checkpoint, rules, model, set(dropped))
    assign(model, translated, where=checkpoint.where, device=device, dtype=dtype)
    return model, ImportReport(loaded=tuple(model.state_dict()), dropped=dropped)


@torch.no_grad()
def import_musicgen(
    source: str | Path, config: ModelConfig, *, keeps_text_attention: bool = False
) -> tuple[GVMGen, ImportReport]:
    """A new network whose decoder starts from MusicGen; a folder or file of either format, or a hub id.

    The feature transformation is new. So is the cross-attention, and it starts silent: MusicGen's own looks
    for words, not for pictures. keeps_text_attention takes it over nevertheless.
    Raises ValueError where the decoder's sizes are not `config`'s; MissingWeightsError where there is none.
    """
    checkpoint, rules = _read_musicgen(find_musicgen(source), config)
    model = GVMGen(config)
    if not keeps_text_attention:
        rules = [rule for rule in rules if not any(map(TEXT_ATTENTION.match, rule.sources))]
        silence_cross_attention(model)
    used = {name for rule in rules for name in rule.sources}
    spare = [name for name in checkpoint.tensors if OTHER_PARTS.match(name) or TEXT_ATTENTION.match(name)]
    dropped = tuple(name for name in spare if name not in used)
    ours, loaded = model.state_dict(), []
    for name, tensor in translate(checkpoint, rules, model, set(dropped)):
        ours[name].copy_(tensor)
        loaded.append(name)
    initialised = tuple(name for name in ours if name not in loaded)
    return model, ImportReport(loaded=tuple(loaded), initialised=initialised, dropped=dropped)


def _read_musicgen(path: Path, config: ModelConfig) -> tuple[Checkpoint, list[Rule]]:
    """A MusicGen that fits the network, and the rules of its format."""
    if is_audiocraft(path):
        checkpoint, rules = read_audiocraft(path), audiocraft_rules(config)
        sizes = audiocraft_sizes(checkpoint)
    else:
        checkpoint, rules = read_transformers(path), transformers_rules(config)
        sizes = transformers_sizes(checkpoint)
    others = {name: size for name, size in sizes.items() if size != getattr(config, name)}
    refuse(
        [f"{name} is {size}, wanted {getattr(config, name)}" for name, size in others.items()],
        checkpoint.where,
    )
    return checkpoint, rules


def silence_cross_attention(model: GVMGen) -> None:
    """Let cross-attention add nothing at first, so that training starts from MusicGen's own music."""
    for layer in model.decoder.layers:
        if model.config.temporal_cross_attention:
            layer.cross_attention.out.weight.zero_()


def translate(
    checkpoint: Checkpoint, rules: list[Rule], model: GVMGen, dropped: set[str]
) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors, one at a time, after a check that every tensor of theirs is in its place."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    tensors = checkpoint.tensors
    refuse(_problems(tensors, rules, shapes, dropped), checkpoint.where)
    for rule in rules:
        parts = [tensors[name] for name in rule.sources]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        whole = whole.t() if rule.is_transposed else whole
        rows = [shapes[target][0] for target in rule.targets]
        for target, tensor in zip(rule.targets, whole.split(rows), strict=True):
            yield target, tensor.clone(memory_format=torch.contiguous_format)


def _problems(
    tensors: Mapping[str, Tensor], rules: list[Rule], shapes: Mapping[str, torch.Size], dropped: set[str]
) -> list[str]:
    """Every tensor that is missing, unexpected or mis-shaped, by the names of the file."""
    wanted = {name: rule.source_shape(shapes) for rule in rules for name in rule.sources}
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    for name, tensor in tensors.items():
        if name in wanted and list(tensor.shape) != wanted[name]:
            problems.append(f"{name} is {list(tensor.shape)}, wanted {wanted[name]}")
        elif name not in wanted and name not in dropped:
            problems.append(f"unexpected {name}")
    return problems
