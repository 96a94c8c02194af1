"""The training loop: shards in, checkpoints out. It imports neither CLIP nor ffmpeg.

B batch, F video frames, P patches, D width, K codebooks, T code frames.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import Tensor, nn

from gvmgen.average import Average
from gvmgen.checkpoint import load_model
from gvmgen.config import TrainConfig
from gvmgen.data import Batch, SegmentLoader, Window
from gvmgen.flops import step_flops
from gvmgen.learnable import choose_learnable, composing_weights
from gvmgen.model import code_losses
from gvmgen.optimiser import learning_rate, make_optimiser, set_learning_rate
from gvmgen.pictures import attention_pictures, compose
from gvmgen.runlog import RunLog, StepClock, StepReport
from gvmgen.runs import STATE, RunFolder
from gvmgen.saving import (
    OPTIMISER,
    BackgroundWriter,
    HostCopy,
    Snapshot,
    load_training_tensors,
    reshard,
    training_tensors,
)
from gvmgen.signals import StopRequest
from gvmgen.start import (
    check_data,
    grown,
    identity,
    initial_model,
    make_accelerator,
    peak_memory,
    summary,
)
from shards.reader import ShardSet
from shards.remote import shards_of

NUM_SAMPLES = 2  # segments that music is composed for on the way
MAX_SKIPPED = 20  # steps in a row whose gradient is not finite, before the run gives up


def train(config: TrainConfig, *, accept_changes: bool = False, dry_run: bool = False) -> None:
    """Train until the last step or a stop signal; resume where the run's folder has a checkpoint.

    Raises ShardError where there are no shards to read, ValueError where data, settings and model do not fit
    each other or the run's folder, OSError where a checkpoint cannot be written or a process is lost.
    """
    shards = shards_of(config.data)
    train_set, test_set = ShardSet.open(shards, "train"), ShardSet.open(shards, "test")
    check_data(train_set, config)
    accelerator = make_accelerator(config)
    folder = RunFolder(config.run_folder)
    if accelerator.is_main_process and not dry_run:
        folder.claim()
    if accelerator.is_main_process and not accept_changes:
        folder.refuse_other(identity(train_set, config))
    accelerator.wait_for_everyone()
    checkpoint = None if dry_run else folder.latest()
    trainer = Trainer(config, accelerator, folder, train_set, test_set)
    trainer.start(checkpoint, accept_changes)
    if accelerator.is_main_process and not dry_run:
        folder.settle(identity(train_set, config))  # what cannot go on leaves the run as it was
    trainer.rehearse() if dry_run else trainer.run()


class Trainer:
    """One run: network, optimiser and data on this process's device."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        folder: RunFolder,
        train_set: ShardSet,
        test_set: ShardSet,
    ) -> None:
        self.config, self.accelerator, self.folder = config, accelerator, folder
        self.train_set, self.test_set = train_set, test_set
        self.loader = self.make_loader(train_set)
        can_test = len(test_set) >= accelerator.num_processes
        self.test_loader = self.make_loader(test_set) if can_test else None
        self.num_steps = config.steps or -(-config.epochs * len(train_set) // config.batch_size)
        self.is_sharded = accelerator.distributed_type == DistributedType.FSDP
        if self.is_sharded and config.samples_every:
            raise ValueError(
                "samples_every: no process has the whole network under FSDP. Compose beside the run"
            )
        if self.is_sharded and config.optimizer == "adamw8bit":
            raise ValueError("--optimizer adamw8bit: not under FSDP, which shares out AdamW's moments itself")
        self.step = self.num_samples = 0  # done, taken from the data
        self.num_skipped = 0  # steps in a row
        self.best: dict[str, Any] | None = None  # step and loss of the best validation
        self.host, self.writer = HostCopy(), BackgroundWriter()

    def start(self, checkpoint: Path | None, accept_changes: bool) -> None:
        """Have network and optimiser on the device, new or as a checkpoint holds them."""
        if checkpoint is None:
            self.network, self.origin = initial_model(self.config, self.train_set.fingerprint)
        else:
            self.network, self.origin = load_model(checkpoint, dtype=torch.float32)
            self.network = grown(self.network, self.config.model_config, str(checkpoint))
        choose_learnable(self.network, self.config)
        self.network.decoder.recompute_layers = self.config.recompute
        if self.config.compile:
            for layer in self.network.decoder.layers:
                layer.compile()
        optimiser = make_optimiser(self.network, self.config, self.accelerator.device)
        self.model, self.optimiser = self.accelerator.prepare(self.network, optimiser)
        self.average = Average(self.network, self.config.ema) if self.config.ema else None
        if checkpoint is not None:
            self.restore(checkpoint, accept_changes)
        self.saved = self.step  # of the newest checkpoint

    def make_loader(self, shards: ShardSet) -> SegmentLoader:
        config, accelerator = self.config, self.accelerator
        return SegmentLoader(
            shards,
            batch_size=config.batch_size,
            seed=config.seed,
            crop_s=config.crop_s,
            anchor_s=config.model_config.anchor_s,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            pieces=config.grad_accum,
            device=accelerator.device,
            on_corrupt="substitute" if config.on_corrupt == "substitute" else "stop",
        )

    def make_log(self) -> RunLog:
        return RunLog(self.folder, self.accelerator, self.step, self.num_steps, self.config.log_every)

    def run(self) -> None:
        """Step until the last one, or until asked to stop; save on the way and at the end."""
        with StopRequest() as stop, self.make_log() as log:
            log.say(self.summary())
            try:
                self.take_steps(stop, log)
                self.save()
            except ValueError:  # a corrupt sample, a gradient that stays infinite: keep what was learned
                self.save_alone()
                raise
            except torch.OutOfMemoryError as error:
                raise ValueError(
                    f"{self.accelerator.device} is out of memory in step {self.step + 1}. Cut the batch into "
                    f"pieces with --grad-accum, forget activations with --recompute, or shorten segments "
                    f"with --crop-s ({error})"
                ) from error
            except RuntimeError as error:
                if not is_lost_process(error):
                    raise
                raise OSError(self.lost_process()) from error
            finally:
                self.writer.wait()
            self.accelerator.wait_for_everyone()
            log.say(self.farewell(stop))

    def take_steps(self, stop: StopRequest, log: RunLog) -> None:
        pieces = iter(self.loader)
        while self.step < self.num_steps and not self.is_asked_to_stop(stop):
            log.step(self.training_step(pieces))
            log.substituted(self.loader.substituted)
            self.writer.check()
            is_best = self.is_time_to_evaluate() and self.is_best(log)
            if is_best or self.step % self.config.save_every == 0:
                with log.saving():
                    self.save(is_best)
            every = self.config.samples_every
            if every and self.step % every == 0 and self.accelerator.is_main_process:
                self.show_samples(log)

    def training_step(self, pieces: Iterator[Batch]) -> StepReport:
        """One optimiser step on this process's share of the global batch, in `grad_accum` pieces."""
        clock = StepClock()
        rate = learning_rate(self.step, self.num_steps, self.config)
        set_learning_rate(self.optimiser, rate)
        windows = self.loader.windows(self.num_samples)
        planned = planned_codes(windows, self.network.config.num_codebooks).to(self.accelerator.device)
        sums, counts = torch.zeros_like(planned), torch.zeros_like(planned)
        self.model.train()
        for number in range(self.config.grad_accum):
            with clock.waiting():
                piece = next(pieces)
            self.seed_dropout(number)
            with self.syncing(number == self.config.grad_accum - 1):
                losses = self.summed_losses(self.model, piece, self.drawn_blind(piece["keys"]))  # [K]
                # DDP averages the processes' gradients, `planned` are the codes of all processes together
                self.accelerator.backward((losses / planned).mean() * self.accelerator.num_processes)
            sums += losses.detach()
            counts += predicted_codes(piece)
        grad_norm = self.update()
        self.step += 1
        self.num_samples += self.config.batch_size
        per_codebook = self.mean_over_processes(sums, counts)
        num_codes, flops = int(planned.sum()), step_flops(self.network, windows, self.loader.num_patches)
        return StepReport(self.step, per_codebook, rate, grad_norm, num_codes, flops, *clock.read())

    def mean_over_processes(self, sums: Tensor, counts: Tensor) -> list[float]:
        """Sums and counts [K] of each process -> the mean of all of them."""
        sums, counts = self.accelerator.reduce(torch.stack([sums, counts]))
        return (sums / counts).tolist()

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
            anchored=batch["anchored"],
            num_frames=batch["num_frames"],
            num_code_frames=batch["num_code_frames"],
            by_frames=self.config.train == "frame-codes",
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
        if self.average and math.isfinite(norm):
            self.average.update()
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
        return every > 0 and self.step % every == 0 and self.test_loader is not None

    def is_best(self, log: RunLog) -> bool:
        """Validate; whether no step before had a lower loss."""
        assert self.test_loader is not None
        per_codebook = self.evaluate()
        log.test(self.step, per_codebook)
        log.substituted(self.test_loader.substituted)
        loss = sum(per_codebook) / len(per_codebook)
        if self.best is not None and loss >= self.best["loss"]:
            return False
        self.best = {"step": self.step, "loss": loss}
        return True

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """Loss of each codebook on the test split, over all processes; of the averaged weights if any."""
        self.network.eval()
        sums = torch.zeros(self.network.config.num_codebooks, device=self.accelerator.device)
        counts = torch.zeros_like(sums)
        with self.composing():
            for batch, is_new in self.test_batches():
                with self.accelerator.autocast():
                    losses = self.summed_losses(self.network, batch)
                if is_new:
                    sums += losses
                    counts += predicted_codes(batch)
            reshard(self.network)
        return self.mean_over_processes(sums, counts)

    def composing(self) -> AbstractContextManager[None]:
        """Inside, the network has the weights that compose: the averaged ones if there are any."""
        return self.average.composing() if self.average else nullcontext()

    def show_samples(self, log: RunLog) -> None:
        """Compose for segments of the test split, and show what the network looks at."""
        shown = self.test_set if len(self.test_set) else self.train_set
        self.network.eval()
        with self.composing():
            for index in range(min(NUM_SAMPLES, len(shown))):
                sample = shown.read(index)
                log.sample(self.step, sample.key, compose(self.network, sample))
                if index == 0:
                    log.pictures(self.step, attention_pictures(self.network, sample))

    def test_batches(self) -> Iterator[tuple[Batch, bool]]:
        """This process's share of the test split. One that has a batch less shows its last once more.

        All processes then compute as often, as they must where they gather sharded weights together.
        """
        assert self.test_loader is not None
        batch: Batch | None = None
        own = self.test_loader.one_pass()
        for _ in range(self.test_loader.rounds_of_one_pass):
            following = next(own, None)
            batch = following or batch
            assert batch is not None, "as many test segments as processes"
            yield batch, following is not None

    def is_asked_to_stop(self, stop: StopRequest) -> bool:
        """Whether any process was asked to stop; all of them learn of it in the same step."""
        asked = stop.reason() is not None
        if self.accelerator.num_processes == 1:
            return asked
        flag = torch.tensor(int(asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag) > 0)

    def save(self, is_best: bool = False) -> None:
        """Have a checkpoint of this step, written beside the steps that follow.

        Raises OSError where the one before could not be written; older ones stay.
        """
        if self.step == self.saved:
            return
        self.writer.wait()  # its tensors lie where the next ones go
        if self.accelerator.is_main_process or self.is_sharded:
            snapshot = self.snapshot()
        if self.accelerator.is_main_process:
            self.writer.start(partial(self.write, snapshot, self.step, is_best))
        self.saved = self.step

    def save_alone(self) -> None:
        """Save although other processes may not: impossible where each holds a share of the weights."""
        if not self.is_sharded:
            self.save()

    def snapshot(self) -> Snapshot:
        info = replace(
            self.origin,
            preset=self.config.preset,
            encoder_fingerprint=dict(self.train_set.fingerprint),
            step=self.step,
            trained=self.step > 0,
            provenance={
                "data": self.train_set.plan_hash,
                "segments": len(self.train_set),
                "train": self.config.recipe,
            },
            sampling={},  # found for the weights of --init, not for these
        )
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "samples": self.num_samples,
            "data": self.loader.state,
            "best": self.best,
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        keep = self.accelerator.is_main_process
        with self.composing():
            weights = self.host.take(composing_weights(self.network), keep=keep)
        training = training_tensors(self.network, self.optimiser.optimizer, self.average)
        return Snapshot(weights, self.host.take(training, keep=keep), self.network.config, info, state)

    def write(self, snapshot: Snapshot, step: int, is_best: bool) -> None:
        try:
            self.folder.save(step, snapshot.write, self.config.keep_last, is_best=is_best)
        except OSError as error:
            raise OSError(
                f"{self.folder.checkpoints}: cannot write step {step}: {error}. The checkpoints before it "
                "are whole: make room, and the same command goes on from the newest"
            ) from error

    def restore(self, checkpoint: Path, accept_changes: bool) -> None:
        """Go on where a checkpoint was written; the network has the weights that compose already.

        Raises ValueError where it is of other data or another seed, unless that is accepted.
        """
        state = json.loads((checkpoint / STATE).read_text())
        if accept_changes:
            self.loader.seek(state["samples"])
        else:
            self.loader.load_state(state["data"])
        load_training_tensors(
            self.network,
            self.optimiser.optimizer,
            self.average,
            load_file(checkpoint / OPTIMISER),
            str(checkpoint / OPTIMISER),
        )
        self.step, self.num_samples = state["step"], state["samples"]
        self.best = state.get("best")
        if state["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def lost_process(self) -> str:
        """Save what this process knows by itself, and say what happened."""
        self.save_alone()
        return (
            f"{self.folder.path}: another process of this run is gone after step {self.step}. Its own "
            "message or the system's log says why; the same command goes on from the newest checkpoint"
        )

    def rehearse(self) -> None:
        """One step whose result is thrown away: do data, settings and memory suffice?"""
        summary = self.summary()
        report = self.training_step(iter(self.loader))
        self.accelerator.print(
            f"{summary}\n"
            f"One step took {report.seconds:.1f} s and {peak_memory(self.accelerator.device) / 1e9:.1f} GB, "
            f"loss {report.loss:.3f}; nothing was written"
        )

    def summary(self) -> str:
        return summary(
            self.config,
            self.accelerator,
            self.network,
            (len(self.train_set), len(self.test_set)),
            (self.step, self.num_steps),
        )

    def farewell(self, stop: StopRequest) -> str:
        """Why the run ends, and how to go on."""
        if self.step < self.num_steps:
            why = f"Stopped ({stop.reason() or 'another process was asked to'}) after step {self.step} of "
            return f"{why}{self.num_steps}, saved. The same command goes on from there"
        best = f" --model {self.folder.best}" if self.best else ""
        return (
            f"{self.folder.path} is complete: {self.step} steps. Compose: gvm-gen video.mp4 -o out.wav{best}"
        )


def is_lost_process(error: RuntimeError) -> bool:
    """Whether processes could not exchange tensors. Gloo has no error class of its own."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def planned_codes(windows: Sequence[Window], num_codebooks: int) -> Tensor:
    """float32 [K]: codes of a global batch that the delay pattern lets the decoder predict."""
    counts = [sum(max(0, window.num_code_frames - k) for window in windows) for k in range(num_codebooks)]
    return torch.tensor(counts, dtype=torch.float32)


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
