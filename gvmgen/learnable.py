"""Which weights learn: all, a part of the network, or low-rank adapters beside the decoder's weights."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from gvmgen.config import TrainConfig
from gvmgen.model import GVMGen

CROSS_ATTENTION = re.compile(r"decoder\.layers\.\d+\.(cross_attention|norm_cross)\.")
ADAPTED = (  # of a decoder layer, as a regular expression of names
    r"decoder\.layers\.\d+\."
    r"(self_attention\.(query_key_value|out)|cross_attention\.(query|key_value|out)|up|down)"
)


def choose_learnable(network: GVMGen, config: TrainConfig) -> None:
    """Freeze what the settings leave out, and add adapters where they ask for some.

    Raises ValueError where nothing is left to learn, or peft is missing.
    """
    if config.lora:
        _add_adapters(network, config)
    else:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(_learns(name, config.train))
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"--train {config.train}: this network has none, so nothing would learn")


def _learns(name: str, part: str) -> bool:
    if name.startswith("frame_codes.") or part == "frame-codes":
        return name.startswith("frame_codes.") and part == "frame-codes"
    if part == "feature-transformation":
        return name.startswith("transformation.")
    return part == "all" or CROSS_ATTENTION.match(name) is not None


def _add_adapters(network: GVMGen, config: TrainConfig) -> None:
    """LoRA (Hu et al. 2022): the decoder's weights stay, `B A` beside each learns; B starts as zero.

    The feature transformation learns as it does without: it starts from nothing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("--lora needs peft. Install it: pip install 'gvmgen[lora]'") from error
    torch.manual_seed(config.seed)
    adapters = LoraConfig(r=config.lora, lora_alpha=2 * config.lora, target_modules=ADAPTED)
    inject_adapter_in_model(adapters, network)
    for parameter in network.transformation.parameters():
        parameter.requires_grad_(True)


def composing_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights, by name, of the plain network that computes the same: adapters are added to theirs."""
    merged = {
        f"{name}.weight": module.base_layer.weight + module.get_delta_weight("default")
        for name, module in _adapted(network).items()
    }
    plain = network.state_dict()
    return {name: plain[name] for name in plain if not is_adapted(name)} | merged


def _adapted(network: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in network.named_modules() if hasattr(module, "get_delta_weight")}


def is_adapted(name: str) -> bool:
    """Whether a name is of an adapter, or of the weight that one is added to."""
    return ".base_layer." in name or ".lora_" in name


def rate_scale(name: str, num_layers: int, decay: float) -> float:
    """How fast a parameter learns, of 1: lower decoder layers slower (as ELECTRA, Clark et al. 2020)."""
    if name.startswith("decoder.embedding."):
        return decay**num_layers
    layer = re.match(r"decoder\.layers\.(\d+)\.", name)
    return decay ** (num_layers - 1 - int(layer[1])) if layer else 1.0
