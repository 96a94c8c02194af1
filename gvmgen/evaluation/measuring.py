"""Every file is listened to and looked at once: what was measured stays in a folder, one small file each."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from tqdm import tqdm

from gvmgen.encoders.media import MediaError, probe, read_waveform
from gvmgen.evaluation.embedding import Embedder, Embedding
from gvmgen.evaluation.midi import render_midi
from gvmgen.evaluation.motion import Motion, measure_motion
from gvmgen.evaluation.pairing import MIDI
from gvmgen.evaluation.sound import Sound, measure_sound
from shards.spec import SAMPLE_RATE

_VERSION = 1  # of what is measured: another one measures every file again


Kind = Literal["picture", "sound", "watched", "heard"]  # the last two: as an evaluator reads them


@dataclass(frozen=True, kw_only=True)
class Job:
    """One file to be measured in one way."""

    path: Path
    kind: Kind
    limit_s: float | None = None  # of the sound: no longer than its video


def sound_job(path: Path, limit_s: float | None) -> Job:
    """Music, to be heard no longer than its video is."""
    return Job(path=path, kind="sound", limit_s=limit_s)


def as_evaluator(job: Job) -> Job:
    """The same file, as an evaluator reads it."""
    return replace(job, kind="watched" if job.kind == "picture" else "heard")


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What was measured of a piece of music."""

    sound: Sound
    embedding: Embedding
    full_s: float  # before it was cut to the length of its video


@dataclass(frozen=True, kw_only=True)
class Measurer:
    """What all measuring shares. Plain data: it goes to other processes."""

    cache: Path
    embedder: str = ""  # as --embedder names it
    description: str = ""  # of the loaded embedder: other weights, other measures
    soundfont: Path | None = None
    evaluator: Path | None = None
    preset: str = ""  # whose encoders an evaluator reads through
    encoders: str = ""  # their fingerprint; as JSON

    @classmethod
    def create(
        cls, cache: Path, embedder: str, soundfont: Path | None = None, evaluator: Path | None = None
    ) -> Self:
        """Loads the models once, to know their weights. Raises as their loading does."""
        from gvmgen.evaluation.embedders import load_embedder

        preset = encoders = ""
        if evaluator is not None:
            from gvmgen.evaluation.evaluator import load_evaluator

            info = load_evaluator(evaluator).info
            preset, encoders = info.preset, json.dumps(info.encoder_fingerprint, sort_keys=True)
        cache.mkdir(parents=True, exist_ok=True)
        return cls(
            cache=cache,
            embedder=embedder,
            description=load_embedder(embedder).description,
            soundfont=soundfont,
            evaluator=evaluator,
            preset=preset,
            encoders=encoders,
        )

    def place(self, job: Job) -> Path:
        """Where the measures of a file lie; another one once the file is changed."""
        about = job.path.stat()
        soundfont = self.soundfont if job.path.suffix.lower() in MIDI else None
        made_by = {
            "picture": (),
            "sound": (self.description, job.limit_s, soundfont),
            "watched": (self.encoders,),
            "heard": (self.encoders, job.limit_s, soundfont),
        }[job.kind]
        parts = (_VERSION, job.kind, job.path.resolve(), about.st_size, about.st_mtime_ns, *made_by)
        digest = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:24]
        return self.cache / f"{digest}.npz"

    def motion(self, job: Job) -> Motion:
        """What was measured of a video."""
        with np.load(self.place(job)) as values:
            return Motion(curve=values["curve"], cuts=values["cuts"], duration_s=float(values["duration_s"]))

    def seconds(self, job: Job) -> np.ndarray:
        """float32 [t, D]: what an evaluator reads of a file."""
        with np.load(self.place(job)) as values:
            return values["seconds"]

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


def measure(measurer: Measurer, jobs: Iterable[Job], workers: int | None) -> dict[Job, str]:
    """Measure what is not measured yet, with a bar. Why files failed, each in one way of measuring."""
    unique = list(dict.fromkeys(jobs))
    done = measure_all(measurer, unique, workers or os.cpu_count() or 1)
    bar = tqdm(done, total=len(unique), desc="measuring", unit=" files", smoothing=0)
    return {job: reason for job, reason in bar if reason}


def measure_all(measurer: Measurer, jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, str]]:
    """Measure what is not measured yet, in several processes. Gives each job, and why it failed or ``."""
    waiting = []
    for job in jobs:
        if measurer.place(job).is_file():
            yield job, ""
        else:
            waiting.append(job)
    if workers == 1 or len(waiting) < 2:
        _start(measurer)
        yield from ((job, _measure(job)) for job in waiting)
        return
    context = get_context("spawn")  # a forked process would inherit torch's threads in any state
    with ProcessPoolExecutor(
        min(workers, len(waiting)), mp_context=context, initializer=_start_beside, initargs=(measurer,)
    ) as pool:
        try:
            with _interrupts_held():  # the processes start here
                futures = [pool.submit(_measure, job) for job in waiting]
            for job, future in zip(waiting, futures, strict=True):
                yield job, future.result()
        except BrokenProcessPool as error:
            raise OSError(
                "a process that measures was killed, perhaps for want of memory. "
                "The same command goes on from there; pass fewer --workers"
            ) from error
        finally:
            # not future by future, as `map` does it: a pool that breaks meanwhile would never end
            pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A process that starts meanwhile never sees ctrl-C, even while it imports; the parent does, after."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_MEASURER: list[Measurer] = []  # of a worker process


def _start(measurer: Measurer) -> None:
    _MEASURER[:] = [measurer]


def _start_beside(measurer: Measurer) -> None:
    """In a worker process: it ends with its parent, however that ends. At ctrl-C it finishes its file."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _start(measurer)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _measure(job: Job) -> str:
    """Why the file could not be measured, else ``. One broken file does not stop the others."""
    (measurer,) = _MEASURER
    try:
        values = MEASURES[job.kind](job, measurer)
    except (MediaError, ValueError) as error:
        return " ".join(str(error).split())
    _save(measurer.place(job), values)
    return ""


def _look(job: Job, _: Measurer) -> dict[str, Any]:
    return asdict(measure_motion(job.path))


def _listen(job: Job, measurer: Measurer) -> dict[str, Any]:
    waveform, full_s = read_music(job.path, job.limit_s, measurer.soundfont)
    embedding = _embedder(measurer.embedder).embed(waveform)
    values: dict[str, Any] = {"rows": embedding.rows, "full_s": full_s}
    if embedding.classes is not None:
        values["classes"] = embedding.classes
    return values | {f"sound.{name}": value for name, value in asdict(measure_sound(waveform)).items()}


def _watch_as_evaluator(job: Job, measurer: Measurer) -> dict[str, Any]:
    return {"seconds": _senses(measurer.preset, measurer.encoders).watch(job.path).numpy()}


def _hear_as_evaluator(job: Job, measurer: Measurer) -> dict[str, Any]:
    waveform, _ = read_music(job.path, job.limit_s, measurer.soundfont)
    return {"seconds": _senses(measurer.preset, measurer.encoders).hear(waveform).numpy()}


MEASURES: dict[Kind, Callable[[Job, Measurer], dict[str, Any]]] = {
    "picture": _look,
    "sound": _listen,
    "watched": _watch_as_evaluator,
    "heard": _hear_as_evaluator,
}


@cache
def _embedder(choice: str) -> Embedder:
    """Loaded once a process, when its first piece of music comes."""
    from gvmgen.evaluation.embedders import load_embedder

    _one_thread_a_process()
    return load_embedder(choice)


@cache
def _senses(preset: str, encoders: str) -> Any:
    from gvmgen.evaluation.senses import Senses

    _one_thread_a_process()
    return Senses(preset, json.loads(encoders))


def _one_thread_a_process() -> None:
    import torch

    if parent_process() is not None:
        torch.set_num_threads(1)  # the processes share the cores


def read_music(path: Path, limit_s: float | None, soundfont: Path | None) -> tuple[np.ndarray, float]:
    """float32 [N] at 32 kHz of any music file, at most limit_s of it, and the whole one's seconds.

    Raises ValueError where there is no sound in it.
    """
    if path.suffix.lower() in MIDI:
        assert soundfont is not None, "asked for before the work begins"
        waveform = render_midi(path, soundfont)
        full_s = len(waveform) / SAMPLE_RATE
        waveform = waveform if limit_s is None else waveform[: round(limit_s * SAMPLE_RATE)]
    else:
        full_s = probe(path, needs_picture=False).duration_s
        waveform = read_waveform(path, duration_s=full_s if limit_s is None else min(limit_s, full_s))
    if not len(waveform):
        raise ValueError(f"{path}: holds no sound (0 s)")
    return waveform, full_s


def duration_of(video: Path) -> float | None:
    """Seconds; None where the file cannot be read, which is said when it is looked at."""
    try:
        return probe(video).duration_s
    except MediaError:
        return None


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
