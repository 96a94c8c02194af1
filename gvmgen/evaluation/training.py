"""Training of the evaluation model. A step is a function of seed, step and data: a resumed run is exact.

B pairs, t seconds of video, c seconds of music, D shared width.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from gvmgen.config import TrainConfig
from gvmgen.data import permutation
from gvmgen.evaluation.agreement import Agreement, measure, table
from gvmgen.evaluation.config import EvaluatorConfig, EvaluatorTraining
from gvmgen.evaluation.evaluator import TRAINING, EvaluatorInfo, read_evaluator, save_evaluator
from gvmgen.evaluation.model import EvaluationModel, diagonals, info_nce, similarities
from gvmgen.evaluation.seconds import MIN_SECONDS, Pair
from gvmgen.evaluation.sources import PairSource
from gvmgen.optimiser import learning_rate
from gvmgen.runs import STATE, RunFolder, write_text
from gvmgen.signals import StopRequest

OPTIMISER = "optimizer.safetensors"
FIGURES = "figures.json"
SLOW_BAR_S = 10.0  # seconds between two lines of a progress bar that goes into a file


class Excerpts(NamedTuple):
    """What a step trains on: of each pair t seconds of video, and c of music that lie within them."""

    video: Tensor  # float32 [B, t, video_dim]
    music: Tensor  # float32 [B, c, music_dim]
    starts: Tensor  # int64 [B]; the music starts that many seconds after the video


def train_evaluator(
    source: PairSource,
    run: Path,
    training: EvaluatorTraining,
    *,
    save_every: int,
    accept_changes: bool = False,
) -> None:
    """Train, go on where the run's folder has a checkpoint, and measure on the test split at the end.

    Raises ValueError where pairs, settings and run do not fit.
    """
    folder = RunFolder(run / TRAINING)
    folder.claim()
    identity = {"training": training.to_json(), "encoders": source.encoders}
    if not accept_changes:
        folder.refuse_other(identity | source.identity)
    folder.settle(identity | source.identity)
    train_pairs, test_pairs = source.pairs("train"), source.pairs("test")
    kept = max(0, len(train_pairs) - training.held_out)
    train_pairs, test_pairs = train_pairs[:kept], train_pairs[kept:] + test_pairs
    trainer = Trainer(train_pairs, training, source.encoders, folder)
    if not trainer.run(save_every):
        return
    save_evaluator(run, trainer.model, trainer.info)
    say(f"{run}: trained, {training.steps} steps. Use it: gvm-eval score --evaluator {run}")
    if len(test_pairs) < 2:
        say("Note: the test split holds no two pairs, so nothing was measured. Keep some: --held-out 64")
        return
    report(run, measure(trainer.model, test_pairs))


def report(run: Path, agreement: Agreement) -> None:
    """Print the figures and keep them in the run's folder."""
    print(table(agreement))
    write_text(run / FIGURES, json.dumps(agreement.to_json(), indent=2, sort_keys=True) + "\n")


class Trainer:
    """Model, optimiser and pairs of one run."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        training: EvaluatorTraining,
        fingerprint: dict[str, Any],
        folder: RunFolder,
    ) -> None:
        if len(pairs) < training.batch_size:
            raise ValueError(
                f"{len(pairs)} pairs to train on last {MIN_SECONDS} s or more, fewer than a batch of "
                f"{training.batch_size}. Pass a smaller --batch-size, or bring more pairs"
            )
        self.pairs, self.training, self.folder = pairs, training, folder
        self.info = EvaluatorInfo(
            preset=training.preset, encoder_fingerprint=fingerprint, step=0, training=training.to_json()
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        checkpoint = folder.latest()
        self.model = initial_model(pairs, training) if checkpoint is None else self.restored(checkpoint)
        self.model.to(self.device)
        self.schedule = TrainConfig(lr=training.lr, warmup_steps=training.warmup_steps)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=training.lr, weight_decay=training.weight_decay
        )
        if checkpoint is not None:
            load_moments(self.optimiser, load_file(checkpoint / OPTIMISER))

    def restored(self, checkpoint: Path) -> EvaluationModel:
        model, self.info = read_evaluator(checkpoint)
        return model

    def run(self, save_every: int) -> bool:
        """Step until the last one, or until asked to stop. Returns whether the training is complete."""
        steps = self.training.steps
        bar = tqdm(
            total=steps,
            initial=self.info.step,
            desc="training",
            mininterval=0.1 if sys.stderr.isatty() else SLOW_BAR_S,
        )
        with StopRequest() as stop, bar:
            while self.info.step < steps and stop.reason() is None:
                loss = self.take_step(self.info.step)
                self.info = replace(self.info, step=self.info.step + 1)
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update()
                if self.info.step % save_every == 0 or self.info.step == steps:
                    self.save()
        if self.info.step < steps:
            self.save()
            say(f"Stopped after step {self.info.step} of {steps}, saved. The same command goes on from there")
        return self.info.step == steps

    def take_step(self, step: int) -> float:
        """One optimiser step; returns the loss, in nats and squares."""
        self.model.train()
        self.optimiser.param_groups[0]["lr"] = learning_rate(step, self.training.steps, self.schedule)
        rng = np.random.default_rng([self.training.seed, step])
        excerpts = draw_excerpts(self.batch(step), rng)
        torch.manual_seed(int(rng.integers(2**63)))  # dropout
        loss = total_loss(self.model, Excerpts(*(tensor.to(self.device) for tensor in excerpts)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.item()

    def batch(self, step: int) -> list[Pair]:
        """No pair stands twice in a batch: each epoch leaves out what does not fill one."""
        size = self.training.batch_size
        epoch, number = divmod(step, len(self.pairs) // size)
        order = permutation(len(self.pairs), self.training.seed, epoch)
        return [self.pairs[index] for index in order[number * size : (number + 1) * size]]

    def save(self) -> None:
        try:
            self.folder.save(self.info.step, self.write_checkpoint, keep_last=1)
        except SafetensorError as error:
            raise OSError(f"{self.folder.path}: cannot write step {self.info.step}: {error}") from error

    def write_checkpoint(self, folder: Path) -> None:
        save_evaluator(folder, self.model, self.info)
        save_file(moments(self.optimiser), folder / OPTIMISER)
        (folder / STATE).write_text(json.dumps({"step": self.info.step}) + "\n")


def initial_model(pairs: Sequence[Pair], training: EvaluatorTraining) -> EvaluationModel:
    """The model before its first step: random weights of the seed, standardised to the pairs."""
    config = EvaluatorConfig(
        video_dim=pairs[0].video.shape[1],
        music_dim=pairs[0].music.shape[1],
        dim=training.dim,
        num_layers=training.num_layers,
        num_heads=training.num_heads,
        dropout=training.dropout,
    )
    torch.manual_seed(training.seed)
    model = EvaluationModel(config)
    model.video_tower.standardise(torch.cat([pair.video for pair in pairs]))
    model.music_tower.standardise(torch.cat([pair.music for pair in pairs]))
    return model


def draw_excerpts(pairs: Sequence[Pair], rng: np.random.Generator) -> Excerpts:
    """Cut, splice, and cut the music once more.

    Splicing: from a random second on, a pair goes on as the next one, picture and music alike. It makes pairs
    that nobody filmed, and keeps small data from being learned by heart. The music's own cut is what keeps a
    second's place in the excerpt from giving away its partner.
    """
    shortest = min(pair.num_seconds for pair in pairs)
    offsets = [int(rng.integers(pair.num_seconds - shortest + 1)) for pair in pairs]
    video = torch.stack([p.video[o : o + shortest] for p, o in zip(pairs, offsets, strict=True)])
    music = torch.stack([p.music[o : o + shortest] for p, o in zip(pairs, offsets, strict=True)])
    splices = torch.from_numpy(rng.integers(1, shortest + 1, len(pairs)))  # at the end: none
    is_next = (torch.arange(shortest) >= splices[:, None])[..., None]  # [B, t, 1]
    video = torch.where(is_next, video.roll(1, dims=0), video)
    music = torch.where(is_next, music.roll(1, dims=0), music)
    length = int(rng.integers((shortest + 1) // 2, shortest + 1))
    starts = torch.from_numpy(rng.integers(0, shortest - length + 1, len(pairs)))
    return Excerpts(video, at_own_seconds(music, starts, length), starts)


def at_own_seconds(x: Tensor, starts: Tensor, length: int) -> Tensor:
    """Of each row its `length` seconds from its start on: [B, t, D] -> [B, c, D]."""
    columns = starts[:, None] + torch.arange(length, device=x.device)
    return x[torch.arange(len(x), device=x.device)[:, None], columns]


def total_loss(model: EvaluationModel, excerpts: Excerpts) -> Tensor:
    """L1 and L2 of the leak-free form, and those of the printed form, which moves no tower."""
    video, music = model.video_tower(excerpts.video), model.music_tower(excerpts.music)
    attention = model.alignment(video, music)  # [B, t, c]
    matched = at_own_seconds(video, excerpts.starts, music.shape[1])  # [B, t, D] -> [B, c, D]
    fused = model.as_printed(matched.detach(), music.detach())
    return (
        alignment_loss(diagonals(attention, excerpts.starts))
        + info_nce(similarities(matched, music))
        + alignment_loss(fused.attention.diagonal(dim1=1, dim2=2))
        + info_nce(fused.video @ fused.music.mT)
    )


def alignment_loss(own: Tensor) -> Tensor:
    """L1 (eq. 3) of the attention that seconds pay to their own seconds: the mean of (1 - a)^2.

    Squared, as the publication's text and official code have it; the equation as printed has no square.
    """
    return (1 - own).square().mean()


def moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as `<number of the parameter>/<moment>`."""
    state = optimiser.state_dict()["state"]
    return {f"{number}/{name}": tensor for number, each in state.items() for name, tensor in each.items()}


def load_moments(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `moments`."""
    state: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        number, name = key.split("/")
        state[int(number)][name] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": dict(state)})


def say(line: str) -> None:
    print(line, file=sys.stderr)
