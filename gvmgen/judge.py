"""The evaluation model as a judge of takes: how well music belongs to its video.

It reads what composing leaves at hand, features and codes, so that no encoder runs a second time.
F video frames, P patches, D width, K codebooks, T code frames, t whole seconds.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gvmgen.evaluation.evaluator import EVALUATOR_IN_THE_BOX, Evaluator, load_evaluator
from gvmgen.evaluation.model import similarities
from gvmgen.evaluation.seconds import make_pair, music_seconds, video_seconds
from gvmgen.generate import Composer, Music
from shards.spec import CODE_RATE, fingerprint_differences

STRETCH_S = 30  # long pieces are judged in stretches: the model compares every second with every other


class OtherEncodersError(ValueError):
    """An evaluator reads through other encoders than the model."""


class Judge:
    """Gives a piece of music its CMR, -1 … 1, higher where it belongs to its video; leak-free."""

    def __init__(self, evaluator: Evaluator, composer: Composer) -> None:
        self.model, self.codec = evaluator.model, composer.codec

    @staticmethod
    def look(features: Tensor) -> Tensor:
        """What is to be kept of a video: features [F, P, D] -> float32 [F, 3 D]."""
        return video_seconds(features)

    @torch.inference_mode()
    def cmr(self, music: Music) -> float | None:
        """Of a piece for which `look` was asked; None for less than a second."""
        assert music.codes is not None
        assert music.seen is not None
        if music.codes.shape[-1] < CODE_RATE:
            return None
        heard = music_seconds(self.codec.dequantise(music.codes[None])[0]).to(music.seen.device)
        pair = make_pair("", music.seen, heard)
        num_stretches = max(1, round(pair.num_seconds / STRETCH_S))
        stretches = zip(
            pair.video.tensor_split(num_stretches), pair.music.tensor_split(num_stretches), strict=True
        )
        total = sum(len(video) * self._similarity(video, music) for video, music in stretches)
        return total / pair.num_seconds

    def _similarity(self, video: Tensor, music: Tensor) -> float:
        """Of seconds of video [t, D'] and seconds of music [t, D'']."""
        return float(similarities(self.model.video_tower(video[None]), self.model.music_tower(music[None])))


def load_judge(composer: Composer, folder: str | Path | None = None) -> Judge:
    """By the evaluator of a folder, else the one in the box.

    Raises OtherEncodersError where its encoders are not the composer's, else as `load_evaluator` does.
    """
    evaluator, here = load_evaluator(folder, composer.model.decoder.heads.weight.device), composer.encoders
    trained = {name: part for name, part in evaluator.info.encoder_fingerprint.items() if name in here}
    differences = fingerprint_differences(here, trained)
    if differences:
        raise OtherEncodersError(
            f"{folder or EVALUATOR_IN_THE_BOX}: was trained with other encoders than the model's: "
            f"{'; '.join(differences)}. Train one on shards made with these: gvm-eval train"
        )
    return Judge(evaluator, composer)
