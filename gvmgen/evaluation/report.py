"""What `gvm-eval score` leaves: report.html, scores.md, scores.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gvmgen.evaluation import excerpts
from gvmgen.evaluation.evaluated import alignment
from gvmgen.evaluation.extras import needed
from gvmgen.evaluation.measuring import Job, Measurer, as_evaluator, duration_of, read_music, sound_job
from gvmgen.evaluation.midi import check_midi
from gvmgen.evaluation.page import Example, Track, page
from gvmgen.evaluation.pictures import mel_picture, peaks, picture, pitch_contour
from gvmgen.evaluation.scoring import CACHE_NAME, Plan, Scores, make_plan, score, write_json
from gvmgen.evaluation.table import markdown

EXCERPT_S = 30.0  # of a longer video on the page


def score_folders(
    videos: Path,
    systems: Sequence[tuple[str, Path]],
    reference: Path | None,
    out: Path,
    *,
    embedder: str,
    evaluator: Path | None,
    examples: int,
    soundfont: Path | None,
    workers: int | None,
) -> Scores:
    """Score and write everything into `out`. What would fail at the end is found before the work begins."""
    plan = make_plan(videos, systems, reference)
    for module in ("librosa", "pyloudnorm", "scipy"):
        needed(module)
    check_midi((path for system in plan.all_systems for path in system.files), soundfont)
    measurer = Measurer.create(out / CACHE_NAME, embedder, soundfont, evaluator)
    scores = score(plan, measurer, workers)
    write_json(scores, out / "scores.json")
    (out / "scores.md").write_text(markdown(scores), encoding="utf-8")
    shown = [_example(plan, measurer, video) for video in _chosen(plan, scores, examples)]
    (out / "report.html").write_text(page(scores, shown), encoding="utf-8")
    return scores


def _chosen(plan: Plan, scores: Scores, count: int) -> list[str]:
    """Videos spread evenly over those that every system has music for; over all where there are none."""
    usable = [video for video in plan.videos if _is_usable(plan, scores, video)]
    complete = [video for video in usable if all(video in system.takes for system in plan.all_systems)]
    found = complete or usable
    return [found[i * len(found) // count] for i in range(count)] if count < len(found) else found


def _is_usable(plan: Plan, scores: Scores, video: str) -> bool:
    """Whether the film and all music that there is for it could be read, and there is some."""
    paths = [system.takes[video][0] for system in plan.all_systems if video in system.takes]
    return bool(paths) and not {str(path) for path in (plan.videos[video], *paths)} & set(scores.failures)


def _example(plan: Plan, measurer: Measurer, video: str) -> Example:
    """A video, small, and what there is of every system's first take for it."""
    path = plan.videos[video]
    look = Job(path=path, kind="picture")
    motion = measurer.motion(look)
    duration_s = min(EXCERPT_S, motion.duration_s)
    return Example(
        video=video,
        film=excerpts.film(path, None, duration_s),
        duration_s=duration_s,
        cuts=motion.cuts.tolist(),
        tracks=[
            _track(
                measurer, look, system.name, sound_job(system.takes[video][0], duration_of(path)), duration_s
            )
            for system in plan.all_systems
            if video in system.takes
        ],
    )


def _track(measurer: Measurer, look: Job, name: str, sound: Job, duration_s: float) -> Track:
    waveform, _ = read_music(sound.path, duration_s, measurer.soundfont)
    matrix = ""
    if measurer.evaluator is not None:
        read = (measurer.seconds(as_evaluator(look)), measurer.seconds(as_evaluator(sound)))
        found = alignment(measurer.evaluator, read)
        matrix = picture(found / found.max())
    return Track(
        system=name,
        sound=excerpts.music(waveform, sound.path),
        mel=mel_picture(waveform, duration_s),
        pitch=pitch_contour(waveform, duration_s),
        peaks=peaks(waveform, duration_s),
        alignment=matrix,
    )
