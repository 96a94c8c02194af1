"""The training loop: shards in, checkpoints out. It imports neither CLIP nor ffmpeg.

B batch, F video frames, P patches, D width, K codebooks, T code frames.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gvmgen.checkpoint import ModelInfo, load_model, save_model
from gvmgen.config import TrainConfig
from gvmgen.data import Batch, SegmentLoader, crop_window
from gvmgen.imports import import_musicgen, is_official
from gvmgen.model import GVMGen, code_losses
from gvmgen.optimiser import adamw, learning_rate, load_state_tensors, set_learning_rate, state_tensors
from gvmgen.runlog import RunLog, StepClock, StepReport
from gvmgen.runs import MODEL_CONFIG, STATE, RunFolder, find_model
from gvmgen.signals import StopRequest, is_launched
from shards.reader import ShardSet
from shards.spec import fingerprint_differences

OPTIMISER = "optimizer.safetensors"
MUSICGEN_LICENCE = "CC-BY-NC-4.0, as MusicGen's weights that it was trained from"
MAX_SKIPPED = 20  # steps in a row whose gradient is not finite, before the run gives up


def train(config: TrainConfig, *, accept_changes: bool = False, dry_run: bool = False) -> None:
    """Train until the last step or a stop signal; resume where the run's folder has a checkpoint.

    Raises ShardError where there are no shards to read, ValueError where data, settings and model do not fit
    each other or the run's folder.
    """
    shards = Path(config.data) / "shards"
    train_set, test_set = ShardSet.open(shards, "train"), ShardSet.open(shards, "test")
    check_data(train_set, config)
    accelerator = make_accelerator(config)
    folder = RunFolder(config.run_folder)
    if accelerator.is_main_process and not dry_run:
        folder.claim()
        folder.settle(identity(train_set, config), accept_changes)
    accelerator.wait_for_everyone()
    checkpoint = None if dry_run else folder.latest()
    trainer = Trainer(config, accelerator, folder, train_set, test_set, checkpoint)
    trainer.rehearse() if dry_run else trainer.run()


def check_data(train_set: ShardSet, config: TrainConfig) -> None:
    """Raise ValueError unless the preset's network can read these shards."""
    where = Path(config.data) / "shards"
    if not len(train_set):
        raise ValueError(f"{where}: no segment of the train split. Make more: gvm-prep encode --shards 0-99")
    width = train_set.samples[0].record.fields["features.npy"].shape[-1]
    wanted = config.model_config.feature_dim
    if width != wanted:
        raise ValueError(
            f"{where}: features are {width} wide, preset {config.preset} reads {wanted}. They were made with "
            f"another --preset: train with that one, or encode again with --preset {config.preset}"
        )


def identity(train_set: ShardSet, config: TrainConfig) -> dict[str, Any]:
    """What makes a run the run it is; a resumed one must have the same."""
    return {
        "train": config.recipe,
        "model": config.model_config.to_json(),
        "plan_hash": train_set.plan_hash,
        "encoders": dict(train_set.fingerprint),
    }


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Device, processes and precision; what we leave open, `accelerate launch` or its config decides."""
    precision: str | None = config.precision
    if precision == "auto":
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = "bf16" if has_bf16 else None
    trackers = ["tensorboard"] if importlib.util.find_spec("tensorboard") else None
    accelerator = Accelerator(mixed_precision=precision, log_with=trackers, project_dir=config.run_folder)
    if accelerator.device.type == "cpu" and accelerator.num_processes == 1 and is_launched():
        torch.set_num_threads(num_cores())  # `accelerate launch` set it to one
    return accelerator


def num_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def initial_model(config: TrainConfig) -> tuple[GVMGen, ModelInfo]:
    """The network before its first step, float32: `init`'s weights, else random ones fixed by the seed."""
    torch.manual_seed(config.seed)
    if config.init is None:
        return GVMGen(config.model_config), ModelInfo(preset=config.preset)
    if not is_gvmgen(Path(config.init)):
        model, _ = import_musicgen(config.init, config.model_config)
        return model, ModelInfo(preset=config.preset, licence=MUSICGEN_LICENCE)
    model, info = load_model(find_model(config.init, Path(config.runs), None), dtype=torch.float32)
    differences = fingerprint_differences(model.config.to_json(), config.model_config.to_json())
    if differences:
        raise ValueError(f"--init {config.init} is another network than asked for: {'; '.join(differences)}")
    return model, info


def is_gvmgen(path: Path) -> bool:
    """Whether weights to start from are a GVMGen: ours, a run's, its authors'. Else they are MusicGen's."""
    if (path / "checkpoints").is_dir() or is_official(path):
        return True
    config = path / MODEL_CONFIG
    return config.is_file() and "format_version" in json.loads(config.read_text())


class Trainer:
    """One run: network, optimiser and data on this process's device."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        folder: RunFolder,
        train_set: ShardSet,
        test_set: ShardSet,
        checkpoint: Path | None,
    ) -> None:
        self.config, self.accelerator, self.folder = config, accelerator, folder
        self.train_set, self.test_set = train_set, test_set
        self.loader = self.make_loader(train_set)
        self.num_steps = config.steps or -(-config.epochs * len(train_set) // config.batch_size)
        if checkpoint is None:
            self.network, self.origin = initial_model(config)
        else:
            self.network, self.origin = load_model(checkpoint, dtype=torch.float32)
        self.model = accelerator.prepare(self.network)
        self.optimiser = accelerator.prepare(adamw(self.network, config))
        self.step = 0  # steps done
        self.num_skipped = 0  # in a row
        if checkpoint is not None:
            self.restore(checkpoint)
        self.saved = self.step  # of the newest checkpoint

    def make_loader(self, shards: ShardSet) -> SegmentLoader:
        config, accelerator = self.config, self.accelerator
        return SegmentLoader(
            shards,
            batch_size=config.batch_size,
            seed=config.seed,
            crop_s=config.crop_s,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            pieces=config.grad_accum,
            device=accelerator.device,
        )

    def make_log(self) -> RunLog:
        return RunLog(self.folder, self.accelerator, self.step, self.num_steps, self.config.log_every)

    def run(self) -> None:
        """Step until the last one, or until asked to stop; save on the way and at the end."""
        with StopRequest() as stop, self.make_log() as log:
            log.say(self.summary())
            try:
                self.take_steps(stop, log)
            except ValueError:  # a corrupt sample, a gradient that stays infinite: keep what was learned
                self.save_unless_saved()
                raise
            except torch.OutOfMemoryError as error:
                raise ValueError(
                    f"{self.accelerator.device} is out of memory in step {self.step + 1}. Cut the batch into "
                    f"pieces with --grad-accum, or shorten segments with --crop-s ({error})"
                ) from error
            self.save_unless_saved()
            self.accelerator.wait_for_everyone()
            log.say(self.farewell(stop))

    def take_steps(self, stop: StopRequest, log: RunLog) -> None:
        pieces = iter(self.loader)
        while self.step < self.num_steps and not self.is_asked_to_stop(stop):
            log.step(self.training_step(pieces))
            if self.step % self.config.save_every == 0:
                self.save_unless_saved()
            if self.is_time_to_evaluate():
                log.test(self.step, self.evaluate())

    def training_step(self, pieces: Iterator[Batch]) -> StepReport:
        """One optimiser step on this process's share of the global batch, in `grad_accum` pieces."""
        clock = StepClock()
        rate = learning_rate(self.step, self.num_steps, self.config)
        set_learning_rate(self.optimiser, rate)
        counts = self.code_counts()  # [K]
        sums = torch.zeros_like(counts)
        self.model.train()
        for number in range(self.config.grad_accum):
            with clock.waiting():
                piece = next(pieces)
            self.seed_dropout(number)
            with self.syncing(number == self.config.grad_accum - 1):
                losses = self.summed_losses(self.model, piece, self.drawn_blind(piece["keys"]))  # [K]
                # DDP averages the processes' gradients, `counts` are those of all processes together
                self.accelerator.backward((losses / counts).mean() * self.accelerator.num_processes)
            sums += losses.detach()
        grad_norm = self.update()
        self.step += 1
        per_codebook = (self.accelerator.reduce(sums) / counts).tolist()
        return StepReport(self.step, per_codebook, rate, grad_norm, int(counts.sum()), *clock.read())

    def code_counts(self) -> Tensor:
        """float32 [K]: codes of the global batch that the delay pattern lets the decoder predict."""
        loader, first = self.loader, self.step * self.config.batch_size
        draws = [loader.plan.draw(first + i) for i in range(self.config.batch_size)]
        refs = [self.train_set.samples[draw.index] for draw in draws]
        windows = [
            crop_window(ref, loader.crop_s, self.config.seed, draw.epoch)
            for ref, draw in zip(refs, draws, strict=True)
        ]
        ks = range(self.network.config.num_codebooks)
        counts = [sum(max(0, window.num_code_frames - k) for window in windows) for k in ks]
        return torch.tensor(counts, dtype=torch.float32, device=self.accelerator.device)

    def seed_dropout(self, piece: int) -> None:
        """Make a piece's random numbers a pure function of seed, step, process and piece: resume is exact."""
        torch.manual_seed(stable_hash(self.config.seed, self.step, self.accelerator.process_index, piece))

    def drawn_blind(self, keys: list[str]) -> Tensor:
        """bool [B]: segments that are trained without their video, for classifier-free guidance."""
        rate = self.config.guidance_dropout * 2**63
        drawn = [stable_hash(self.config.seed, self.step, key) < rate for key in keys]
        return torch.tensor(drawn, device=self.accelerator.device)

    def syncing(self, is_last: bool) -> AbstractContextManager[Any]:
        """The processes exchange gradients only after a step's last piece."""
        return nullcontext() if is_last else self.accelerator.no_sync(self.model)

    def summed_losses(self, model: nn.Module, batch: Batch, drop_condition: Tensor | None = None) -> Tensor:
        """float32 [K]: cross entropy of each codebook, summed over a batch's codes."""
        codes = batch["codes"]
        logits, mask = model(
            batch["features"],
            codes,
            drop_condition=drop_condition,
            num_frames=batch["num_frames"],
            num_code_frames=batch["num_code_frames"],
        )
        return code_losses(logits, codes, mask)

    def update(self) -> float:
        """Step the optimiser; returns the gradient's norm. A gradient that is not finite changes nothing.

        Raises ValueError after too many of those in a row.
        """
        largest = self.config.max_grad_norm or math.inf
        norm = float(self.accelerator.clip_grad_norm_(self.network.parameters(), largest))
        scales = self.accelerator.scaler is not None  # fp16: the scaler skips such a step, and learns from it
        if scales or math.isfinite(norm):
            self.optimiser.step()
        self.optimiser.zero_grad()
        self.num_skipped = 0 if math.isfinite(norm) else self.num_skipped + 1
        if self.num_skipped > MAX_SKIPPED:
            raise ValueError(
                f"{self.folder.path}: the gradient has not been finite for {self.num_skipped} steps, up to "
                f"{self.step + 1}. Lower --lr, or train with --precision no"
            )
        return norm

    def is_time_to_evaluate(self) -> bool:
        every = self.config.eval_every
        return every > 0 and self.step % every == 0 and len(self.test_set) > 0

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """Loss of each codebook on the test split, over all processes."""
        self.network.eval()
        num_codebooks = self.network.config.num_codebooks
        sums = torch.zeros(num_codebooks, device=self.accelerator.device)
        counts = torch.zeros_like(sums)
        for batch in self.make_loader(self.test_set).one_pass():
            with self.accelerator.autocast():
                sums += self.summed_losses(self.network, batch)
            counts += predicted_codes(batch)
        return (self.accelerator.reduce(sums) / self.accelerator.reduce(counts)).tolist()

    def is_asked_to_stop(self, stop: StopRequest) -> bool:
        """Whether any process was asked to stop; all of them learn of it in the same step."""
        asked = stop.reason() is not None
        if self.accelerator.num_processes == 1:
            return asked
        flag = torch.tensor(int(asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag) > 0)

    def save_unless_saved(self) -> None:
        """Have a checkpoint of this step on disk. Raises OSError where the disk is full; older ones stay."""
        if self.accelerator.is_main_process and self.step != self.saved:
            try:
                self.folder.save(self.step, self.write_checkpoint, self.config.keep_last)
            except SafetensorError as error:
                raise OSError(f"{self.folder.checkpoints}: cannot write step {self.step}: {error}") from error
        self.saved = self.step

    def write_checkpoint(self, folder: Path) -> None:
        info = replace(
            self.origin,
            preset=self.config.preset,
            encoder_fingerprint=dict(self.train_set.fingerprint),
            step=self.step,
            trained=self.step > 0,
            provenance={"data": self.train_set.plan_hash, "train": self.config.recipe},
        )
        save_model(folder, self.network, info)
        save_file(state_tensors(self.network, self.optimiser.optimizer), folder / OPTIMISER)
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "samples": self.step * self.config.batch_size,
            "data": self.loader.state,
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        (folder / STATE).write_text(json.dumps(state, indent=2) + "\n")

    def restore(self, checkpoint: Path) -> None:
        """Go on where a checkpoint was written; the network has its weights already."""
        state = json.loads((checkpoint / STATE).read_text())
        tensors = load_file(checkpoint / OPTIMISER)
        load_state_tensors(self.network, self.optimiser.optimizer, tensors, str(checkpoint / OPTIMISER))
        self.step = state["step"]
        epoch, consumed = divmod(self.step * self.config.batch_size, len(self.train_set))
        self.loader.load_state(self.loader.state | {"epoch": epoch, "samples_consumed": consumed})
        if state["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def rehearse(self) -> None:
        """One step whose result is thrown away: do data, settings and memory suffice?"""
        report = self.training_step(iter(self.loader))
        self.accelerator.print(
            f"{self.summary()}\n"
            f"One step took {report.seconds:.1f} s, loss {report.loss:.3f}; nothing was written"
        )

    def summary(self) -> str:
        """What is about to be trained, on what."""
        config, accelerator = self.config, self.accelerator
        size = sum(parameter.numel() for parameter in self.network.parameters())
        lines = [
            f"{self.folder.path}: {config.preset}, {size / 1e6:.1f} M parameters; "
            f"{len(self.train_set)} segments to train on, {len(self.test_set)} to test on",
            f"{self.num_steps} steps of {config.batch_size} segments on {accelerator.num_processes} x "
            f"{accelerator.device.type}, {accelerator.mixed_precision} mixed precision",
        ]
        if self.step:
            lines.append(f"Resumes at step {self.step}")
        if config.eval_every and not len(self.test_set):
            lines.append("Note: no segment of the test split here, so there will be no validation")
        if self.num_steps <= config.warmup_steps:
            peak = learning_rate(self.num_steps - 1, self.num_steps, config)
            lines.append(
                f"Note: warm-up takes {config.warmup_steps} steps, the run only {self.num_steps}: "
                f"the learning rate gets no higher than {peak:.1e}. "
                f"For little data: --lr 1e-3 --warmup-steps {self.num_steps // 10}"
            )
        return "\n".join(lines)

    def farewell(self, stop: StopRequest) -> str:
        """Why the run ends, and how to go on."""
        if self.step < self.num_steps:
            why = f"Stopped ({stop.reason() or 'another process was asked to'}) after step {self.step} of "
            return f"{why}{self.num_steps}, saved. The same command goes on from there"
        return f"{self.folder.path} is complete: {self.step} steps. Compose: gvm-gen video.mp4 -o out.wav"


def predicted_codes(batch: Batch) -> Tensor:
    """float32 [K]: codes of a batch that the delay pattern lets the decoder predict."""
    codes, lengths = batch["codes"], batch["num_code_frames"]
    if lengths is None:
        lengths = torch.full((codes.shape[0],), codes.shape[2], device=codes.device)
    ks = torch.arange(codes.shape[1], device=codes.device)
    return (lengths[:, None] - ks).clamp(min=0).sum(dim=0).float()  # [B, K] -> [K]


def stable_hash(*parts: object) -> int:
    """0 … 2^63 - 1, the same on every machine."""
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
