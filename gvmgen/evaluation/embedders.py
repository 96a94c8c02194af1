"""What turns music into vectors for the distances between sets, chosen by name: `--embedder clap=FOLDER`.

N waveform samples, R rows (windows of the music), D width, L classes. A model loads when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import gcd
from typing import Any

import numpy as np
import torch

from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.fingerprint import weights_sha256
from gvmgen.encoders.hub import hub_or_cache
from gvmgen.encoders.presets import MissingWeightsError, encoder_config
from gvmgen.evaluation.embedding import Embedder, Embedding
from gvmgen.evaluation.extras import needed
from shards.spec import CODE_RATE, SAMPLE_RATE

_WINDOW_S = 10  # what CLAP and the taggers of AudioSet were trained on
_LEAST_S = 1.0  # a shorter rest of the music is no window of its own


def load_embedder(choice: str) -> Embedder:
    """`encodec`, or a name with a hub id or a local folder, such as `clap=laion/larger_clap_music`.

    Raises ValueError for an unknown name, MissingWeightsError where there are no weights.
    """
    name, _, source = choice.partition("=")
    if name not in EMBEDDERS:
        raise ValueError(
            f"--embedder {choice}: unknown; known: {', '.join(EMBEDDERS)}, or such as clap=FOLDER"
        )
    return EMBEDDERS[name](source)


class _Encodec:
    """The codec's own latent, one mean a second. The codec in the box needs no network."""

    def __init__(self, source: str) -> None:
        config = encoder_config("pocket")
        self._codec = AudioCodec.load(replace(config, codec=source) if source else config)
        digest = self._codec.fingerprint["weights_sha256"][:12]
        self.description = f"EnCodec latent of {source or 'the pocket codec in the box'} (weights {digest})"

    def embed(self, waveform: np.ndarray) -> Embedding:
        latent = self._codec.latent(torch.from_numpy(waveform)[None])[0].numpy()  # [D, T]
        seconds = max(1, round(latent.shape[1] / CODE_RATE))
        return Embedding(rows=np.stack([s.mean(axis=1) for s in np.array_split(latent, seconds, axis=1)]))


class _Clap:
    """LAION's CLAP through transformers, one row a window of 10 s, half of it shared with the next."""

    default = "laion/larger_clap_music"

    def __init__(self, source: str) -> None:
        from transformers import ClapFeatureExtractor, ClapModel

        self._source = source or self.default
        with _weights_of(self._source):
            self._extractor = ClapFeatureExtractor.from_pretrained(self._source)
            self._model = ClapModel.from_pretrained(self._source).eval()
        self.description = f"CLAP {self._source} (weights {_digest(self._model)})"

    @torch.inference_mode()
    def embed(self, waveform: np.ndarray) -> Embedding:
        rate = self._extractor.sampling_rate
        windows = _windows(_resample(waveform, rate), rate, hop_s=_WINDOW_S / 2)
        rows = [
            self._model.get_audio_features(
                **self._extractor(window, sampling_rate=rate, return_tensors="pt")
            ).pooler_output[0]
            for window in windows
        ]
        return Embedding(rows=torch.stack(rows).numpy())


class _Tagger:
    """An audio classifier of transformers, such as AST: its last layer's mean, and its classes."""

    default = "MIT/ast-finetuned-audioset-10-10-0.4593"

    def __init__(self, source: str) -> None:
        from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

        self._source = source or self.default
        with _weights_of(self._source):
            self._extractor = AutoFeatureExtractor.from_pretrained(self._source)
            self._model = AutoModelForAudioClassification.from_pretrained(self._source).eval()
        self.description = f"tagger {self._source} (weights {_digest(self._model)})"

    @torch.inference_mode()
    def embed(self, waveform: np.ndarray) -> Embedding:
        rate = self._extractor.sampling_rate
        rows, classes = [], []
        for window in _windows(_resample(waveform, rate), rate, hop_s=_WINDOW_S):
            inputs = self._extractor(window, sampling_rate=rate, return_tensors="pt")
            found = self._model(**inputs, output_hidden_states=True)
            rows.append(found.hidden_states[-1][0].mean(dim=0))
            # Softmax, as audiocraft's KLD has it, although AudioSet's classes do not exclude each other.
            classes.append(found.logits[0].softmax(dim=-1))
        return Embedding(rows=torch.stack(rows).numpy(), classes=torch.stack(classes).mean(dim=0).numpy())


EMBEDDERS: dict[str, Callable[[str], Embedder]] = {"encodec": _Encodec, "clap": _Clap, "tagger": _Tagger}


@contextmanager
def _weights_of(source: str) -> Iterator[None]:
    """Within, a model is loaded from a folder, the hub or its cache."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with hub_or_cache():
            yield
    except OSError as error:
        raise MissingWeightsError(
            f"the weights of {source} are neither on disk nor reachable; go online once, name a local "
            "folder (--embedder clap=FOLDER), or take --embedder encodec, which is in the box"
        ) from error


def _digest(model: Any) -> str:
    return weights_sha256(model.state_dict().items())[:12]


def _resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    shared = gcd(rate, SAMPLE_RATE)
    found = needed("scipy.signal").resample_poly(waveform, rate // shared, SAMPLE_RATE // shared)
    return np.asarray(found, np.float32)


def _windows(waveform: np.ndarray, rate: int, hop_s: float) -> list[np.ndarray]:
    """Stretches of 10 s; the last may be shorter, but not under 1 s unless it is all there is."""
    size, hop = _WINDOW_S * rate, round(hop_s * rate)
    last = len(waveform) - min(size, round(_LEAST_S * rate))
    return [waveform[start : start + size] for start in range(0, max(1, last + 1), hop)]
