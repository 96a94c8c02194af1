"""Speech, by silero-vad, whose model ships in its package. N waveform samples.

What it cannot tell: singing. It finds voices, over music too; a sung refrain may count as speech, an
instrument rarely
does. So this is a score, never a verdict; a tagger (`tags.py`) tells the two apart.
"""

from __future__ import annotations

import threading

import numpy as np

from pipeline.filters.extras import needed

SAMPLE_RATE = 16_000  # Hz, what the model was trained on
WINDOW = 512  # samples
VOICED = 0.5  # probability

_models = threading.local()  # the model keeps a state, so every thread has its own


def speech(waveform: np.ndarray, sample_rate: int) -> dict[str, float | list[float]]:
    """{"speech": share of time with a voice, "speech_over_time": mean probability of each second}.

    waveform: float32 [N] at a multiple of 16 kHz. Raises MissingExtraError where silero-vad or onnxruntime
    is not installed.
    """
    probabilities = _probabilities(_at_16k(waveform, sample_rate))
    if not probabilities.size:
        return {"speech": 0.0, "speech_over_time": []}
    per_second = SAMPLE_RATE / WINDOW
    seconds = np.split(probabilities, np.arange(per_second, len(probabilities), per_second).astype(int))
    return {
        "speech": round(float((probabilities > VOICED).mean()), 3),
        "speech_over_time": [round(float(second.mean()), 2) for second in seconds],
    }


def _probabilities(waveform: np.ndarray) -> np.ndarray:
    import torch

    if not hasattr(_models, "silero"):
        needed("onnxruntime")
        _models.silero = needed("silero_vad").load_silero_vad(onnx=True)
    usable = len(waveform) // WINDOW * WINDOW
    if not usable:
        return np.zeros(0, np.float32)
    with torch.inference_mode():
        _models.silero.reset_states()
        return _models.silero.audio_forward(torch.from_numpy(waveform[None, :usable]), sr=SAMPLE_RATE)[
            0
        ].numpy()


def _at_16k(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Averages of neighbouring samples: a plain low-pass is enough for a detector of voices."""
    factor, rest = divmod(sample_rate, SAMPLE_RATE)
    if rest:
        raise ValueError(f"speech wants a multiple of {SAMPLE_RATE} Hz, not {sample_rate}")
    return np.ascontiguousarray(waveform[: len(waveform) // factor * factor].reshape(-1, factor).mean(axis=1))
