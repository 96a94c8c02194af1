"""The process that composes: orders come in on stdin, reports go out on stdout, a line of JSON each.

It is killed when its order is cancelled, and ends by itself when the studio is gone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gvmgen.encoders.process import MediaError, local_file
from gvmgen.evaluation.extras import MissingExtraError
from gvmgen.finish.ffmpeg import encode
from gvmgen.jobs import Job

if TYPE_CHECKING:
    from gvmgen.generate import Composer, Music
    from gvmgen.judge import Judge
    from gvmgen.takes import Take
    from gvmgen.windows import Progress

NUM_PEAKS = 240
_EVERY_S = 0.2  # between two reports of progress
_LISTENING = ["-map", "[out]", "-c:a", "aac", "-b:a", "160k", "-movflags", "+faststart", "-f", "ipod"]

Report = Callable[[dict[str, Any]], None]


def main() -> None:
    """Load the model that the first argument names, then serve orders until stdin ends."""
    report = _reporter()
    try:
        composer = _load(json.loads(sys.argv[1]))
    except (ValueError, OSError) as error:
        report({"event": "broken", "error": " ".join(str(error).split())})
        return
    model = {"model": composer.name, "engine": composer.engines.description}
    report({"event": "ready", **model, "warnings": composer.warnings()})
    for line in sys.stdin:
        report(_served(composer, json.loads(line), report))


def _reporter() -> Report:
    """Reports go to the real stdout; what libraries print goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(event: dict[str, Any]) -> None:
        try:
            out.write(json.dumps(event, ensure_ascii=False) + "\n")
            out.flush()
        except BrokenPipeError:
            raise SystemExit("the studio is gone") from None

    return report


def _load(settings: dict[str, Any]) -> Composer:
    from gvmgen.generate import Composer

    return Composer.load(**settings)


def _served(composer: Composer, order: dict[str, Any], report: Report) -> dict[str, Any]:
    try:
        takes = serve(composer, Job(**order["job"]), Path(order["video"]), Path(order["folder"]), report)
        return {"event": "done", "takes": takes}
    except (ValueError, OSError) as error:
        return {"event": "failed", "error": " ".join(str(error).split())}


def serve(composer: Composer, job: Job, video: Path, folder: Path, report: Report) -> list[dict[str, Any]]:
    """Compose, rank and finish what is wanted; returns a row a take, the best first."""
    from gvmgen.batch import about, compose_takes
    from gvmgen.resuming import kept_beside

    progress = _throttled(report)
    suffix = film_suffix(job, video, folder)
    judge = _judge(composer, job)
    with kept_beside(folder / "takes", about(composer, job, video), _note) as kept:
        takes = compose_takes(composer, job, video, judge, kept, progress)
        rows = []
        for number, take in enumerate(in_order(takes, progress, judge)):
            progress("finishing", number, len(takes))
            rows.append(finished(take, job, folder, suffix))
    progress("finishing", len(takes), len(takes))
    return rows


def _note(line: str) -> None:
    print(line, file=sys.stderr)


def _judge(composer: Composer, job: Job) -> Judge | None:
    """The evaluation model as a judge; none for one take, or where it cannot judge here."""
    from gvmgen.batch import find_judge

    try:
        return find_judge(composer, job, _note) if job.takes > 1 else None
    except MissingExtraError:
        return None  # the page says what is missing, and how to install it


def in_order(takes: Sequence[Music], progress: Progress, judge: Judge | None) -> list[Take]:
    """The best first. As they came, without scores: one take, or where what ranks is not installed."""
    from gvmgen.takes import Take, ranked

    try:
        if len(takes) > 1:
            return ranked(takes, progress, None if judge is None else judge.cmr)
    except MissingExtraError:
        pass
    return [Take(music, {}, 1.0) for music in takes]


def finished(take: Take, job: Job, folder: Path, suffix: str) -> dict[str, Any]:
    """Write a take's files; returns what the page needs to know of it."""
    music = take.music
    stem = folder / f"seed_{music.seed}"
    sound = music.save(stem.with_suffix(".wav"), job.mastering)
    film = music.save(stem.with_suffix(suffix), job.mastering, job.original)
    listen = stem.with_suffix(".m4a")  # the film's sound by itself: all takes go with one picture on the page
    encode(["-i", local_file(film)], "[0:a:0]anull", _LISTENING, listen)
    return {
        "seed": music.seed,
        "rank": take.rank,
        "scores": dict(take.scores),
        "sound": sound.name,
        "film": film.name,
        "listen": listen.name,
        "start_s": music.start_s,
        "duration_s": music.duration_s,
        "peaks": peaks(music.waveform),
    }


def film_suffix(job: Job, video: Path, folder: Path) -> str:
    """`.mp4`, which plays everywhere, or `.mkv` where MP4 cannot hold what the video holds."""
    from gvmgen.finish.film import check_film

    try:
        check_film(video, folder / "film.mp4", job.original)
        return ".mp4"
    except MediaError:
        check_film(video, folder / "film.mkv", job.original)
        return ".mkv"


def peaks(waveform: np.ndarray) -> list[float]:
    """The loudest sample of each of `NUM_PEAKS` stretches, the loudest of all being 1."""
    stretches = np.array_split(waveform, NUM_PEAKS)
    found = np.array([np.abs(stretch).max(initial=0.0) for stretch in stretches])
    return [round(float(peak), 3) for peak in found / max(float(found.max()), 1e-9)]


def _throttled(report: Report) -> Progress:
    """Progress as reports: every beginning and end of a stage, and what lies between now and then."""
    last = ("", 0.0)

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if stage != last[0] or done >= total or now - last[1] >= _EVERY_S:
            last = (stage, now)
            report({"event": "progress", "stage": stage, "done": done, "total": total})

    return progress


if __name__ == "__main__":
    main()
