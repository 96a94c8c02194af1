"""Which frozen models encode picture and music, and where their weights come from. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

POCKET_DIR = Path(__file__).resolve().parent.parent / "pocket"
DEFAULT_PRESET = "small"


class MissingWeightsError(ValueError):
    """Weights are neither on disk nor reachable. Names them and the way out."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """One pair of frozen encoders. The same pair encodes for training and for generation."""

    clip_model: str  # open_clip's architecture name, or `local-dir:PATH` for a folder in open_clip's own form
    clip_weights: str | None  # open_clip's pretrained tag or a weights file; None: the folder's own
    codec: str  # hub id or folder of an EnCodec in the transformers or the audiocraft format


_FULL = EncoderConfig(
    clip_model="ViT-L-14-336-quickgelu",  # OpenAI trained with QuickGELU; the plain name is a silent error
    clip_weights="openai",
    codec="facebook/encodec_32khz",
)
ENCODER_PRESETS: dict[str, EncoderConfig] = {
    "pocket": EncoderConfig(
        clip_model=f"local-dir:{POCKET_DIR / 'clip'}", clip_weights=None, codec=str(POCKET_DIR / "codec")
    ),
    "small": _FULL,
    "large": _FULL,
}


def chosen_preset(option: str | None) -> str:
    """The option, else $GVM_PRESET, else `small`."""
    return option or os.environ.get("GVM_PRESET") or DEFAULT_PRESET


def encoder_config(preset: str) -> EncoderConfig:
    """The preset's EncoderConfig. Raises ValueError that lists the known ones."""
    if preset not in ENCODER_PRESETS:
        raise ValueError(f"unknown preset {preset!r}; known: {', '.join(ENCODER_PRESETS)}")
    return ENCODER_PRESETS[preset]
