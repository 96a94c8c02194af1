"""The network's sizes and the publication's recipe. Frozen, keyword-only; no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from shards.spec import CODE_RATE, CODEBOOK_SIZE, FRAME_RATE, NUM_CODEBOOKS

Pooling = Literal["average", "sum", "preserve"]
# of the network, that may learn alone
PARTS = ("all", "feature-transformation", "cross-attention", "frame-codes")
OPTIMIZERS = ("adamw", "adamw8bit")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One GVMGen network: feature transformation (publication, section 3.2) and temporal decoder (3.3)."""

    # feature transformation
    feature_dim: int = 1024  # width of a CLIP patch feature, and of the feature transformation
    projection_dim: int = 768  # CLIP's `proj`, trained
    num_queries: int = 16  # trainable music queries
    transformation_num_layers: int = 6
    transformation_num_heads: int = 16
    spatial_cross_attention_every: int = 2  # layers 0, 2, 4; 0: none, the class token stands in (table 5)
    pooling: Pooling = "average"  # over queries, eq. 6
    transformation_dropout: float = 0.1
    transformation_norm_eps: float = 1e-12  # as the official code and Q-Former; CLIP's `ln_post` keeps 1e-5

    # temporal decoder
    dim: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    feed_forward_scale: int = 4
    temporal_cross_attention: bool = (
        True  # off: the conditions are averaged and added to every step (table 5)
    )
    frame_positions: bool = True  # our time axis on the visual memory; off for imported weights
    frame_changes: bool = False  # ours: each frame also tells what changed since the one before
    frame_codes: bool = False  # ours: what frames alone tell of their codes, to compose closer to them
    dropout: float = 0.0

    # codes
    num_codebooks: int = NUM_CODEBOOKS
    codebook_size: int = CODEBOOK_SIZE
    code_rate: int = CODE_RATE  # Hz
    frame_rate: int = FRAME_RATE  # Hz
    window_s: int = 30  # seconds it is trained on, and composes at once
    anchor_s: int = 0  # ours: of a piece's opening, that each later window begins with; 0: never learned

    def __post_init__(self) -> None:
        for name in (
            "feature_dim",
            "transformation_num_heads",
            "dim",
            "num_heads",
            "num_queries",
            "num_layers",
            "num_codebooks",
            "codebook_size",
            "code_rate",
            "frame_rate",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.feature_dim % self.transformation_num_heads:
            raise ValueError(
                f"feature_dim {self.feature_dim} is no multiple of "
                f"transformation_num_heads {self.transformation_num_heads}"
            )
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is no multiple of num_heads {self.num_heads}")
        if self.pooling not in ("average", "sum", "preserve"):
            raise ValueError(f"pooling {self.pooling!r} is unknown; known: average, sum, preserve")
        if not 0 <= self.anchor_s <= self.window_s // 4:
            raise ValueError(
                f"anchor_s is {self.anchor_s}; it must be 0 to {self.window_s // 4}, a quarter of window_s"
            )

    @property
    def pad_id(self) -> int:
        """The id that stands where the delay pattern has no code."""
        return self.codebook_size

    @property
    def conditions_per_frame(self) -> int:
        """How many conditions a video frame gives."""
        is_preserved = self.pooling == "preserve" and self.spatial_cross_attention_every > 0
        return self.num_queries if is_preserved else 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        _check_known("model", values, {f.name for f in fields(cls)})
        for name, value in values.items():
            wanted = type(getattr(_SMALL, name))
            if type(value) is not wanted and (type(value), wanted) != (int, float):
                raise ValueError(f"model setting {name} is {value!r}; it must be {_IN_WORDS[wanted]}")
        return cls(**values)


def _check_known(what: str, values: Iterable[str], known: set[str]) -> None:
    """Raise ValueError for names that no setting has, with the nearest that there is."""
    for name in sorted(set(values) - known):
        near = get_close_matches(name, known, n=1)
        meant = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
        raise ValueError(f"unknown {what} setting {name}; {meant}")


_IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a table"}
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
        frame_changes=True,
        frame_codes=True,
        window_s=15,
    ),
    "small": _SMALL,  # 493 M parameters
    "large": replace(_SMALL, dim=1536, num_layers=48, num_heads=24),  # 1.9 B; MusicGen calls this size medium
}


def model_config(preset: str) -> ModelConfig:
    """The preset's ModelConfig. Raises ValueError that lists the known ones."""
    if preset not in MODEL_PRESETS:
        raise ValueError(f"unknown preset {preset!r}; known: {', '.join(MODEL_PRESETS)}")
    return MODEL_PRESETS[preset]


# what may change from one start of a run to the next
FREE = frozenset(
    (
        *("data", "runs", "run", "grad_accum", "recompute", "compile", "on_corrupt", "save_every"),
        *("keep_last", "eval_every", "log_every", "samples_every", "tracker"),
    )
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. The defaults are the publication's recipe (section 4.2)."""

    # where things lie
    data: str = "data"  # folder that holds shards/, or the URL of one: s3://bucket/set
    runs: str = "runs"
    run: str | None = None  # the run's name; the preset's by default

    # what is learned; another value is another run
    preset: str = "small"
    model: dict[str, Any] = field(default_factory=dict)  # ModelConfig settings that differ from the preset
    init: str | None = None  # a model folder, a checkpoint or MusicGen weights to start from
    train: str = "all"  # the part of the network that learns; the rest keeps its weights
    lora: int = 0  # rank of adapters that learn instead of the decoder's weights; 0: none
    lr: float = 1e-5
    lr_decay: float = 1.0  # each decoder layer learns this much slower than the one above it
    weight_decay: float = 0.01
    optimizer: str = "adamw"  # or `adamw8bit`: its moments in 8 bits, a quarter of the memory
    batch_size: int = 6  # segments an optimiser step, over all processes
    epochs: int = 150
    steps: int | None = None  # optimiser steps; overrules epochs
    warmup_steps: int = 4000
    guidance_dropout: float = 0.3  # share of segments trained without their video
    max_grad_norm: float = 1.0  # not in the publication; MusicGen's
    ema: float = 0.0  # decay of an average of the weights, which is what then composes; 0: no average
    crop_s: float | None = None  # a random stretch of each segment, whole seconds; all of it by default
    precision: str = "auto"  # auto: bf16 on a GPU that has it, else fp32
    seed: int = 0

    # how it runs; may change from one start to the next
    grad_accum: int = 1  # pieces that a batch is cut into, for memory; the result is the same
    recompute: bool = False  # forget a decoder layer's activations and compute them again, for memory
    compile: bool = False  # the decoder's layers through torch.compile
    on_corrupt: str = "stop"  # or `substitute`: take the next segment in its place
    save_every: int = 1000  # optimiser steps
    keep_last: int = 3  # checkpoints
    eval_every: int = 1000  # optimiser steps; 0 never
    log_every: int = 10  # optimiser steps
    samples_every: int = 0  # optimiser steps; 0 never
    tracker: str = "tensorboard"  # any of Accelerate's; `none`

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "grad_accum", "save_every", "keep_last", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("warmup_steps", "eval_every", "samples_every", "weight_decay", "max_grad_norm", "lora"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.run is not None and Path(self.run).name != self.run:
            raise ValueError(f"run {self.run!r} is no name of a folder; say with runs where it lies")
        model_config(self.preset)  # raises where it is unknown
        if self.crop_s is not None and not (self.crop_s >= 1 and float(self.crop_s).is_integer()):
            raise ValueError(f"crop_s is {self.crop_s}; it must be a whole number of seconds")
        if self.model.get("anchor_s") and self.crop_s is None:
            raise ValueError("anchor_s is learned on crops: give crop_s (--crop-s 4)")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be above 0")
        if not 0 <= self.guidance_dropout <= 1:
            raise ValueError(f"guidance_dropout is {self.guidance_dropout}; it is a share, 0 to 1")
        if not 0 < self.lr_decay <= 1:
            raise ValueError(f"lr_decay is {self.lr_decay}; it is a factor, above 0 and at most 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it is a decay, 0 (no average) or more and below 1")
        self._check_choices()
        if self.lora and self.train != "all":
            raise ValueError(f"lora trains adapters and the feature transformation, train {self.train!r} not")
        if self.batch_size % self.grad_accum:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of grad_accum {self.grad_accum}")

    def _check_choices(self) -> None:
        choices = {
            "precision": ("auto", "no", "bf16", "fp16"),
            "optimizer": OPTIMIZERS,
            "train": PARTS,
            "on_corrupt": ("stop", "substitute"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; known: {', '.join(known)}")

    @property
    def run_folder(self) -> Path:
        return Path(self.runs) / (self.run or self.preset)

    @property
    def model_config(self) -> ModelConfig:
        return ModelConfig.from_json(model_config(self.preset).to_json() | self.model)

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the run it resumes."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        _check_known("training", values, {f.name for f in fields(cls)})
        for name, wanted in get_type_hints(cls).items():
            kinds = get_args(wanted) or (wanted,)  # of `int | None` both
            kinds = (dict,) if get_origin(wanted) is dict else kinds
            accepted = (*kinds, int) if float in kinds else kinds  # 1 is a float, too
            is_other = isinstance(values.get(name), bool) and bool not in kinds  # in Python, True is an int
            if name in values and (is_other or not isinstance(values[name], accepted)):
                kind = _IN_WORDS[kinds[0]]
                raise ValueError(f"training setting {name} is {values[name]!r}; it must be {kind}")
        return cls(**values)
