"""Loudness of a programme, ITU-R BS.1770-4 for one channel. N waveform samples."""

from __future__ import annotations

import numpy as np

BLOCK_S, HOP_S = 0.4, 0.1
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0  # LUFS, LU
OFFSET = -0.691  # BS.1770: a 997-Hz sine at 0 dBFS in one channel reads -3.01
# The two stages of the K-weighting, (b, a) at 48 kHz: BS.1770-4, tables 1 and 2.
STAGES = (
    ((1.53512485958697, -2.69169618940638, 1.19839281085285), (1.0, -1.69065929318241, 0.73248077421585)),
    ((1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621)),
)


def loudness(waveform: np.ndarray, sample_rate: int) -> dict[str, float]:
    """{"loudness": integrated loudness in LUFS}, -70 for silence. waveform: float [N].

    The weighting is applied to each block's spectrum; over blocks of 0.4 s that equals filtering to 0.1 LU.
    """
    blocks = _blocks(waveform.astype(np.float64), sample_rate)  # [blocks, N]
    power = _weighted_power(blocks, sample_rate)
    gated = power[_lufs(power) > ABSOLUTE_GATE]
    if gated.size:
        gated = gated[_lufs(gated) > _lufs(gated.mean()) + RELATIVE_GATE]
    return {"loudness": round(float(_lufs(gated.mean())), 2) if gated.size else ABSOLUTE_GATE}


def _blocks(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    size, hop = round(BLOCK_S * sample_rate), round(HOP_S * sample_rate)
    padded = np.pad(waveform, (0, max(0, size - len(waveform))))
    return np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]


def _weighted_power(blocks: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mean square of each K-weighted block, through Parseval's theorem."""
    size = blocks.shape[1]
    gain = _weighting(np.fft.rfftfreq(size, 1 / sample_rate))
    gain[1 : (size + 1) // 2] *= 2  # the other half of the spectrum
    chunks = (blocks[i : i + 64] for i in range(0, len(blocks), 64))  # a few at a time, for memory
    return np.concatenate([(np.abs(np.fft.rfft(c)) ** 2) @ gain for c in chunks]) / size**2


def _weighting(frequencies: np.ndarray) -> np.ndarray:
    """|H(f)|² of both stages at these frequencies in Hz, whatever the waveform's own rate."""
    z = np.exp(-2j * np.pi * frequencies / 48_000)
    gain = np.ones_like(frequencies)
    for b, a in STAGES:
        gain *= np.abs(np.polyval(b[::-1], z) / np.polyval(a[::-1], z)) ** 2
    return gain


def _lufs(power: np.ndarray) -> np.ndarray:
    return OFFSET + 10 * np.log10(np.maximum(power, 1e-12))
