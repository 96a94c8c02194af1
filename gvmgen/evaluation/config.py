"""Sizes and recipe of the evaluation model. Frozen, keyword-only; no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

TEMPERATURE = 0.07  # of InfoNCE; publication, eq. 4 and 5
BATCH_SIZE = 16  # pairs that CMR and the accuracy compare; chance is 1/16


@dataclass(frozen=True, kw_only=True)
class EvaluatorConfig:
    """One evaluation model. The defaults are the publication's: width 512, 4 layers, 4 heads."""

    video_dim: int  # width of a second of video, see `seconds.py`
    music_dim: int  # width of a second of music
    dim: int = 512  # shared width
    num_layers: int = 4  # of each of the two towers
    num_heads: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.dim % (2 * self.num_heads):
            raise ValueError(f"dim {self.dim} is no multiple of twice num_heads {self.num_heads}")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}
        if set(values) - known:
            raise ValueError(
                f"unknown evaluator settings {sorted(set(values) - known)}; known: {sorted(known)}"
            )
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class EvaluatorTraining:
    """One training of an evaluation model."""

    preset: str = "small"  # whose encoders made the shards, or read the videos
    dim: int = 512
    num_layers: int = 4
    num_heads: int = 4
    dropout: float = 0.1
    steps: int = 2000
    batch_size: int = 64  # pairs; each is told apart from all the others
    lr: float = 3e-4
    weight_decay: float = 0.01
    warmup_steps: int = 100
    seed: int = 0
    held_out: int = 0  # pairs of the train split that are not trained on but measured, with the test split

    def __post_init__(self) -> None:
        if self.held_out < 0:
            raise ValueError(f"held_out is {self.held_out}; it must not be negative")
        for name in ("steps", "dim", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}; a pair needs another one to be told from")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be above 0")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
