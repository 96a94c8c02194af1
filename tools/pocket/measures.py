"""Distances between waveforms that the codec's training and its evaluation share."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

SAMPLE_RATE = 32_000
MEL_WINDOWS = (256, 512, 1024, 2048)  # samples
NUM_MELS = 64


@cache
def _mel_matrix(window: int) -> Tensor:
    """Triangles on the mel scale [window / 2 + 1, mels]; one narrower than a bin is widened to it."""
    num_mels = min(NUM_MELS, window // 8)
    top = 2595 * torch.log10(torch.tensor(1 + SAMPLE_RATE / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, float(top), num_mels + 2) / 2595) - 1)
    bins = torch.linspace(0, SAMPLE_RATE / 2, window // 2 + 1)[:, None]
    width = SAMPLE_RATE / window
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2]).clamp(min=width)
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1]).clamp(min=width)
    matrix = torch.minimum(rising, falling).clamp(min=0)
    return matrix / matrix.sum(0).clamp(min=1e-6)


def log_mel(waveform: Tensor, window: int) -> Tensor:
    """log10 mel magnitudes of [B, N]: [B, frames, mels]; the floor is -60 dB of full scale."""
    spectrum = torch.stft(
        waveform, window, window // 4, window=torch.hann_window(window), return_complex=True, normalized=False
    )
    magnitude = torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-12) / (window / 4)
    return torch.log10((magnitude.transpose(1, 2) @ _mel_matrix(window)).clamp(min=1e-3 / 4))


def mel_distance(estimate: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of log10 mel over four window lengths. Both [B, N]; returns a scalar."""
    differences = [(log_mel(estimate, w) - log_mel(target, w)).abs().mean() for w in MEL_WINDOWS]
    return torch.stack(differences).mean()


def si_sdr_db(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB of [B, N]: [B] (Le Roux et al. 2019)."""
    estimate = estimate - estimate.mean(-1, keepdim=True)
    target = target - target.mean(-1, keepdim=True)
    scale = (estimate * target).sum(-1, keepdim=True) / (target.square().sum(-1, keepdim=True) + 1e-8)
    projection = scale * target
    noise = (estimate - projection).square().sum(-1)
    return 10 * torch.log10((projection.square().sum(-1) + 1e-8) / (noise + 1e-8))
