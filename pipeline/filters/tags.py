"""Speech, singing and music over time, by an AudioSet tagger from a local folder in the transformers format.

Any `AutoModelForAudioClassification` whose labels are AudioSet's will do, such as
MIT/ast-finetuned-audioset-10-10-0.4593.
N waveform samples.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

WINDOW_S = 10  # what AudioSet's taggers were trained on
LABELS = {
    "music": ("Music",),
    "singing": ("Singing", "Vocal music", "Choir", "Rapping"),
    "talking": ("Speech",),
}


def tags(waveform: np.ndarray, sample_rate: int, model_folder: Path) -> dict[str, float | list[float]]:
    """{"music", "singing", "talking": mean probabilities, and each `…_over_time` per window of 10 s}.

    waveform: float32 [N]. Raises ValueError where the folder holds no tagger, or its labels are not
    AudioSet's.
    """
    model, extractor = _load(model_folder)
    size = WINDOW_S * sample_rate
    windows = [waveform[i : i + size] for i in range(0, max(1, len(waveform) - size // 2), size)]
    probabilities = np.stack(
        [_probabilities(model, extractor, w, sample_rate) for w in windows]
    )  # [windows, labels]
    scores: dict[str, float | list[float]] = {}
    for name, columns in _columns(model.config.label2id, model_folder).items():
        over_time = probabilities[:, columns].max(axis=1)
        scores[name] = round(float(over_time.mean()), 3)
        scores[f"{name}_over_time"] = [round(float(p), 2) for p in over_time]
    return scores


def _probabilities(model: Any, extractor: Any, window: np.ndarray, sample_rate: int) -> np.ndarray:
    import torch

    rate = extractor.sampling_rate
    inputs = extractor(_resample(window, sample_rate, rate), sampling_rate=rate, return_tensors="pt")
    with torch.inference_mode():
        return (
            torch.sigmoid(model(**inputs).logits)[0].float().numpy()
        )  # AudioSet's labels do not exclude each other


def _resample(waveform: np.ndarray, old_rate: int, new_rate: int) -> np.ndarray:
    """Through the spectrum: exact below the lower Nyquist frequency."""
    if old_rate == new_rate:
        return waveform
    wanted = round(len(waveform) * new_rate / old_rate)
    spectrum = np.fft.rfft(waveform)[: wanted // 2 + 1]
    return (np.fft.irfft(spectrum, wanted) * (wanted / len(waveform))).astype(np.float32)


def _columns(label2id: dict[str, int], folder: Path) -> dict[str, list[int]]:
    columns = {
        name: [label2id[label] for label in labels if label in label2id] for name, labels in LABELS.items()
    }
    lacking = [name for name, found in columns.items() if not found]
    if lacking:
        raise ValueError(
            f"{folder}: its labels have nothing for {', '.join(lacking)}; wants an AudioSet tagger"
        )
    return columns


_LOADING = threading.Lock()  # transformers' lazy imports bear one thread only


def _load(folder: Path) -> tuple[Any, Any]:
    with _LOADING:
        return _loaded(folder)


@lru_cache(maxsize=1)
def _loaded(folder: Path) -> tuple[Any, Any]:
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}: no tagger there; wants a folder in the transformers format, with config.json"
        )
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    try:
        model = AutoModelForAudioClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
        extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: cannot be loaded as a tagger: {error}") from error
    return model.eval(), extractor
