"""A piece of any length, window by window: its plan, its codes, its sound.

B batch, F video frames, M conditions a frame, K codebooks, T code frames, N waveform samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gvmgen.decoding import EngineMaker, SamplingConfig, generate_in_groups
from gvmgen.encoders.audio import AudioCodec
from gvmgen.finish.sound import Sound
from gvmgen.model import GVMGen, mark_anchor
from gvmgen.resuming import Unkept
from shards.spec import CODE_RATE, FRAME_RATE, SAMPLE_RATE

# Codes become sound in stretches of so many code frames, each with a run-up before it and a margin after it.
STRETCH, RUN_UP, MARGIN = 60 * CODE_RATE, 10 * CODE_RATE, 8
STRIDE = SAMPLE_RATE // CODE_RATE
CARRIED_S = 10  # of music that each window goes on from

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, how much there is
UNKEPT = Unkept()


def silent(stage: str, done: int, total: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Window:
    """A stretch of the piece, composed at once, in code frames."""

    start: int
    stop: int
    end: int  # of the music it composes for, of which it may play only a part: until `stop`

    @property
    def frames(self) -> slice:
        """The video frames that it sees."""
        return slice(self.start * FRAME_RATE // CODE_RATE, -(-self.end * FRAME_RATE // CODE_RATE))

    @property
    def frames_and_next(self) -> slice:
        """With the frame that comes after them, if there is one: it tells of a cut in the last second."""
        return slice(self.frames.start, self.frames.stop + 1)


def planned(total: int, window_s: int, heard: int | None = None, anchor_s: int = 0) -> list[Window]:
    """Cut `total` code frames into stretches of `window_s`, each going on from the end of the last.

    heard: how many of the code frames are wanted. The windows are those of the whole piece, so that its
    beginning is the same music. anchor_s: how much of every window but the first is the piece's opening.
    """
    heard = total if heard is None else heard
    windows = [(0, min(total, window_s * CODE_RATE))]
    length_s = window_s - anchor_s
    while windows[-1][1] < min(heard, total):
        start = windows[-1][1] - carried_s(length_s) * CODE_RATE
        windows.append((start, min(total, start + length_s * CODE_RATE)))
    return [Window(start, min(heard, end), end) for start, end in windows]


def carried_s(window_s: int) -> int:
    """Seconds of music that a window goes on from; at least a sixth of it is new."""
    return min(CARRIED_S, window_s * 5 // 6)


def compose(
    model: GVMGen,
    conditions: Tensor,
    plan: Sequence[Window],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    progress: Progress = silent,
    make_engine: EngineMaker | None = None,
    kept: Unkept = UNKEPT,
    lead: Tensor | None = None,
    glimpses: Tensor | None = None,
    num_groups: int = 1,
) -> Tensor:
    """Codes int64 [B, K, T], a row a seed, for a video's conditions [F, M, dim], window by window.

    lead: codes int64 [K, T'] that every row begins with; frames and plan count from their beginning.
    glimpses: [F, 2 D], which `sampling.follow` needs.
    num_groups: of rows that are composed at once, each by a thread of its own.
    """
    if lead is None:
        lead = no_lead(model)
    codes, total = lead.to(conditions.device).expand(len(seeds), -1, -1), plan[-1].stop
    anchor_s = model.config.anchor_s
    progress("composing", 0, total)
    for number, window in enumerate(plan):
        anchor = 0 if number == 0 else anchor_s * CODE_RATE  # code frames
        opening = slice(0 if number == 0 else anchor_s * FRAME_RATE)

        def advance(done: int, _: int, start: int = window.start - anchor) -> None:
            progress("composing", min(start + done, total), total)

        seen = torch.cat([conditions[opening], conditions[window.frames]]).flatten(0, 1)[None]
        if anchor:
            seen = mark_anchor(model.config, seen, torch.ones(1, dtype=torch.bool, device=seen.device))
        glimpsed = None
        if glimpses is not None:
            glimpsed = torch.cat([glimpses[opening], glimpses[window.frames_and_next]])
            glimpsed = glimpsed.expand(len(seeds), -1, -1)
        make = partial(
            generate_in_groups,
            num_groups,
            model,
            seen.expand(len(seeds), -1, -1),  # [1, F * M, dim] -> [B, F * M, dim]
            anchor + window.stop - window.start,
            sampling,
            seeds=[seed + (number << 32) for seed in seeds],  # no two windows share random numbers
            prompt=torch.cat([codes[:, :, :anchor], codes[:, :, window.start :]], dim=2),
            progress=advance,
            make_engine=make_engine,
            glimpses=glimpsed,
        )
        extended = kept.tensor(f"window_{number:05d}", make)
        codes = torch.cat([codes[:, :, : window.start], extended[:, :, anchor:].to(codes.device)], dim=2)
        advance(anchor + window.stop - window.start, 0)
    return codes


def no_lead(model: GVMGen) -> Tensor:
    """Codes int64 [K, 0]: a piece that begins with its video."""
    return torch.empty(model.config.num_codebooks, 0, dtype=torch.int64)


def play(
    codec: AudioCodec, codes: Tensor, num_samples: int, progress: Progress = silent, first: int = 0
) -> list[Sound]:
    """The sound of each row of codes [B, K, T] from code frame `first` on, `num_samples` long.

    A stretch at a time: the codec's memory does not grow with the piece. Each starts early, as the
    codec's LSTM hears what went before; after `RUN_UP` it has forgotten how it began.
    """
    sounds = [Sound(SAMPLE_RATE) for _ in codes]
    total, done = (codes.shape[2] - first) * len(codes), 0
    progress("decoding", 0, total)
    for row, sound in zip(codes, sounds, strict=True):
        for start in range(first, codes.shape[2], STRETCH):
            stop = min(start + STRETCH, codes.shape[2])
            waveform = _stretch(codec, row, start, stop)
            sound.append(waveform[: num_samples - sound.num_samples])
            done += stop - start
            progress("decoding", done, total)
    return sounds


def _stretch(codec: AudioCodec, codes: Tensor, start: int, stop: int) -> np.ndarray:
    """Waveform float32 [N] of the code frames from start to stop of codes [K, T]."""
    first = max(0, start - RUN_UP)
    waveform = codec.decode(codes[None, :, first : stop + MARGIN])[0].float().cpu().numpy()
    return waveform[(start - first) * STRIDE : (stop - first) * STRIDE]
