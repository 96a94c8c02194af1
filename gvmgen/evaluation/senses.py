"""The frozen encoders an evaluation model reads through: files in, a vector a second out. t whole seconds."""

from __future__ import annotations

import itertools
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.fingerprint import encoder_fingerprint
from gvmgen.encoders.media import read_frames, read_waveform
from gvmgen.encoders.presets import encoder_config
from gvmgen.encoders.video import VideoEncoder
from gvmgen.evaluation.seconds import music_seconds, video_seconds
from shards.spec import CODE_RATE, SAMPLE_RATE, fingerprint_differences

FRAMES_AT_ONCE = 8

Video = str | Path | Tensor  # a file, or what `watch` made of one
Music = str | Path | np.ndarray | Tensor  # a file, a waveform (mono, 32 kHz), or what `hear` made of one


class Senses:
    """A preset's encoders, loaded when a file is first to be read."""

    def __init__(self, preset: str, fingerprint: dict[str, Any], device: str | torch.device = "cpu") -> None:
        """fingerprint: what the encoders must have. ValueError, once they load, where they have another."""
        self.preset, self.fingerprint, self.device = preset, fingerprint, torch.device(device)

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
        dtype = getattr(torch, self.fingerprint["video"]["dtype"])
        eyes = VideoEncoder.load(encoder_config(self.preset), self.device, dtype)
        self._check("video", eyes.fingerprint)
        return eyes

    @cached_property
    def _ears(self) -> AudioCodec:
        ears = AudioCodec.load(encoder_config(self.preset), self.device)
        self._check("audio", ears.fingerprint)
        return ears

    def _check(self, kind: str, here: dict[str, Any]) -> None:
        differences = fingerprint_differences(here, self.fingerprint[kind])
        if differences:
            raise ValueError(
                f"the evaluator was trained with other encoders: {'; '.join(differences)}. "
                "Train one on what these make: gvm-eval train"
            )


def fingerprint_of(preset: str) -> dict[str, Any]:
    """Of a preset's encoders as this machine loads them. Raises MissingWeightsError without their weights."""
    config = encoder_config(preset)
    return encoder_fingerprint(VideoEncoder.load(config), AudioCodec.load(config))
