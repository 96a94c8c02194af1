"""The network's sizes and the publication's recipe. Frozen, keyword-only; no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

from shards.spec import CODE_RATE, CODEBOOK_SIZE, FRAME_RATE, NUM_CODEBOOKS

Pooling = Literal["average", "sum", "preserve"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One GVMGen network: the feature transformation (publication, section 3.2) and the temporal decoder (3.3)."""

    # feature transformation
    feature_dim: int = 1024  # width of a CLIP patch feature, and of the feature transformation
    projection_dim: int = 768  # CLIP's `proj`, trained
    num_queries: int = 16  # trainable music queries
    transformation_num_layers: int = 6
    transformation_num_heads: int = 16
    spatial_cross_attention_every: int = 2  # layers 0, 2, 4; 0 turns spatial cross-attention off (table 5)
    pooling: Pooling = "average"  # over queries, eq. 6
    transformation_dropout: float = 0.1

    # temporal decoder
    dim: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    feed_forward_scale: int = 4
    temporal_cross_attention: bool = True  # off: the conditions are averaged and added to every step (table 5)
    frame_positions: bool = True  # our time axis on the visual memory; off for imported weights
    dropout: float = 0.0

    # codes
    num_codebooks: int = NUM_CODEBOOKS
    codebook_size: int = CODEBOOK_SIZE
    code_rate: int = CODE_RATE  # Hz
    frame_rate: int = FRAME_RATE  # Hz

    def __post_init__(self) -> None:
        if self.feature_dim % self.transformation_num_heads:
            raise ValueError(
                f"feature_dim {self.feature_dim} is no multiple of "
                f"transformation_num_heads {self.transformation_num_heads}"
            )
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is no multiple of num_heads {self.num_heads}")
        if self.pooling not in ("average", "sum", "preserve"):
            raise ValueError(f"pooling {self.pooling!r} is unknown; known: average, sum, preserve")
        if self.num_queries < 1:
            raise ValueError("num_queries must be at least 1")

    @property
    def pad_id(self) -> int:
        """The id that stands where the delay pattern has no code."""
        return self.codebook_size

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown model settings {unknown}; known: {sorted(known)}")
        return cls(**values)


_SMALL = ModelConfig()
MODEL_PRESETS: dict[str, ModelConfig] = {
    # A demonstration for a laptop; its trained weights ship in the package.
    "pocket": replace(
        _SMALL,
        feature_dim=192,
        projection_dim=192,
        transformation_num_heads=3,
        dim=256,
        num_layers=6,
        num_heads=4,
    ),
    "small": _SMALL,  # 493 M parameters
    "large": replace(_SMALL, dim=1536, num_layers=48, num_heads=24),  # 1.9 B; MusicGen calls this size medium
}


def model_config(preset: str) -> ModelConfig:
    """The preset's ModelConfig. Raises ValueError that lists the known ones."""
    if preset not in MODEL_PRESETS:
        raise ValueError(f"unknown preset {preset!r}; known: {', '.join(MODEL_PRESETS)}")
    return MODEL_PRESETS[preset]
