"""Conditions -> codes: the sampling loop, and the plain engine that computes its steps.

B batch, K codebooks, T code frames, S = T + K - 1 delayed steps, V codebook size, M length of the visual
memory, R rows of an engine (2 B under guidance: the rows that see the video, then the same without it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gvmgen.delay import delay, undelay
from gvmgen.model import FrameCodes, GVMGen, KeyValue

Progress = Callable[[int, int], None]
EngineMaker = Callable[[Tensor, int], "DecodingEngine"]  # conditions [R, M, dim], how many steps -> engine

UNFILLED = -1  # in delayed steps: a code that is still to be chosen


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next code is chosen."""

    guidance: float = 3.0  # weight of the video against no video; 1 turns guidance off and halves the work
    follow: float = 0.0  # weight of what the frames alone say of a code; 0, or a network with `frame_codes`
    top_k: int = 250  # 0: all
    top_p: float = 0.0  # smallest set of ids whose probabilities reach top_p; 0: all
    temperature: float = 1.0  # 0: always the most likely id

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; give 0 (all ids) or more")
        if not 0.0 <= self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}; give 0 (all ids) … 1")
        if not 0.0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; give 0 (greedy) or more")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance is {self.guidance}; give a number, 1 for none")
        if not 0.0 <= self.follow < math.inf:
            raise ValueError(f"follow is {self.follow}; give 0 (none) or more")


class DecodingEngine(Protocol):
    """Computes the decoder's next logits. It holds R rows and remembers the steps it has read."""

    def prefill(self, codes: Tensor) -> Tensor:
        """Read the first steps, int64 [R, K, S]. Returns the logits after the last, float32 [R, K, V]."""
        ...

    def step(self, codes: Tensor) -> Tensor:
        """Read one more step, int64 [R, K]. Returns the logits after it, float32 [R, K, V]."""
        ...


class PlainEngine:
    """The network itself, with preallocated caches; the visual memory's keys and values are computed once."""

    def __init__(self, model: GVMGen, conditions: Tensor, max_steps: int) -> None:
        """conditions: [R, M, dim]. max_steps: how many steps the caches hold."""
        config = model.config
        weight = model.decoder.heads.weight
        self.decoder = model.decoder
        self.num_read = 0
        self.num_conditions = conditions.shape[1]
        conditions = conditions.to(weight.device, weight.dtype)
        self.memories = self.decoder.memories(conditions)
        self.summary = model.summary(conditions)
        shape = (conditions.shape[0], config.num_heads, max_steps, config.dim // config.num_heads)
        self.caches = [
            KeyValue(weight.new_empty(shape), weight.new_empty(shape)) for _ in self.decoder.layers
        ]

    def prefill(self, codes: Tensor) -> Tensor:
        return self._read(codes)

    def step(self, codes: Tensor) -> Tensor:
        return self._read(codes[:, :, None])

    def _read(self, codes: Tensor) -> Tensor:
        start, num_steps = self.num_read, codes.shape[2]
        x = self.decoder.embed(codes, start, self.summary)
        bias = self.decoder.position_bias(start, num_steps, self.num_conditions, x.device)
        bias = None if bias is None else bias.to(x.dtype)
        x = self.decoder(x, self.memories, bias, self.caches, start)
        self.num_read += num_steps
        return self.decoder.predict(x[:, -1:])[:, :, 0].float()  # [R, K, 1, V] -> [R, K, V]


class FramePull:
    """How much likelier its frames make each code, as `follow` weighs it: added to a step's logits."""

    def __init__(
        self, codes: FrameCodes, glimpses: Tensor, num_code_frames: int, follow: float, num_given: int = 0
    ) -> None:
        """glimpses: [B, F, 2 D], as `codes` give them. num_given: code frames that are not to be chosen."""
        config = codes.config
        per_frame = config.code_rate // config.frame_rate
        distinct, self.rows = glimpses.unique(dim=0, return_inverse=True)  # takes see one video
        frame = max(0, num_given // per_frame - 1)  # the one before the first that matters: it is seen, too
        self.start = frame * per_frame
        seeing = codes(distinct[:, frame:], num_code_frames - self.start)
        blind = codes(torch.zeros_like(distinct[:1, :1]), per_frame)  # the same in every frame
        unseen = codes.predict(blind).float().log_softmax(-1)
        num_steps = seeing.shape[1] + config.num_codebooks - 1
        shape = (len(distinct), config.num_codebooks, num_steps, config.codebook_size)
        self.table = torch.zeros(shape, device=glimpses.device)
        for start in range(0, seeing.shape[1], per_frame):  # a frame at a time, for memory
            seen = codes.predict(seeing[:, start : start + per_frame]).float().log_softmax(-1)
            for k, pull in enumerate(seen.sub_(unseen[:, :, : seen.shape[2]]).mul_(follow).unbind(1)):
                self.table[:, k, start + k : start + k + pull.shape[1]] = pull

    def at(self, step: int) -> Tensor:
        """float32 [B, K, V] for the codes of a delayed step, from the first that is to be chosen on."""
        return self.table[self.rows, :, step - self.start]


def check_follow(model: GVMGen, sampling: SamplingConfig) -> None:
    """Raise ValueError where the network has no `frame_codes` to follow."""
    if sampling.follow and model.frame_codes is None:
        raise ValueError(
            f"follow is {sampling.follow:g}, but this model has no frame_codes. Leave it out, or train them: "
            "gvm-train --train frame-codes"
        )


def guided_conditions(conditions: Tensor, guidance: float) -> Tensor:
    """[B, M, dim] -> [R, M, dim]: under guidance, the same rows once more without the video."""
    return conditions if guidance == 1.0 else torch.cat([conditions, torch.zeros_like(conditions)])


@torch.inference_mode()
def generate_codes(
    model: GVMGen,
    conditions: Tensor,
    num_code_frames: int,
    sampling: SamplingConfig,
    seeds: Sequence[int],
    prompt: Tensor | None = None,
    progress: Progress | None = None,
    make_engine: EngineMaker | None = None,
    glimpses: Tensor | None = None,
) -> Tensor:
    """Compose codes int64 [B, K, T] for the visual memory `conditions` [B, M, dim].

    seeds: one per row; a row depends on its own only. prompt: int64 [B, K, T'], kept as the first T' frames.
    progress: called with (steps done, steps in all). make_engine: None for the plain one.
    glimpses: [B, F, 2 D] of the same frames, which `sampling.follow` needs.
    Raises ValueError where the network has no `frame_codes` to follow.
    """
    max_steps = num_code_frames + model.config.num_codebooks - 1
    make_engine = make_engine or partial(PlainEngine, model)
    check_follow(model, sampling)
    prompt = first_codes(model, len(seeds), prompt)
    pull = None
    if sampling.follow and model.frame_codes is not None:
        assert glimpses is not None, "what to follow"
        pull = FramePull(model.frame_codes, glimpses, num_code_frames, sampling.follow, prompt.shape[2])
    engine = make_engine(guided_conditions(conditions, sampling.guidance), max_steps)
    return sample_codes(
        engine,
        num_code_frames,
        sampling,
        seeds,
        prompt=prompt,
        pad_id=model.config.pad_id,
        progress=progress,
        pull=pull,
    )


def generate_in_groups(
    num_groups: int,
    model: GVMGen,
    conditions: Tensor,
    num_code_frames: int,
    sampling: SamplingConfig,
    seeds: Sequence[int],
    prompt: Tensor,
    progress: Progress,
    make_engine: EngineMaker | None,
    glimpses: Tensor | None,
) -> Tensor:
    """As `generate_codes`, with a thread for every group of rows. progress: hears of the first group."""
    num_groups = min(num_groups, len(seeds))
    bounds = [len(seeds) * group // num_groups for group in range(num_groups + 1)]

    def generate(first: int, last: int) -> Tensor:
        return generate_codes(
            model,
            conditions[first:last],
            num_code_frames,
            sampling,
            seeds[first:last],
            prompt[first:last],
            progress if first == 0 else None,
            make_engine,
            None if glimpses is None else glimpses[first:last],
        )

    if num_groups == 1:
        return generate(0, len(seeds))
    with one_thread(), ThreadPoolExecutor(num_groups) as pool:
        return torch.cat(list(pool.map(generate, bounds[:-1], bounds[1:])))


def first_codes(model: GVMGen, batch: int, prompt: Tensor | None) -> Tensor:
    """The prompt on the model's device, int64 [B, K, T']; without one T' is 0."""
    device = model.decoder.heads.weight.device
    if prompt is None:
        return torch.empty(batch, model.config.num_codebooks, 0, dtype=torch.int64, device=device)
    return prompt.to(device, torch.int64)


@torch.inference_mode()
def sample_codes(
    engine: DecodingEngine,
    num_code_frames: int,
    sampling: SamplingConfig,
    seeds: Sequence[int],
    *,
    prompt: Tensor,
    pad_id: int,
    progress: Progress | None = None,
    pad_tail: bool = False,
    pull: FramePull | None = None,
) -> Tensor:
    """The loop over steps, for any engine. Arguments as `generate_codes`; T' of the prompt may be 0.

    pad_tail: in the last K - 1 steps feed pads to codebooks that have all their codes, as the official code
    does. No training crop holds such steps, so by default each codebook goes on and the surplus is dropped.
    """
    delayed = unfilled_steps(prompt, num_code_frames, pad_id, pad_tail)  # [B, K, S]
    num_steps, first = delayed.shape[2], prompt.shape[2]
    draws = uniform_draws(seeds, num_steps, delayed.shape[1]).to(delayed.device)  # [B, S, K]
    rows = 1 if sampling.guidance == 1.0 else 2
    inputs = torch.nn.functional.pad(delayed[:, :, :first], (1, 0), value=pad_id)
    logits = engine.prefill(inputs.repeat(rows, 1, 1))
    for step in range(first, num_steps):
        with one_thread():
            wanted = guide(logits, sampling.guidance)
            wanted = wanted if pull is None else wanted + pull.at(step)
            chosen = choose(wanted, sampling, draws[:, step])
        known = delayed[:, :, step]
        delayed[:, :, step] = torch.where(known == UNFILLED, chosen, known)
        if step + 1 < num_steps:
            logits = engine.step(delayed[:, :, step].repeat(rows, 1))
        if progress is not None:
            progress(step + 1, num_steps)
    return undelay(delayed)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes on the calling thread alone.

    Its helpers spin on for milliseconds after a shared operation, however small; the compiled decoder's
    threads, which come next, need their cores: a softmax of 1,000 numbers cost a step half its speed.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def unfilled_steps(prompt: Tensor, num_code_frames: int, pad_id: int, pad_tail: bool) -> Tensor:
    """A prompt [B, K, T'] as delayed steps int64 [B, K, T + K - 1], `UNFILLED` where a code is to come."""
    num_codebooks, num_given = prompt.shape[1:]
    if num_given > num_code_frames:
        raise ValueError(f"the prompt has {num_given} code frames, the piece only {num_code_frames}")
    missing = num_code_frames - num_given + (0 if pad_tail else num_codebooks - 1)
    codes = torch.nn.functional.pad(prompt, (0, missing), value=UNFILLED)
    return delay(codes, pad_id)[:, :, : num_code_frames + num_codebooks - 1].contiguous()


def uniform_draws(seeds: Sequence[int], num_steps: int, num_codebooks: int) -> Tensor:
    """float32 [B, S, K] in [0, 1): a row gets the same in any batch, on any device.

    NumPy's generator takes seeds of any size; torch's on the CPU knows the low 32 bits only.
    """
    generators = [np.random.Generator(np.random.Philox(seed)) for seed in seeds]
    return torch.from_numpy(np.stack([g.random((num_steps, num_codebooks), np.float32) for g in generators]))


def guide(logits: Tensor, guidance: float) -> Tensor:
    """Logits [R, K, V] -> [B, K, V]: away from what the model would compose without the video."""
    if guidance == 1.0:
        return logits
    seeing, blind = logits.chunk(2)
    return blind + (seeing - blind) * guidance


def choose(logits: Tensor, sampling: SamplingConfig, draws: Tensor) -> Tensor:
    """One id of every codebook: logits [B, K, V], draws [B, K] in [0, 1) -> int64 [B, K]."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    num_ids = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
    top, ids = logits.topk(num_ids, dim=-1)  # sorted, the most likely first
    cumulative = (top / sampling.temperature).softmax(dim=-1).cumsum(dim=-1)
    if 0.0 < sampling.top_p < 1.0:
        num_kept = (cumulative < sampling.top_p).sum(dim=-1, keepdim=True).clamp(max=num_ids - 1)
        total = cumulative.gather(-1, num_kept)
    else:
        total = cumulative[..., -1:]
    place = torch.searchsorted(cumulative, draws[..., None] * total, right=True)
    return ids.gather(-1, place.clamp(max=num_ids - 1))[..., 0]
