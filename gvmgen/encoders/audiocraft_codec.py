"""EnCodec weights in audiocraft's format -> transformers' EncodecModel, key by key."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import EncodecConfig, EncodecModel

AUDIOCRAFT_FILE = "compression_state_dict.bin"

# audiocraft's name -> transformers' name
_RENAMES = (
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.(conv|convtr)\.\1\.", ".conv."),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook."),
)


def load_audiocraft(path: Path) -> EncodecModel:
    """Read `compression_state_dict.bin` without running anything that is in it.

    Raises ValueError that names what does not fit.
    """
    package = torch.load(path, map_location="cpu", weights_only=True)
    if not {"best_state", "xp.cfg"} <= set(package):
        raise ValueError(
            f"{path}: holds {sorted(package)}, an exported audiocraft codec has best_state and xp.cfg"
        )
    settings = yaml.safe_load(package["xp.cfg"])
    codec = EncodecModel(_config(settings, path))
    try:
        codec.load_state_dict({_rename(name): tensor for name, tensor in package["best_state"].items()})
    except RuntimeError as error:
        raise ValueError(f"{path}: its weights do not fit its own settings: {error}") from error
    return codec


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _config(settings: dict[str, Any], path: Path) -> EncodecConfig:
    """transformers' settings for audiocraft's. Raises ValueError for what transformers cannot compute."""
    net, quantizer = settings["seanet"], settings["rvq"]
    fixed = {"activation": "ELU", "disable_norm_outer_blocks": 0, "norm": "weight_norm"}
    unknown = {name: net[name] for name, value in fixed.items() if net[name] != value}
    if unknown or net["decoder"].get("final_activation"):
        raise ValueError(f"{path}: transformers' EnCodec has no {unknown or 'final activation'}")
    code_rate = settings["sample_rate"] // math.prod(net["ratios"])
    bits_per_frame = quantizer["n_q"] * (quantizer["bins"] - 1).bit_length()
    return EncodecConfig(
        sampling_rate=settings["sample_rate"],
        audio_channels=settings["channels"],
        normalize=settings["encodec"].get("renormalize", False),
        target_bandwidths=[bits_per_frame * code_rate / 1000],  # kbit/s
        hidden_size=net["dimension"],
        num_filters=net["n_filters"],
        num_residual_layers=net["n_residual_layers"],
        upsampling_ratios=net["ratios"],
        kernel_size=net["kernel_size"],
        last_kernel_size=net["last_kernel_size"],
        residual_kernel_size=net["residual_kernel_size"],
        dilation_growth_rate=net["dilation_base"],
        use_causal_conv=net["causal"],
        pad_mode=net["pad_mode"],  # audiocraft's own default is "constant", transformers' is "reflect"
        compress=net["compress"],
        num_lstm_layers=net["lstm"],
        trim_right_ratio=net["decoder"].get("trim_right_ratio", 1.0),
        codebook_size=quantizer["bins"],
        use_conv_shortcut=not net["true_skip"],
    )
