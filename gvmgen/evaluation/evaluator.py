"""A trained evaluation model and the encoders it reads through: files in, scores out.

t whole seconds, N videos, M pieces of music.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.media import read_frames, read_waveform
from gvmgen.encoders.presets import POCKET_DIR, encoder_config
from gvmgen.encoders.video import VideoEncoder
from gvmgen.evaluation.config import EvaluatorConfig
from gvmgen.evaluation.model import EvaluationModel, similarities
from gvmgen.evaluation.seconds import make_pair, music_seconds, video_seconds
from gvmgen.runs import RunFolder, write_text
from shards.spec import CODE_RATE, SAMPLE_RATE, fingerprint_differences

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TRAINING = "training"  # in a run's folder: checkpoints to go on from
EVALUATOR_IN_THE_BOX = POCKET_DIR / "evaluator"
FRAMES_AT_ONCE = 8

Video = str | Path | Tensor  # a file, or what `watch` made of one
Music = str | Path | np.ndarray | Tensor  # a file, a waveform (mono, 32 kHz), or what `hear` made of one


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


class Evaluator:
    """Scores videos and music of any length. Encoders are loaded when a file is first to be read."""

    def __init__(
        self, model: EvaluationModel, info: EvaluatorInfo, device: str | torch.device = "cpu"
    ) -> None:
        self.model, self.info, self.device = model.eval().to(device), info, torch.device(device)

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

    @torch.inference_mode()
    def watch(self, video: Video) -> Tensor:
        """A video as the model reads it: float32 [t, video_dim]. Seconds that were watched pass through."""
        if isinstance(video, Tensor):
            return video.to(self.device)
        frames, seconds = read_frames(video), []
        while batch := list(itertools.islice(frames, FRAMES_AT_ONCE)):
            pixels = torch.stack([self._eyes.preprocess(frame) for frame in batch])
            seconds.append(video_seconds(self._eyes.encode(pixels)))
        return torch.cat(seconds).to(self.device)

    @torch.inference_mode()
    def hear(self, music: Music) -> Tensor:
        """Music as the model reads it: float32 [t, music_dim]. What was heard passes through."""
        if isinstance(music, Tensor):
            return music.to(self.device)
        waveform = music if isinstance(music, np.ndarray) else read_waveform(music)
        if len(waveform) < SAMPLE_RATE:
            raise ValueError(f"music of {len(waveform) / SAMPLE_RATE:.2f} s; at least a second is needed")
        codes = self._ears.encode(torch.from_numpy(waveform)[None])  # [1, K, T]
        return self.hear_codes(codes)

    @torch.inference_mode()
    def hear_codes(self, codes: Tensor) -> Tensor:
        """The same of codes that are there already, int64 [1, K, T] of at least a second."""
        assert codes.shape[-1] >= CODE_RATE, codes.shape
        return music_seconds(self._ears.dequantise(codes)[0]).to(self.device)

    @cached_property
    def _eyes(self) -> VideoEncoder:
        dtype = getattr(torch, self.info.encoder_fingerprint["video"]["dtype"])
        eyes = VideoEncoder.load(encoder_config(self.info.preset), self.device, dtype)
        self._check("video", eyes.fingerprint)
        return eyes

    @cached_property
    def _ears(self) -> AudioCodec:
        ears = AudioCodec.load(encoder_config(self.info.preset), self.device)
        self._check("audio", ears.fingerprint)
        return ears

    def _check(self, kind: str, here: dict[str, Any]) -> None:
        differences = fingerprint_differences(here, self.info.encoder_fingerprint[kind])
        if differences:
            raise ValueError(
                f"the evaluator was trained with other encoders: {'; '.join(differences)}. "
                "Train one on shards made with these: gvm-eval train"
            )


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
