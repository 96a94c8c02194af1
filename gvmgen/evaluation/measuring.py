"""Every file is listened to and looked at once: what was measured stays in a folder, one small file each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

import numpy as np

from gvmgen.encoders.media import MediaError, probe, read_waveform
from gvmgen.evaluation.embedders import Embedder, Embedding, load_embedder
from gvmgen.evaluation.midi import render_midi
from gvmgen.evaluation.motion import Motion, measure_motion
from gvmgen.evaluation.pairing import MIDI
from gvmgen.evaluation.sound import Sound, measure_sound
from shards.spec import SAMPLE_RATE

_VERSION = 1  # of what is measured: another one measures every file again


@dataclass(frozen=True, kw_only=True)
class Job:
    """One file to be measured."""

    path: Path
    is_video: bool  # its picture, else its sound
    limit_s: float | None = None  # of the sound: no longer than its video


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What was measured of a piece of music."""

    sound: Sound
    embedding: Embedding
    full_s: float  # before it was cut to the length of its video


@dataclass(frozen=True, kw_only=True)
class Listener:
    """What all measuring shares. Plain data: it goes to other processes."""

    cache: Path
    embedder: str  # as --embedder names it
    description: str  # of the loaded embedder: other weights, other measures
    soundfont: Path | None = None

    @classmethod
    def create(cls, cache: Path, embedder: str, soundfont: Path | None = None) -> Self:
        """Loads the embedder once, to know its weights. Raises as `load_embedder` does."""
        cache.mkdir(parents=True, exist_ok=True)
        return cls(
            cache=cache,
            embedder=embedder,
            description=load_embedder(embedder).description,
            soundfont=soundfont,
        )

    def place(self, job: Job) -> Path:
        """Where the measures of a file lie; another one once the file is changed."""
        about = job.path.stat()
        parts: list[Any] = [_VERSION, job.path.resolve(), about.st_size, about.st_mtime_ns]
        if not job.is_video:
            soundfont = self.soundfont if job.path.suffix.lower() in MIDI else None
            parts += [self.description, job.limit_s, soundfont]
        digest = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:24]
        return self.cache / f"{digest}.npz"

    def motion(self, job: Job) -> Motion:
        """What was measured of a video."""
        with np.load(self.place(job)) as values:
            return Motion(curve=values["curve"], cuts=values["cuts"], duration_s=float(values["duration_s"]))

    def heard(self, job: Job) -> Heard:
        """What was measured of a piece of music."""
        with np.load(self.place(job)) as values:
            sound = {f.name: _plain(values[f"sound.{f.name}"]) for f in fields(Sound)}
            classes = values.get("classes")
            return Heard(
                sound=Sound(**sound),
                embedding=Embedding(rows=values["rows"], classes=classes),
                full_s=float(values["full_s"]),
            )


def measure_all(listener: Listener, jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, str]]:
    """Measure what is not measured yet, in several processes. Gives each job, and why it failed or ``."""
    waiting = []
    for job in jobs:
        if listener.place(job).is_file():
            yield job, ""
        else:
            waiting.append(job)
    if not waiting:
        return
    context = get_context("spawn")  # a forked process would inherit torch's threads in any state
    with ProcessPoolExecutor(
        min(workers, len(waiting)), mp_context=context, initializer=_start, initargs=(listener,)
    ) as pool:
        yield from zip(waiting, pool.map(_measure, waiting), strict=True)


_LISTENER: list[Listener] = []  # of a worker process
_EMBEDDER: list[Embedder] = []


def _start(listener: Listener) -> None:
    import torch

    torch.set_num_threads(1)  # the processes share the cores
    _LISTENER.append(listener)


def _measure(job: Job) -> str:
    """Why the file could not be measured, else ``. One broken file does not stop the others."""
    (listener,) = _LISTENER
    try:
        values = _look(job.path) if job.is_video else _listen(job, listener)
    except (MediaError, ValueError) as error:
        return " ".join(str(error).split())
    _save(listener.place(job), values)
    return ""


def _look(path: Path) -> dict[str, Any]:
    return asdict(measure_motion(path))


def _listen(job: Job, listener: Listener) -> dict[str, Any]:
    if not _EMBEDDER:
        _EMBEDDER.append(load_embedder(listener.embedder))
    waveform, full_s = read_music(job.path, job.limit_s, listener.soundfont)
    if not len(waveform):
        raise ValueError(f"{job.path}: holds no sound (0 s)")
    embedding = _EMBEDDER[0].embed(waveform)
    values: dict[str, Any] = {"rows": embedding.rows, "full_s": full_s}
    if embedding.classes is not None:
        values["classes"] = embedding.classes
    return values | {f"sound.{name}": value for name, value in asdict(measure_sound(waveform)).items()}


def read_music(path: Path, limit_s: float | None, soundfont: Path | None) -> tuple[np.ndarray, float]:
    """float32 [N] at 32 kHz of any music file, at most limit_s of it, and the whole one's seconds."""
    if path.suffix.lower() in MIDI:
        waveform = render_midi(path, soundfont)
        size = len(waveform) if limit_s is None else round(limit_s * SAMPLE_RATE)
        return waveform[:size], len(waveform) / SAMPLE_RATE
    full_s = probe(path, needs_picture=False).duration_s
    wanted_s = full_s if limit_s is None else min(limit_s, full_s)
    return read_waveform(path, duration_s=wanted_s), full_s


def _save(path: Path, values: dict[str, Any]) -> None:
    """The name appears when the file is whole."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            np.savez(file, **values)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _plain(value: np.ndarray) -> Any:
    return value.item() if value.ndim == 0 else value
