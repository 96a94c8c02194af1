"""A trained evaluation model and the encoders it reads through: files in, scores out.

t whole seconds, N videos, M pieces of music.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gvmgen.encoders.presets import POCKET_DIR
from gvmgen.evaluation.config import EvaluatorConfig
from gvmgen.evaluation.model import EvaluationModel, similarities
from gvmgen.evaluation.seconds import make_pair
from gvmgen.evaluation.senses import Music, Senses, Video
from gvmgen.runs import RunFolder, write_text

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TRAINING = "training"  # in a run's folder: checkpoints to go on from
EVALUATOR_IN_THE_BOX = POCKET_DIR / "evaluator"


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well one piece of music fits one video."""

    cmr: float  # similarity, -1 … 1, leak-free: neither side saw the other before
    ta: float  # mean of the alignment's diagonal, 0 … 1
    ta_chance: float  # what TA is when every second attends to all seconds alike: 1 / t
    alignment: np.ndarray  # a(v, m), float32 [t, t], rows sum to 1


@dataclass(frozen=True, kw_only=True)
class EvaluatorInfo:
    """What an evaluator's folder says beside sizes and weights."""

    preset: str
    encoder_fingerprint: dict[str, Any]
    step: int
    training: dict[str, Any]  # the recipe


class Evaluator(Senses):
    """Scores videos and music of any length."""

    def __init__(
        self, model: EvaluationModel, info: EvaluatorInfo, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(info.preset, info.encoder_fingerprint, device)
        self.model, self.info = model.eval().to(device), info

    @torch.inference_mode()
    def score(self, video: Video, music: Music) -> Score:
        """Both sides are cut to whole seconds, and to the shorter of the two.

        Raises MediaError where a file cannot be read, ValueError where a side lasts less than a second.
        """
        pair = make_pair("", self.watch(video), self.hear(music))
        seen, heard = self.model.video_tower(pair.video[None]), self.model.music_tower(pair.music[None])
        alignment = self.model.alignment(seen, heard)[0]
        return Score(
            cmr=float(similarities(seen, heard)),
            ta=float(alignment.diagonal().mean()),
            ta_chance=1 / pair.num_seconds,
            alignment=alignment.cpu().numpy(),
        )

    @torch.inference_mode()
    def matrix(self, videos: Sequence[Video], music: Sequence[Music]) -> np.ndarray:
        """CMR's similarity of every video with every piece of music: float32 [N, M].

        To rank takes of one video: `matrix([video], takes)[0].argsort()[::-1]`.
        """
        seen = [self.model.video_tower(self.watch(video)[None]) for video in videos]
        heard = [self.model.music_tower(self.hear(piece)[None]) for piece in music]
        rows = [[float(similarities(*_cut(a, b))) for b in heard] for a in seen]
        return np.array(rows, np.float32).reshape(len(seen), len(heard))


def _cut(video: Tensor, music: Tensor) -> tuple[Tensor, Tensor]:
    shorter = min(video.shape[1], music.shape[1])
    return video[:, :shorter], music[:, :shorter]


def load_evaluator(folder: str | Path | None = None, device: str | torch.device = "cpu") -> Evaluator:
    """The evaluator of a folder: a run of `gvm-eval train`, finished or not, or a model folder.

    folder: None takes the one in the box, which reads through pocket's encoders.
    Raises FileNotFoundError where there is none, ValueError where its files cannot be used.
    """
    folder = Path(EVALUATOR_IN_THE_BOX if folder is None else folder)
    if not (folder / CONFIG).is_file():
        folder = RunFolder(folder / TRAINING).latest() or folder
    model, info = read_evaluator(folder)
    return Evaluator(model, info, device)


def save_evaluator(
    folder: Path, model: EvaluationModel, info: EvaluatorInfo, dtype: torch.dtype = torch.float32
) -> None:
    """Write a model folder; `config.json` comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS)
    values = {"format_version": FORMAT_VERSION, "evaluator": vars(model.config), **vars(info)}
    write_text(folder / CONFIG, json.dumps(values, indent=2, sort_keys=True) + "\n")


def read_evaluator(folder: Path) -> tuple[EvaluationModel, EvaluatorInfo]:
    """A model folder, its weights as float32."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: holds no evaluator. Train one: gvm-eval train --run runs/eval")
    try:
        values = json.loads(path.read_text())
        if values.pop("format_version") != FORMAT_VERSION:
            raise ValueError(f"another format_version than {FORMAT_VERSION}, which this program reads")
        model = EvaluationModel(EvaluatorConfig.from_json(values.pop("evaluator")))
        info = EvaluatorInfo(**values)
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()})
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{path}: is no evaluator that can be used: {error}. Train one: gvm-eval train"
        ) from error
    return model.eval(), info
