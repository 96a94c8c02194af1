"""A long piece is composed window by window; one hears nothing of it where a window ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import stft
from torch import Tensor

from gvmgen import GVMGen
from gvmgen.decoding import SamplingConfig
from gvmgen.encoders.media import read_frames
from gvmgen.encoders.presets import POCKET_DIR
from gvmgen.generate import Composer
from gvmgen.runs import MODEL_IN_THE_BOX
from gvmgen.windows import Window, compose, planned, play
from shards.spec import CODE_RATE, SAMPLE_RATE

HOP = SAMPLE_RATE // 100  # a frame of the spectrum is 10 ms
AROUND = 50  # frames: half a second before a moment, and half a second after it
LENGTH_S = 155
SEEDS = [1, 2, 3]


@pytest.fixture(scope="module")
def composer() -> Composer:
    return GVMGen.load(str(MODEL_IN_THE_BOX), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def watched(composer: Composer) -> dict[str, Tensor]:
    """Of a picture that stands still, so that nothing but a seam could change the music there."""
    frame = next(read_frames(Path(POCKET_DIR) / "example.mp4"))
    with torch.inference_mode():
        features = composer.video.encode(composer.video.preprocess(frame)[None])
        assert composer.model.frame_codes is not None
        return {
            "conditions": composer.model.conditions(features[None])[0, :, None].expand(LENGTH_S, -1, -1),
            "glimpses": composer.model.frame_codes.glimpses(features[None])[0].expand(LENGTH_S, -1),
        }


def changes(waveform: np.ndarray) -> dict[str, np.ndarray]:
    """How far the half second after each frame is from the one before it: in spectrum, and in loudness."""
    _, _, spectrum = stft(waveform, nperseg=1024, noverlap=1024 - HOP)
    power = np.abs(spectrum[1:257].reshape(32, 8, -1)) ** 2  # up to 8 kHz, in 32 bands
    found = {}
    for name, bands in {"spectrum": power.mean(axis=1), "loudness": power.sum(axis=(0, 1))[None]}.items():
        sums = np.cumsum(np.log10(bands + 1e-9), axis=1)
        means = (sums[:, AROUND:] - sums[:, :-AROUND]) / AROUND
        found[name] = np.abs(means[:, AROUND:] - means[:, :-AROUND]).mean(axis=0)
    return found


def rank_of_seams(composer: Composer, codes: Tensor, seams_s: list[float]) -> dict[str, float]:
    """Share of all moments that change less than a seam does, averaged over seams: 0.5 if no different."""
    ranks: dict[str, list[float]] = {"spectrum": [], "loudness": []}
    for sound in play(composer.codec, codes, codes.shape[2] * SAMPLE_RATE // CODE_RATE):
        for name, change in changes(np.asarray(sound.samples)).items():
            ranks[name] += [float((change < change[round(at * 100) - AROUND]).mean()) for at in seams_s]
    return {name: float(np.mean(shares)) for name, shares in ranks.items()}


@pytest.mark.slow
@torch.inference_mode()
def test_no_seam_between_windows_stands_out_and_windows_on_their_own_would(
    composer: Composer, watched: dict[str, Tensor]
) -> None:
    """Where the picture decides much, windows on their own would not stand out either: so also without."""
    config = composer.model.config
    plan = planned(LENGTH_S * CODE_RATE, config.window_s, anchor_s=config.anchor_s)
    seams_s = [before.stop / CODE_RATE for before in plan[:-1]]
    assert len(seams_s) >= 14

    def composed(windows: list[Window], seed: int, sampling: SamplingConfig) -> Tensor:
        with composer.engines.at_work():
            return compose(
                composer.model,
                watched["conditions"],
                windows,
                sampling,
                [seed + each for each in SEEDS],
                make_engine=composer.engines.make,
                glimpses=watched["glimpses"],
            )

    free = composer.sampling(follow=0.0, guidance=1.0)
    following = rank_of_seams(composer, composed(plan, 0, composer.sampling()), seams_s)
    joined = rank_of_seams(composer, composed(plan, 0, free), seams_s)
    stretches = zip([0, *seams_s], [*seams_s, LENGTH_S], strict=True)
    lengths = [round((end - begin) * CODE_RATE) for begin, end in stretches]
    alone = [composed([Window(0, length, length)], 1000 * n, free) for n, length in enumerate(lengths, 1)]
    apart = rank_of_seams(composer, torch.cat(alone, dim=2), seams_s)
    print(f"seams, as it composes: {following}; without guidance: {joined}; of windows on their own: {apart}")
    for name in ("spectrum", "loudness"):
        assert following[name] < 0.62, following  # by chance 0.5 ± 0.045
        assert joined[name] < 0.62 < apart[name], (name, joined, apart)
