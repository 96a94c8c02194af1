"""Where the evaluation model's pairs come from: shards, or a folder of videos and one of their music."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from gvmgen.evaluation.measuring import Job, Measurer, as_evaluator, duration_of, measure, sound_job
from gvmgen.evaluation.midi import check_midi
from gvmgen.evaluation.pairing import System, find_music, find_videos
from gvmgen.evaluation.seconds import MIN_SECONDS, Pair, load_pairs, make_pair
from gvmgen.evaluation.senses import fingerprint_of
from shards.reader import ShardSet

TEST_SHARE = 0.15  # of the videos; the publication's, and gvm-prep's
SEGMENT_S = 30  # longer pairs are cut into pieces so long, as gvm-prep cuts them
_MOST_NAMED = 10  # files that are left out


class PairSource(Protocol):
    """Pairs of a train and a test split."""

    identity: dict[str, Any]  # other pairs, another one; plain JSON
    encoders: dict[str, Any]  # the fingerprint of what read them

    @property
    def failures(self) -> dict[Job, str]:
        """Why files were left out, by path."""

    def pairs(self, split: str) -> list[Pair]:
        """Of `train` or `test`."""


class ShardPairs:
    """The segments of `data`/shards."""

    def __init__(self, data: Path, preset: str, cache: Path) -> None:
        """cache: keeps what was read. Raises ShardError where there are no shards."""
        self._data, self._preset, self._cache = data, preset, cache
        shards = ShardSet.open(data / "shards", "train")
        self.identity: dict[str, Any] = {"plan_hash": shards.plan_hash}
        self.encoders = dict(shards.fingerprint)
        self.failures: dict[Job, str] = {}  # none: a broken shard is an error

    def pairs(self, split: str) -> list[Pair]:
        return load_pairs(self._data, split, self._preset, self._cache)


class FolderPairs:
    """Videos and their music, paired by name. Each file is watched or heard once, and kept."""

    def __init__(
        self,
        videos: Path,
        music: Path | None,
        preset: str,
        cache: Path,
        *,
        soundfont: Path | None = None,
        workers: int | None = None,
    ) -> None:
        """music: None takes the sound of the videos. cache: as `gvm-eval score` keeps it.

        Raises ValueError where nothing can be paired, MissingWeightsError without the preset's weights.
        """
        found = find_videos(videos)
        system = find_music("music", music or videos, found, "--videos" if music is None else "--music")
        check_midi(system.files, soundfont)
        self.encoders = fingerprint_of(preset)
        cache.mkdir(parents=True, exist_ok=True)
        encoders = json.dumps(self.encoders, sort_keys=True)
        self._measurer = Measurer(cache=cache, soundfont=soundfont, preset=preset, encoders=encoders)
        self._workers = workers
        self._jobs = {name: _jobs(found[name], takes[0]) for name, takes in system.takes.items()}
        places = "\n".join(self._measurer.place(job).name for jobs in self._jobs.values() for job in jobs)
        self.identity: dict[str, Any] = {"files": hashlib.sha256(places.encode()).hexdigest()[:16]}
        _say_left_out(system)

    @cached_property
    def failures(self) -> dict[Job, str]:
        """Why files could not be read. Asking reads them all, and says it."""
        found = measure(self._measurer, [job for both in self._jobs.values() for job in both], self._workers)
        _say_all(list(found.values()))
        return found

    def pairs(self, split: str) -> list[Pair]:
        """Pieces of at most 30 s. A broken file is left out."""
        held_out = for_testing(self._jobs)
        jobs = {name: both for name, both in self._jobs.items() if (name in held_out) == (split == "test")}
        return [
            piece
            for name, (look, sound) in jobs.items()
            if self.failures.keys().isdisjoint((look, sound))
            for piece in pieces(make_pair(name, self._seconds(look), self._seconds(sound)))
        ]

    def _seconds(self, job: Job) -> torch.Tensor:
        return torch.from_numpy(self._measurer.seconds(job))


def _jobs(video: Path, music: Path) -> tuple[Job, Job]:
    look = Job(path=video, kind="picture")
    return as_evaluator(look), as_evaluator(sound_job(music, duration_of(video)))


def for_testing(names: Iterable[str]) -> set[str]:
    """Which videos are for testing: those of the lowest hashes, so that others beside them change little."""
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(by_hash[: round(TEST_SHARE * len(by_hash))])


def pieces(pair: Pair) -> Iterator[Pair]:
    """A pair cut every 30 s; a rest that is too short is left out."""
    for start in range(0, pair.num_seconds, SEGMENT_S):
        part = slice(start, start + SEGMENT_S)
        piece = Pair(f"{pair.key}@{start}", pair.video[part], pair.music[part])
        if piece.num_seconds >= MIN_SECONDS:
            yield piece


def _say_left_out(system: System) -> None:
    _say_all([f"{name}: no music for this video" for name in system.missing])
    _say_all([f"{name}: no video for this music" for name in system.extra])


def _say_all(lines: list[str]) -> None:
    """The first ones, and how many more there are."""
    more = len(lines) - _MOST_NAMED
    for line in lines[:_MOST_NAMED] + ([f"… and {more} more"] if more > 0 else []):
        print(f"Left out: {line}", file=sys.stderr)
