"""Videos one after another: composed, ranked, finished, and what came of each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvmgen.evaluation.listener import listener
from gvmgen.finish.ffmpeg import whole_file
from gvmgen.finish.film import left_out
from gvmgen.finish.mastering import SOUND_SUFFIXES
from gvmgen.generate import Composer, Music
from gvmgen.jobs import Job, Outcome, Work, check_video
from gvmgen.progress import StageBar
from gvmgen.resuming import Say, Unkept, file_digest, kept_beside
from gvmgen.windows import Progress

if TYPE_CHECKING:
    from gvmgen.decoding import SamplingConfig
    from gvmgen.judge import Judge


def score_all(composer: Composer, job: Job, work: Work, bar: StageBar) -> Iterator[Outcome]:
    """Score every video. In a folder, what exists is skipped and a bad video stops nothing else."""
    judge = find_judge(composer, job, bar.say) if job.takes > 1 else None
    for video, output in work.pairs:
        if work.is_folder and output.exists():
            yield Outcome(video=video, output=output)
            continue
        try:
            if work.is_folder:
                bar.say(str(video))
                check_video(job, video, output)
            outcome = score_one(composer, job, video, output, bar, judge)
        except (ValueError, PermissionError) as error:
            if not work.is_folder:
                raise
            outcome = Outcome(video=video, output=output, error=" ".join(str(error).split()))
        yield outcome


def find_judge(composer: Composer, job: Job, say: Say) -> Judge | None:
    """What ranks takes; none where the evaluator in the box reads through other encoders than the model.

    Raises MissingExtraError where what ranks takes is not installed, ValueError where the evaluator cannot be
    used, or is one that the job names and reads through other encoders.
    """
    from gvmgen.judge import OtherEncodersError, load_judge

    listener()
    try:
        return load_judge(composer, job.evaluator)
    except OtherEncodersError:
        if job.evaluator is not None:
            raise
        say(
            "takes are ranked by cuts and motion alone: the evaluator in the box knows other encoders than "
            "the model's. Train one: gvm-eval train, then --evaluator runs/eval"
        )
        return None


def sampling_of(composer: Composer, job: Job) -> SamplingConfig:
    return composer.sampling(goes_on=job.continue_from is not None, **job.sampling)


def about(composer: Composer, job: Job, video: Path) -> dict[str, Any]:
    """All that a video's codes depend on."""
    return {
        "video": file_digest(video),
        "seed": job.seed,
        "takes": job.takes,
        "from": job.start_s,
        "length": job.length_s,
        "preview": job.preview_s,
        "continue from": None if job.continue_from is None else file_digest(Path(job.continue_from)),
        "sampling": asdict(sampling_of(composer, job)),
        "model": composer.identity,
    }


def compose_takes(
    composer: Composer, job: Job, video: Path, judge: Judge | None, kept: Unkept, progress: Progress
) -> list[Music]:
    """The pieces that the job wants of a video, in the order of their seeds."""
    return composer.takes(
        video,
        job.takes,
        seed=job.seed,
        start_s=job.start_s,
        duration_s=job.length_s,
        preview_s=job.preview_s,
        sampling=sampling_of(composer, job),
        continue_from=job.continue_from,
        look=None if judge is None else judge.look,
        kept=kept,
        progress=progress,
    )


def score_one(
    composer: Composer, job: Job, video: Path, output: Path, bar: StageBar, judge: Judge | None = None
) -> Outcome:
    """Score one video as the job wants it; of several takes the best becomes the output.

    What is done lies beside the output until that is whole.
    """
    for line in left_out(video, output):
        bar.say(line)
    with kept_beside(output, about(composer, job, video), bar.say, fresh=job.fresh) as kept:
        takes = compose_takes(composer, job, video, judge, kept, bar)
        best, rows = takes[0], []
        if len(takes) > 1:
            from gvmgen.takes import keep_takes, ranked

            scored = ranked(takes, bar, None if judge is None else judge.cmr)
            best = scored[0].music
            rows = keep_takes(scored, output, job.mastering, bar)
        bar("finishing", 0, 1)
        if rows and output.suffix.lower() in SOUND_SUFFIXES:  # it is finished already
            with whole_file(output) as aside:
                shutil.copyfile(rows[0]["file"], aside)
        else:
            best.save(output, job.mastering, job.original)
        bar("finishing", 1, 1)
    return Outcome(
        video=video,
        output=output,
        duration_s=best.duration_s,
        compose_s=best.compose_s,
        seed=best.seed,
        model=best.model,
        engine=composer.engines.description,
        takes=rows,
    )
