"""What one looks at while a run trains: progress bar, metrics.jsonl, and Accelerate's trackers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from gvmgen.machine import matrix_rate
from gvmgen.runs import RunFolder, write_text

SLOW_BAR_S = 10.0  # seconds between two lines of a progress bar that goes into a file
BAR = "{desc} {percentage:3.0f} %|{bar}| {n}/{total} [{elapsed}<{remaining}]{postfix}"


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step was like, over all processes."""

    step: int  # steps done
    per_codebook: list[float]  # nats a code
    rate: float  # learning rate
    grad_norm: float
    num_codes: int
    flops: float  # of the network, forward and backward
    seconds: float
    wait_s: float  # of which this process waited for data

    @property
    def loss(self) -> float:
        """Mean over the codebooks (eq. 7)."""
        return sum(self.per_codebook) / len(self.per_codebook)


class StepClock:
    """Measures a step, and how much of it is waiting for data."""

    def __init__(self) -> None:
        self.started, self.wait_s = time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        since = time.perf_counter()
        yield
        self.wait_s += time.perf_counter() - since

    def read(self) -> tuple[float, float]:
        """(seconds in all, seconds waited)."""
        return time.perf_counter() - self.started, self.wait_s


class RunLog:
    """Shows and records steps; silent on all but the main process."""

    def __init__(
        self, folder: RunFolder, accelerator: Accelerator, first_step: int, num_steps: int, log_every: int
    ) -> None:
        self.folder, self.accelerator, self.log_every = folder, accelerator, log_every
        self.is_main = accelerator.is_main_process
        self.since: list[StepReport] = []  # the last recorded step
        self.save_s = 0.0  # since then, that saving kept the next step waiting
        self.named: set[str] = set()  # corrupt samples
        if self.is_main:
            drop_lines_after(folder, first_step)
            self.peak = (
                matrix_rate(accelerator.device, compute_dtype(accelerator)) * accelerator.num_processes
            )
        accelerator.init_trackers("tensorboard")  # also the name of the folder it writes
        self.bar = tqdm(
            total=max(num_steps, first_step),  # a run may be cut short of where it is
            initial=first_step,
            desc=folder.path.name,
            disable=not self.is_main,
            mininterval=0.1 if sys.stderr.isatty() else SLOW_BAR_S,
            bar_format=BAR,
        )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self.accelerator.end_training()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self.is_main:
            self.bar.write(line, file=sys.stderr)

    def step(self, report: StepReport) -> None:
        self.since.append(report)
        if report.step % self.log_every == 0 or report.step == self.bar.total:
            self._record(report)
        self.bar.update()

    def _record(self, report: StepReport) -> None:
        """A line of metrics.jsonl: this step's loss, and the speed since the line before."""
        if self.is_main:
            speed = speed_of(self.since, self.peak) | {"save_s": self.save_s}
            learning = {"loss": report.loss, "rate": report.rate, "grad_norm": report.grad_norm}
            codebooks = {f"loss_{k}": loss for k, loss in enumerate(report.per_codebook)}
            self._write(report.step, "train", learning | codebooks | speed)
            self.bar.set_postfix_str(
                f"loss {report.loss:.3f}, {speed['step_s']:.2f} s/step, data wait {speed['data_wait']:.1%}, "
                f"{speed['codes_per_s']:.0f} tokens/s, {speed['mfu']:.0%} of FLOP/s",
                refresh=False,
            )
        self.since.clear()
        self.save_s = 0.0

    @contextmanager
    def saving(self) -> Iterator[None]:
        since = time.perf_counter()
        yield
        self.save_s += time.perf_counter() - since

    def substituted(self, corrupt: Collection[str]) -> None:
        """Name each corrupt sample once, in whichever process met it."""
        for key in set(corrupt) - self.named:
            self.named.add(key)
            self.bar.write(
                f"sample {key} is corrupt, another takes its place. Run: gvm-prep verify --deep",
                file=sys.stderr,
            )

    def test(self, step: int, per_codebook: list[float]) -> None:
        """Record a validation."""
        loss = sum(per_codebook) / len(per_codebook)
        each = ", ".join(f"{loss:.3f}" for loss in per_codebook)
        self.say(f"step {step}: test loss {loss:.4f} (codebooks {each})")
        self._write(step, "test", {"loss": loss} | {f"loss_{k}": x for k, x in enumerate(per_codebook)})

    def sample(self, step: int, key: str, codes: np.ndarray) -> None:
        """Keep what was composed for a segment, int16 [K, T]. `tools/hear_samples.py` makes it heard."""
        folder = self.folder.path / "samples" / f"step_{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{key}.npy", codes)

    def pictures(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """uint8 [height, width, 3] each, to the trackers that take pictures."""
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({name: x[None] for name, x in pictures.items()}, step, **layout)

    def _write(self, step: int, split: str, values: dict[str, Any]) -> None:
        if not self.is_main:
            return
        with self.folder.metrics.open("a") as file:
            file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self.accelerator.log({f"{split}/{name}": value for name, value in values.items()}, step=step)


def speed_of(reports: list[StepReport], peak: float) -> dict[str, float]:
    """Means over some steps; peak: FLOP/s that all processes together could do."""
    seconds = sum(report.seconds for report in reports)
    return {
        "step_s": seconds / len(reports),
        "data_wait": sum(report.wait_s for report in reports) / seconds,
        "codes_per_s": sum(report.num_codes for report in reports) / seconds,
        "mfu": sum(report.flops for report in reports) / seconds / peak,
    }


def compute_dtype(accelerator: Accelerator) -> torch.dtype:
    """What the matrix products of a step are computed in."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return half.get(accelerator.mixed_precision, torch.float32)


def drop_lines_after(folder: RunFolder, step: int) -> None:
    """Forget what was logged beyond the checkpoint that a run goes on from: it will be logged again."""
    if folder.metrics.exists():
        lines = folder.metrics.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # the last one may be cut by a kill
        write_text(folder.metrics, "".join(line for line in whole if json.loads(line)["step"] <= step))
