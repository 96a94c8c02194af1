"""A synthetic voice, from the espeak-ng library that the `espeakng-loader` package brings."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
import pytest

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and nobody in the village takes notice of it. "
    "We talk all the time while the music plays, about birds and trees and ships on the wide sea."
)


@cache
def spoken(sample_rate: int, text: str = SENTENCES) -> np.ndarray:
    """float32 [N] speech in -1 … 1. Skips the test where the synthesiser is not installed."""
    loader = pytest.importorskip("espeakng_loader", reason="espeakng-loader brings the voice for this test")
    library = ctypes.CDLL(loader.get_library_path())
    pieces: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(samples, count, _events):  # type: ignore[no-untyped-def]
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    folder = Path(loader.get_data_path()).parent
    synchronous_retrieval = 2
    own_rate = library.espeak_Initialize(synchronous_retrieval, 0, str(folder).encode(), 0)
    assert own_rate > 0, f"espeak-ng finds no voices in {folder}"
    library.espeak_SetSynthCallback(collect)
    library.espeak_SetVoiceByName(b"en")
    utf8 = 1
    library.espeak_Synth(text.encode(), len(text) + 1, 0, 0, 0, utf8, None, None)
    library.espeak_Synchronize()
    library.espeak_Terminate()
    voice = np.concatenate(pieces).astype(np.float32) / 32768
    times = np.arange(int(len(voice) / own_rate * sample_rate)) / sample_rate
    return np.interp(times, np.arange(len(voice)) / own_rate, voice).astype(np.float32)
