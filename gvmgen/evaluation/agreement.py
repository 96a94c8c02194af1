"""CMR and TA of an evaluation model on pairs, with the controls that say what the figures are worth.

t whole seconds, D shared width.

Every figure is measured on true pairs, on shuffled ones, where each video has another's music, and on shifted
ones, where the music is turned round by 1, 2, 5, 10 s. A figure that stays high on the controls says nothing
about the fit of music to video.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gvmgen.evaluation.config import BATCH_SIZE, TEMPERATURE
from gvmgen.evaluation.model import EvaluationModel, similarities
from gvmgen.evaluation.seconds import Pair
from gvmgen.evaluation.statistics import Estimate, mean_estimate

SHIFTS_S = (1, 2, 5, 10)
PAIRS_AT_ONCE = 64
ROUNDS = 20  # times that the pairs are dealt into batches
FIGURES = {
    "accuracy": "pairs found in a batch, leak-free",
    "cmr": "CMR, leak-free (recommended)",
    "ta": "TA, no places (recommended)",
    "accuracy_printed": "pairs found in a batch, as printed",
    "cmr_printed": "CMR as printed",
    "ta_printed": "TA as printed",
}


@dataclass(frozen=True)
class Agreement:
    """What `measure` found."""

    num_pairs: int
    batch_size: int
    chance: float  # of accuracy and CMR: one over the batch size
    ta_chance: float  # of TA: the mean of one over a pair's seconds
    figures: dict[str, dict[str, Estimate]]  # by figure, by control: true, shuffled, shifted_1s …

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Embedded:
    """A pair as the model sees it."""

    video: Tensor  # [t, D]
    music: Tensor  # [t, D]
    ta: float
    video_printed: Tensor  # [D], unit length
    music_printed: Tensor  # [D], unit length
    ta_printed: float


@torch.no_grad()
def embed(model: EvaluationModel, pairs: Sequence[Pair]) -> list[Embedded]:
    """Each pair, in order; those of one length go through the model together."""
    embedded: dict[int, Embedded] = {}
    by_length = sorted(range(len(pairs)), key=lambda index: pairs[index].num_seconds)
    for _, group in itertools.groupby(by_length, key=lambda index: pairs[index].num_seconds):
        alike = list(group)
        for start in range(0, len(alike), PAIRS_AT_ONCE):
            chunk = alike[start : start + PAIRS_AT_ONCE]
            found = embed_alike(model, [pairs[index] for index in chunk])
            embedded |= dict(zip(chunk, found, strict=True))
    return [embedded[index] for index in range(len(pairs))]


def embed_alike(model: EvaluationModel, pairs: Sequence[Pair]) -> Iterator[Embedded]:
    """Pairs of one length."""
    device = next(model.parameters()).device
    video = model.video_tower(torch.stack([pair.video for pair in pairs]).to(device))  # [B, t, D]
    music = model.music_tower(torch.stack([pair.music for pair in pairs]).to(device))
    fused = model.as_printed(video, music)
    ta = model.alignment(video, music).diagonal(dim1=1, dim2=2).mean(dim=1)  # [B, t, t] -> [B]
    ta_printed = fused.attention.diagonal(dim1=1, dim2=2).mean(dim=1)
    for row in zip(video, music, ta.tolist(), fused.video, fused.music, ta_printed.tolist(), strict=True):
        yield Embedded(*row)


def measure(model: EvaluationModel, pairs: Sequence[Pair], batch_size: int = BATCH_SIZE) -> Agreement:
    """Every figure with its controls and 95 % intervals (bootstrap over pairs).

    Raises ValueError with fewer than two pairs. Where there are fewer than `batch_size`, all are one batch.
    """
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} pairs; at least two are needed to tell one from another")
    model.eval()
    size = min(batch_size, len(pairs))
    controls = {"true": list(pairs), "shuffled": shuffled(pairs)}
    longest = max(pair.num_seconds for pair in pairs)
    controls |= {f"shifted_{s}s": [shifted(pair, s) for pair in pairs] for s in SHIFTS_S if s < longest}
    values = {name: pair_values(model, each, size) for name, each in controls.items()}
    figures = {
        figure: {name: mean_estimate(each[figure]) for name, each in values.items()} for figure in FIGURES
    }
    ta_chance = float(np.mean([1 / pair.num_seconds for pair in pairs]))
    return Agreement(len(pairs), size, 1 / size, ta_chance, figures)


def shuffled(pairs: Sequence[Pair]) -> list[Pair]:
    """Every video with another one's music."""
    order = np.random.default_rng(0).permutation(len(pairs))
    partner = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return [pair.with_music(pairs[partner[i]].music) for i, pair in enumerate(pairs)]


def shifted(pair: Pair, seconds: int) -> Pair:
    """The music late by some seconds; its end comes round to the start, so that the length stays."""
    return Pair(pair.key, pair.video, pair.music.roll(seconds, dims=0))


def pair_values(model: EvaluationModel, pairs: Sequence[Pair], size: int) -> dict[str, np.ndarray]:
    """Each figure of each pair, [N]."""
    embedded = embed(model, pairs)
    accuracy, cmr = in_batches(len(pairs), size, lambda i: batch_similarities([embedded[j] for j in i]))
    video = torch.stack([each.video_printed for each in embedded])
    music = torch.stack([each.music_printed for each in embedded])
    accuracy_printed, cmr_printed = in_batches(len(pairs), size, lambda i: video[i] @ music[i].mT)
    return {
        "accuracy": accuracy,
        "cmr": cmr,
        "ta": np.array([each.ta for each in embedded]),
        "accuracy_printed": accuracy_printed,
        "cmr_printed": cmr_printed,
        "ta_printed": np.array([each.ta_printed for each in embedded]),
    }


def batch_similarities(batch: Sequence[Embedded]) -> Tensor:
    """Every video against every music of a batch, all cut to the shortest: [B, B]."""
    shortest = min(len(each.video) for each in batch)
    return similarities(
        torch.stack([each.video[:shortest] for each in batch]),
        torch.stack([each.music[:shortest] for each in batch]),
    )


def in_batches(
    num_pairs: int, size: int, compare: Callable[[list[int]], Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """Deal pairs into batches, again and again, and tell partners from the rest.

    compare: indices of a batch -> similarities [B, B]. Returns, for each pair and from both sides, how often
    its partner was the likeliest, and the probability its partner got (softmax, at the loss's temperature).
    """
    rng = np.random.default_rng(0)
    correct, probability, count = np.zeros(num_pairs), np.zeros(num_pairs), np.zeros(num_pairs)
    for _ in range(ROUNDS):
        order = rng.permutation(num_pairs)
        for start in range(0, num_pairs - size + 1, size):
            batch = order[start : start + size]
            scores = compare(batch.tolist()) / TEMPERATURE
            partners = torch.arange(size, device=scores.device)
            for side in (scores, scores.mT):
                correct[batch] += (side.argmax(dim=1) == partners).cpu().numpy() / 2
                probability[batch] += side.softmax(dim=1).diagonal().cpu().numpy() / 2
            count[batch] += 1
    drawn = np.where(count > 0, count, np.nan)
    return correct / drawn, probability / drawn


def table(agreement: Agreement) -> str:
    """Markdown: a row a figure, a column a control."""
    controls = list(agreement.figures["cmr"])
    heads = [name.replace("_", " ") for name in controls]
    lines = [
        f"{agreement.num_pairs} pairs, batches of {agreement.batch_size}; chance: "
        f"CMR and pairs found {agreement.chance:.3f}, TA {agreement.ta_chance:.3f}. [95 % interval]",
        "",
        "| | " + " | ".join(heads) + " |",
        "|---|" + "---|" * len(heads),
    ]
    lines += [
        f"| {title} | " + " | ".join(_cell(agreement.figures[name], control) for control in controls) + " |"
        for name, title in FIGURES.items()
    ]
    return "\n".join(lines)


def _cell(figure: Mapping[str, Estimate], control: str) -> str:
    estimate = figure[control]
    if control != "true":
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
