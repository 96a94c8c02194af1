"""Videos one after another: composed, ranked, finished, and what came of each."""

from __future__ import annotations

from pathlib import Path

from gvmgen.decoding import SamplingConfig
from gvmgen.generate import Composer, Progress
from gvmgen.jobs import Job, Outcome, Work, check_video
from gvmgen.progress import StageBar
from gvmgen.takes import check_ranking, keep_takes, ranked


def score_all(composer: Composer, job: Job, work: Work, bar: StageBar) -> list[Outcome]:
    """Score every video. In a folder, what exists is skipped and a bad video stops nothing else."""
    if job.takes > 1:
        check_ranking()
    outcomes = []
    for video, output in work.pairs:
        if work.is_folder and output.exists():
            outcomes.append(Outcome(video=video, output=output))
            continue
        try:
            if work.is_folder:
                bar.say(f"gvm-gen: {video}")
                check_video(job, video, output)
            outcomes.append(score_one(composer, job, video, output, bar))
        except ValueError as error:
            if not work.is_folder:
                raise
            outcomes.append(Outcome(video=video, output=output, error=" ".join(str(error).split())))
    return outcomes


def score_one(composer: Composer, job: Job, video: Path, output: Path, progress: Progress) -> Outcome:
    """Score one video as the job wants it; of several takes the best becomes the output."""
    takes = composer.takes(
        video,
        job.takes,
        seed=job.seed,
        start_s=job.start_s,
        duration_s=job.length_s,
        preview_s=job.preview_s,
        sampling=SamplingConfig(**job.sampling),
        progress=progress,
    )
    best, kept = takes[0], []
    if len(takes) > 1:
        scored = ranked(takes, progress)
        best = scored[0].music
        kept = keep_takes(scored, output, job.mastering, progress)
    progress("finishing", 0, 1)
    best.save(output, job.mastering, job.original)
    progress("finishing", 1, 1)
    return Outcome(
        video=video,
        output=output,
        duration_s=best.duration_s,
        compose_s=best.compose_s,
        seed=best.seed,
        model=best.model,
        engine=composer.engines.description,
        takes=kept,
    )
