"""What one run of `gvm-gen` is asked for, and what came of it. No torch."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvmgen.part import SHORTEST_S, part_duration

if TYPE_CHECKING:
    from gvmgen.finish.film import Original
    from gvmgen.finish.mastering import Ending, Mastering

LONGEST_NAME = 240  # bytes of an output's name: file systems take 255, and work beside it adds to the name
VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".m4v",
        ".mpg",
        ".mpeg",
        ".ts",
        ".mts",
        ".wmv",
        ".flv",
        ".ogv",
        ".3gp",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is wanted of every video of a run."""

    seed: int = 0
    takes: int = 1
    start_s: float = 0.0
    stop_s: float | None = None
    duration_s: float | None = None
    preview_s: float | None = None
    continue_from: str | None = None  # music, or a film with it
    ending: Ending = "fade"
    loudness: str = "-14"
    sample_rate: int | None = None
    stereo: bool = False
    original: Original = "drop"
    evaluator: str | None = None  # whose score ranks takes; None: the one in the box, where it can
    fresh: bool = False  # forget what an interrupted run has left
    sampling: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stop_s is not None and self.duration_s is not None:
            raise ValueError("--to and --duration both say where the music ends; give one of them")
        if self.stop_s is not None and self.stop_s <= self.start_s:
            raise ValueError(f"the end, {self.stop_s:g} s, does not lie after the start, {self.start_s:g} s")
        if self.preview_s is not None and not self.preview_s >= SHORTEST_S:
            raise ValueError(f"--preview {self.preview_s:g}; give {SHORTEST_S:g} s or more")
        if self.continue_from is not None and not Path(self.continue_from).is_file():
            raise ValueError(f"--continue-from {self.continue_from}: no such file")
        if self.evaluator is not None and self.takes < 2:
            raise ValueError("--evaluator ranks takes: give --takes 2 or more")

    @property
    def mastering(self) -> Mastering:
        from gvmgen.finish.mastering import Mastering, loudness_target

        return Mastering(
            ending=self.ending,
            loudness=loudness_target(self.loudness),
            sample_rate=self.sample_rate,
            stereo=self.stereo,
        )

    @property
    def length_s(self) -> float | None:
        """How many seconds to score; None: to the video's end."""
        return self.duration_s if self.stop_s is None else self.stop_s - self.start_s


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one video."""

    video: Path
    output: Path
    duration_s: float = 0.0  # of the music; 0 where none was made
    compose_s: float = 0.0
    seed: int | None = None  # None where nothing was made
    model: str = ""
    engine: str = ""
    error: str = ""
    takes: list[dict[str, Any]] = field(default_factory=list)  # seed, file and scores, the best first


@dataclass(frozen=True)
class Work:
    """Videos and where their music goes."""

    pairs: list[tuple[Path, Path]]
    is_folder: bool  # then what exists is skipped, and a bad video does not stop the others


def seconds(flag: str, text: str) -> float:
    """Seconds of `75`, `1:15` or `0:01:15`."""
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if not 0 < len(parts) <= 3 or any(not part >= 0 for part in parts):
        raise ValueError(f"{flag} {text}: give seconds, or minutes:seconds")
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))


def find_work(video: Path, output: Path, suffix: str) -> Work:
    """The video and its output, or every video of a folder and a file of that suffix in the output folder.

    Raises ValueError for a folder without videos, and where an output would be another's, or a video.
    """
    if not video.is_dir():
        return Work([(video, output)], is_folder=False)
    videos = sorted(path for path in video.iterdir() if _is_video(path))
    if not videos:
        raise ValueError(f"{video}: no videos here; known: {', '.join(sorted(VIDEO_SUFFIXES))}")
    if output.is_file():
        raise ValueError(f"-o {output}: is a file; {video} is a folder, so name a folder")
    suffix = suffix if suffix.startswith(".") else f".{suffix}"
    own_names = {path.name for path in videos} if output.is_dir() and output.samefile(video) else set()
    work: dict[Path, Path] = {}
    for path in videos:
        out = output / (path.stem + suffix)
        if out in work:
            raise ValueError(f"{path.name} and {work[out].name} would both become {out}; rename one")
        if out.name in own_names:
            raise ValueError(f"-o {output}: is the videos' own folder, and {out.name} is one; name another")
        work[out] = path
    output.mkdir(parents=True, exist_ok=True)
    return Work([(path, out) for out, path in work.items()], is_folder=True)


def _is_video(path: Path) -> bool:
    """By its name; hidden files, as macOS leaves them beside each video, are none."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()


def check_work(job: Job, work: Work) -> None:
    """Find what would fail at the end before the work begins. Of a folder, only what is wrong for all."""
    from gvmgen.finish.film import check_output

    video, output = work.pairs[0]
    check_output(output, video, job.original)
    if not output.parent.is_dir():
        raise ValueError(f"-o {output}: no folder {output.parent}. Make it: mkdir -p {output.parent}")
    if not os.access(output.parent, os.W_OK):
        raise PermissionError(f"-o {output}: no permission to write in {output.parent}")
    check_finish(job, output)
    if not work.is_folder:
        check_video(job, video, output)


def check_finish(job: Job, output: Path) -> None:
    """Raise ValueError where the output cannot be finished as it is wanted."""
    from gvmgen.finish.mastering import file_rate
    from gvmgen.finish.speech import check_detector
    from shards.spec import SAMPLE_RATE

    file_rate(output, job.mastering, SAMPLE_RATE)
    if job.original == "duck":
        check_detector()


def check_video(job: Job, video: Path, output: Path) -> None:
    """Raise ValueError where this video cannot be scored into this output."""
    from gvmgen.finish.film import FILM_SUFFIXES, check_film, check_output

    check_output(output, video, job.original)
    if len(os.fsencode(output.name)) > LONGEST_NAME:
        raise ValueError(f"-o {output}: its name is too long, more than {LONGEST_NAME} bytes; rename {video}")
    part_duration(video, job.start_s, job.length_s)
    if output.suffix.lower() in FILM_SUFFIXES:
        check_film(video, output, job.original)


def json_line(outcome: Outcome) -> str:
    values = asdict(outcome) | {"video": str(outcome.video), "output": str(outcome.output)}
    return json.dumps(values, ensure_ascii=False)


def table(outcomes: list[Outcome]) -> str:
    """A line a video; under it, its takes; of several videos, what came of all."""
    lines = [line for outcome in outcomes for line in _lines(outcome)]
    if len(outcomes) > 1:
        failed = sum(bool(outcome.error) for outcome in outcomes)
        made = sum(outcome.seed is not None for outcome in outcomes)
        lines.append(f"{made} scored, {len(outcomes) - made - failed} already there, {failed} failed")
    return "\n".join(lines)


def _lines(outcome: Outcome) -> list[str]:
    if outcome.error:
        return [f"{outcome.output}: failed: {outcome.error}"]
    if outcome.seed is None:
        return [f"{outcome.output}: already there"]
    speed = outcome.duration_s / outcome.compose_s
    return [
        f"{outcome.output}: {outcome.duration_s:.2f} s of music in {outcome.compose_s:.1f} s "
        f"({speed:.2g}x real time), seed {outcome.seed}, model {outcome.model}, decoded in {outcome.engine}",
        *(
            f"  {take['file']}: " + ", ".join(f"{name} {value}" for name, value in take["scores"].items())
            for take in outcome.takes
        ),
    ]
