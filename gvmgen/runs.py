"""A run's folder: its settings, its checkpoints, and the model a user gets without naming one. No torch.

runs/<name>/config.json                      what the run is made of
runs/<name>/metrics.jsonl                    one line a logged step
runs/<name>/checkpoints/step_00001000/       model, optimiser and state, whole or absent
runs/<name>/best                             a link to the checkpoint of the lowest validation loss
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from gvmgen.config import ModelConfig, TrainConfig, model_config
from gvmgen.encoders.presets import POCKET_DIR
from shards.spec import fingerprint_differences

CHECKPOINT_NAME = re.compile(r"step_(\d{8})")
STATE = "state.json"
LOCK = ".lock"
MODEL_CONFIG = "config.json"
OFFICIAL_WEIGHTS = "state_dict.bin"
MODEL_IN_THE_BOX = POCKET_DIR / "model"


class RunFolder:
    """`runs/<name>`, held by one process at a time."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.best = path / "best"

    def claim(self) -> None:
        """Make the folder and hold it until this process ends. Raises ValueError where another holds it."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._lock = hold(
            self.path / LOCK,
            f"{self.path}: another gvm-train is at work in it. Wait for it, or pass another --run NAME",
        )
        for leftover in self.checkpoints.glob(".*.tmp"):
            shutil.rmtree(leftover)

    def refuse_other(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError with the differences from what the run was made of so far."""
        if not self._settings.exists() or not self.latest():
            return
        differences = fingerprint_differences(_recorded(self._settings), _plain(settings))
        if differences:
            raise ValueError(
                f"{self.path} was made with other settings: {'; '.join(differences)}. "
                "Start another run with --run NAME, or go on with the new settings: --accept-changes"
            )

    def settle(self, settings: Mapping[str, Any]) -> None:
        """Record what the run is made of."""
        write_text(self._settings, json.dumps(settings, indent=2, sort_keys=True) + "\n")

    @property
    def _settings(self) -> Path:
        return self.path / "config.json"

    def latest(self) -> Path | None:
        """The checkpoint of the highest step."""
        return max(complete_checkpoints(self.path), key=step_of, default=None)

    def save(self, step: int, fill: Callable[[Path], None], keep_last: int, *, is_best: bool = False) -> Path:
        """A checkpoint that `fill` writes into the folder it is given; then the oldest go, the best not."""
        folder = self.checkpoints / f"step_{step:08d}"
        aside = self.checkpoints / f".{folder.name}.{os.getpid()}.tmp"
        try:
            aside.mkdir()
            fill(aside)
            for path in (*aside.iterdir(), aside):
                sync(path)
            if folder.exists():  # the same step again, after --accept-changes
                remove(folder)
            aside.rename(folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync(self.checkpoints)
        if is_best:
            self._point_best_to(folder)
        for old in sorted(complete_checkpoints(self.path), key=step_of)[:-keep_last]:
            if old.resolve() != self.best.resolve():
                remove(old)
        return folder

    def _point_best_to(self, checkpoint: Path) -> None:
        aside = self.path / f".best.{os.getpid()}.tmp"
        aside.unlink(missing_ok=True)
        aside.symlink_to(checkpoint.relative_to(self.path))
        if not self.best.is_symlink() and self.best.is_dir():
            shutil.rmtree(self.best)  # a copy of the run, in which the link became a folder
        aside.rename(self.best)


def hold(file: Path, refusal: str) -> TextIO:
    """Lock a file till what is returned is closed. Raises ValueError(refusal) where another holds it."""
    lock = file.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it even after SIGKILL
    except BlockingIOError as error:
        lock.close()
        raise ValueError(refusal) from error
    return lock


def remove(folder: Path) -> None:
    """Delete a checkpoint: it is gone before its first file is, and a half-deleted one is none."""
    aside = folder.with_name(f".{folder.name}.gone.tmp")
    folder.rename(aside)
    shutil.rmtree(aside)


def complete_checkpoints(run: Path) -> list[Path]:
    return [
        folder
        for folder in (run / "checkpoints").glob("step_*")
        if CHECKPOINT_NAME.fullmatch(folder.name) and (folder / STATE).is_file()
    ]


def step_of(checkpoint: Path) -> int:
    match = CHECKPOINT_NAME.fullmatch(checkpoint.name)
    assert match, checkpoint
    return int(match[1])


def find_model(model: str | None, runs: Path, preset: str | None) -> Path:
    """The folder of `model`, else the newest checkpoint in `runs`, else the model in the box.

    model: a model folder, or a run's folder. preset: take no model of another preset.
    Raises ValueError that says what was looked for and where.
    """
    if preset is not None:
        model_config(preset)  # raises where it is unknown
    if model is not None:
        return _named_model(Path(model))
    found = [checkpoint for run in runs.glob("*") for checkpoint in complete_checkpoints(run)]
    candidates = [path for path in found if preset in (None, preset_of(path))]
    if candidates:
        return max(candidates, key=lambda path: ((path / STATE).stat().st_mtime_ns, step_of(path)))
    if preset in (None, "pocket") and (MODEL_IN_THE_BOX / MODEL_CONFIG).is_file():
        return MODEL_IN_THE_BOX
    raise ValueError(
        f"no model of preset {preset or 'pocket'}: found none in {runs}/*/checkpoints"
        + ("" if preset in (None, "pocket") else ", and the model in the box is pocket's")
        + f". Train one: gvm-train --preset {preset or 'pocket'}; or name one: --model FOLDER"
        + ("" if preset in (None, "pocket") else "; or use the small one: --preset pocket")
    )


def _named_model(path: Path) -> Path:
    """A model folder, the newest checkpoint of a run, or a checkpoint of GVMGen's authors."""
    newest = RunFolder(path).latest()
    if newest is not None:
        return newest
    if path.is_file() or (path / MODEL_CONFIG).is_file() or (path / OFFICIAL_WEIGHTS).is_file():
        return path
    what = "holds no model" if path.exists() else "no such file or folder"
    raise ValueError(
        f"{path}: {what}. Name a folder with {MODEL_CONFIG} and model.safetensors, a run's folder, "
        f"or an official {OFFICIAL_WEIGHTS}"
    )


def preset_of(model: Path) -> str | None:
    """The preset that a model folder says it is of."""
    preset = json.loads((model / MODEL_CONFIG).read_text()).get("preset")
    return preset if isinstance(preset, str) else None


def write_text(path: Path, text: str) -> None:
    """Replace a file whole: written aside, synced, renamed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be no text
        sync(aside)
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the disk hold what a file or a folder holds now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _recorded(file: Path) -> dict[str, Any]:
    """What a run was made of; settings that came after it have their defaults, which change nothing."""
    found = json.loads(file.read_text())
    defaults = _plain({"train": TrainConfig().recipe, "model": ModelConfig().to_json()})
    return {name: defaults[name] | value if name in defaults else value for name, value in found.items()}


def _plain(settings: Mapping[str, Any]) -> Any:
    """As JSON would give it back: tuples are lists."""
    return json.loads(json.dumps(settings))
