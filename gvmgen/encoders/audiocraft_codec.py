"""EnCodec weights in audiocraft's format -> our network, key by key."""

from __future__ import annotations

import math
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml

from gvmgen.encoders.encodec import Encodec, EncodecSettings

AUDIOCRAFT_FILE = "compression_state_dict.bin"

# audiocraft's name -> ours, which is transformers'
_RENAMES = (
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.(conv|convtr)\.\1\.", ".conv."),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook."),
)


def load_audiocraft(path: Path) -> Encodec:
    """Read `compression_state_dict.bin` without running anything that is in it.

    Raises ValueError that names what does not fit.
    """
    package = _read(path)
    try:
        tensors = {_rename(name): tensor for name, tensor in package["best_state"].items()}
        return Encodec.loaded(_config(_Settings(package["xp.cfg"])), tensors)
    except KeyError as error:
        raise ValueError(f"{path}: its settings lack {error}") from error
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    """The file's dictionary. Raises ValueError unless it is an exported audiocraft codec of plain tensors."""
    try:
        package = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        raise ValueError(f"{path}: is no file of plain tensors, so it is not opened: {error}") from error
    if "pretrained" in package:
        raise ValueError(f"{path}: only names another codec, {package['pretrained']}; give that one")
    if not {"best_state", "xp.cfg"} <= set(package):
        raise ValueError(f"{path}: holds {sorted(package)}; an audiocraft codec has best_state and xp.cfg")
    return dict(package)


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


class _Settings:
    """audiocraft's settings by dotted name; a value such as `${encodec.causal}` stands for another's."""

    def __init__(self, text: str) -> None:
        self._tree = yaml.safe_load(text)

    def __getitem__(self, name: str) -> Any:
        value = self._tree
        for part in name.split("."):
            value = value[part]
        reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        return self[reference[1]] if reference else value

    def get(self, name: str, default: Any) -> Any:
        try:
            return self[name]
        except KeyError:
            return default


def _config(settings: _Settings) -> EncodecSettings:
    """Our settings for audiocraft's. Raises ValueError for what we cannot compute."""
    plain = {
        "compression_model": "encodec",
        "seanet.activation": "ELU",
        "seanet.causal": False,
        "seanet.norm": "weight_norm",
        "seanet.disable_norm_outer_blocks": 0,
        "seanet.decoder.final_activation": None,
    }
    for name, value in plain.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{name} is {settings[name]!r}; this program computes {value!r} only")
    ratios = settings["seanet.ratios"]
    code_rate = settings["sample_rate"] // math.prod(ratios)
    bits_per_frame = settings["rvq.n_q"] * (settings["rvq.bins"] - 1).bit_length()
    return EncodecSettings(
        sampling_rate=settings["sample_rate"],
        audio_channels=settings["channels"],
        normalize=settings.get("encodec.renormalize", False),
        target_bandwidths=(bits_per_frame * code_rate / 1000,),
        hidden_size=settings["seanet.dimension"],
        num_filters=settings["seanet.n_filters"],
        num_residual_layers=settings["seanet.n_residual_layers"],
        upsampling_ratios=tuple(ratios),
        kernel_size=settings["seanet.kernel_size"],
        last_kernel_size=settings["seanet.last_kernel_size"],
        residual_kernel_size=settings["seanet.residual_kernel_size"],
        dilation_growth_rate=settings["seanet.dilation_base"],
        use_causal_conv=settings["seanet.causal"],
        pad_mode=settings[
            "seanet.pad_mode"
        ],  # audiocraft's own default is "constant", transformers' is "reflect"
        compress=settings["seanet.compress"],
        num_lstm_layers=settings["seanet.lstm"],
        codebook_size=settings["rvq.bins"],
        use_conv_shortcut=not settings["seanet.true_skip"],
    )
