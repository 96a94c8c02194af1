"""A video file in, a music file out: picture encoder, network and codec in a row.

B batch, F video frames, P patches, D width, K codebooks, T code frames, N waveform samples.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from gvmgen.checkpoint import ModelInfo, load_model
from gvmgen.decoding import EngineMaker, SamplingConfig, generate_codes
from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.fingerprint import encoder_fingerprint
from gvmgen.encoders.media import mux, probe, read_frames, write_waveform
from gvmgen.encoders.presets import encoder_config
from gvmgen.encoders.video import VideoEncoder
from gvmgen.fast import Engines, choose_engines
from gvmgen.model import GVMGen
from gvmgen.runs import find_model
from shards.spec import (
    CODE_RATE,
    FRAME_RATE,
    SAMPLE_RATE,
    fingerprint_differences,
    num_code_frames,
    num_frames,
)

FRAMES_AT_ONCE = 8
MAX_SEED = 2**32 - 1

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, how much there is


def _silent(stage: str, done: int, total: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Window:
    """A stretch of the piece, composed at once, in code frames."""

    start: int
    stop: int

    @property
    def frames(self) -> slice:
        """The video frames that the stretch shows."""
        return slice(self.start * FRAME_RATE // CODE_RATE, -(-self.stop * FRAME_RATE // CODE_RATE))


def windows(total: int, window_s: int) -> Iterator[Window]:
    """Cut `total` code frames into stretches of `window_s`, each going on from a third of the last."""
    yield Window(0, min(total, window_s * CODE_RATE))
    stop = window_s * CODE_RATE
    while stop < total:
        start = stop - window_s // 3 * CODE_RATE
        stop = start + window_s * CODE_RATE
        yield Window(start, min(total, stop))


@dataclass(frozen=True)
class Music:
    """A composed piece, exactly as long as its video."""

    waveform: np.ndarray  # float32 [N], mono, -1 … 1
    video: Path
    seed: int
    model: str  # which model composed it
    compose_s: float  # seconds it took
    sample_rate: int = SAMPLE_RATE

    @property
    def duration_s(self) -> float:
        return len(self.waveform) / self.sample_rate

    def save(self, path: str | Path) -> Path:
        """Write `.wav`, or the video with this music: `.mp4`, `.mkv`, `.mov`, the picture stream copied."""
        path = Path(path)
        if path.suffix.lower() == ".wav":
            write_waveform(path, self.waveform, self.sample_rate)
        else:
            mux(self.video, self.waveform, path)
        return path


class Composer:
    """A model and the encoders it was trained with. `gvmgen.GVMGen` is this class.

    >>> GVMGen.load().score("video.mp4").save("out.wav")
    """

    def __init__(
        self,
        model: GVMGen,
        info: ModelInfo,
        video: VideoEncoder,
        codec: AudioCodec,
        engines: Engines,
        name: str,
    ) -> None:
        self.model, self.info, self.video, self.codec = model, info, video, codec
        self.engines, self.name = engines, name

    @classmethod
    def load(
        cls,
        model: str | None = None,
        *,
        preset: str | None = None,
        runs: str = "runs",
        device: str | None = None,
        precision: str = "auto",
    ) -> Self:
        """Load `model`, else the newest checkpoint in `runs`, else the model in the box.

        precision: of the decoding, as `choose_engines` takes it.
        Raises ValueError where there is none, where `preset` is another than the model's, and where this
        machine's encoders differ from those that the model was trained with; MissingWeightsError where they
        cannot be had.
        """
        folder = find_model(model, Path(runs), preset)
        device = device or best_device()
        network, info = load_model(folder, device)
        if preset is not None and info.preset != preset:
            raise ValueError(
                f"{folder} is of preset {info.preset}, not {preset}. Leave out --preset {preset}"
            )
        encoders = encoder_config(info.preset)
        if info.codec is not None:
            encoders = replace(encoders, codec=info.codec)
        composer = cls(
            network.eval(),
            info,
            VideoEncoder.load(encoders, device, _feature_dtype(info)),
            AudioCodec.load(encoders, device),
            choose_engines(network, precision),
            f"{folder} (step {info.step})",
        )
        composer.check_encoders()
        return composer

    def check_encoders(self) -> None:
        """Raise ValueError where the encoders differ from those that the model was trained with."""
        if self.info.encoder_fingerprint is None:  # weights of others do not say
            return
        here = encoder_fingerprint(self.video, self.codec)
        differences = fingerprint_differences(here, self.info.encoder_fingerprint)
        if differences:
            raise ValueError(
                f"{self.name} was trained with other encoders: {'; '.join(differences)}. "
                "Use the weights it was trained with, or train anew on shards made with these"
            )

    @torch.inference_mode()
    def score(
        self,
        video: str | Path,
        *,
        seed: int = 0,
        duration_s: float | None = None,
        sampling: SamplingConfig | None = None,
        progress: Progress = _silent,
    ) -> Music:
        """Compose music exactly as long as a video, or for its first `duration_s` seconds.

        The same seed gives the same music. Raises MediaError where the file cannot be read as a video.
        """
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed {seed} is outside 0 … {MAX_SEED}")
        started = time.perf_counter()
        path = Path(video)
        duration_s = _duration(path, duration_s)
        conditions = self._watch(path, duration_s, progress)
        sampling = sampling or SamplingConfig()
        total = num_code_frames(duration_s)
        codes = compose(self.model, conditions, total, sampling, seed, progress, self.engines.make)
        waveform = play(self.codec, codes, round(duration_s * SAMPLE_RATE), progress)
        return Music(waveform, path, seed, self.name, time.perf_counter() - started)

    def _watch(self, path: Path, duration_s: float, progress: Progress) -> Tensor:
        """Conditions [F, M, dim] of the video's frames, M a frame: 1, or Q where the queries are preserved.

        A frame's conditions depend on no other frame, so a long video passes through in small batches.
        """
        total, conditions = num_frames(duration_s), []
        frames = read_frames(path, duration_s=duration_s)
        progress("watching", 0, total)
        while batch := list(itertools.islice(frames, FRAMES_AT_ONCE)):
            pixels = torch.stack([self.video.preprocess(frame) for frame in batch])  # [F, 3, H, W]
            features = self.video.encode(pixels)[None]  # [1, F, P, D]
            conditions.append(self.model.conditions(features).unflatten(1, (len(batch), -1))[0])
            progress("watching", sum(map(len, conditions)), total)
        return torch.cat(conditions)


def compose(
    model: GVMGen,
    conditions: Tensor,
    total: int,
    sampling: SamplingConfig,
    seed: int,
    progress: Progress = _silent,
    make_engine: EngineMaker | None = None,
) -> Tensor:
    """Codes int64 [1, K, total] for a video's conditions [F, M, dim], window by window."""
    codes = torch.empty(1, model.config.num_codebooks, 0, dtype=torch.int64, device=conditions.device)
    progress("composing", 0, total)
    for number, window in enumerate(windows(total, model.config.window_s)):

        def advance(done: int, _: int, start: int = window.start) -> None:
            progress("composing", min(start + done, total), total)

        extended = generate_codes(
            model,
            conditions[window.frames].flatten(0, 1)[None],  # [F, M, dim] -> [1, F * M, dim]
            window.stop - window.start,
            sampling,
            seeds=[seed + (number << 32)],  # windows of two seeds never share their random numbers
            prompt=codes[:, :, window.start :] if number else None,
            progress=advance,
            make_engine=make_engine,
        )
        codes = torch.cat([codes[:, :, : window.start], extended], dim=2)
    return codes


def play(codec: AudioCodec, codes: Tensor, num_samples: int, progress: Progress = _silent) -> np.ndarray:
    """Waveform float32 [num_samples], -1 … 1, of codes [1, K, T]."""
    progress("decoding", 0, codes.shape[2])
    waveform = codec.decode(codes)[0, :num_samples].float().cpu().numpy()
    progress("decoding", codes.shape[2], codes.shape[2])
    return waveform / max(1.0, np.abs(waveform).max())  # quieter rather than clipped


def _feature_dtype(info: ModelInfo) -> torch.dtype | None:
    """What the picture encoder computed in when the model was trained; None where that is not known."""
    if info.encoder_fingerprint is None:
        return None
    dtype = getattr(torch, info.encoder_fingerprint["video"]["dtype"])
    assert isinstance(dtype, torch.dtype)
    return dtype


def best_device() -> str:
    """CUDA where there is one, else the CPU. Apple's MPS lacks operators that the codec needs."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _duration(path: Path, wanted_s: float | None) -> float:
    """The video's duration in seconds, or the part of it that is wanted."""
    available_s = probe(path).duration_s
    if wanted_s is None:
        return available_s
    if not 0 < wanted_s <= available_s:
        raise ValueError(
            f"--duration {wanted_s}: {path} lasts {available_s:.2f} s; give a duration above 0 and up to that"
        )
    return wanted_s
