"""`gvm-eval score` from folders to tables and page, on small films whose fitting music is known."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.fingerprint import encoder_fingerprint
from gvmgen.encoders.media import write_waveform
from gvmgen.encoders.presets import encoder_config
from gvmgen.encoders.video import VideoEncoder
from gvmgen.evaluation.config import EvaluatorConfig
from gvmgen.evaluation.embedding import Embedding
from gvmgen.evaluation.evaluator import EvaluatorInfo, save_evaluator
from gvmgen.evaluation.judging import Reference, SystemScores, Takes, judge
from gvmgen.evaluation.measuring import Heard, Job, Measurer, measure_all
from gvmgen.evaluation.model import EvaluationModel
from gvmgen.evaluation.motion import Motion
from gvmgen.evaluation.page import page
from gvmgen.evaluation.report import score_folders
from gvmgen.evaluation.scoring import Scores, compare, make_plan
from gvmgen.evaluation.sound import Sound, measure_sound
from gvmgen.evaluation.statistics import mean_estimate
from shards.spec import SAMPLE_RATE
from tests.browser import CHROMIUM, Browser
from tests.gvmgen.evaluation.made_pairs import chords, clicks, make_film, noise
from tests.media import join

for package in ("librosa", "pyloudnorm", "scipy"):
    pytest.importorskip(package)
NUM_VIDEOS = 6
DURATION_S = 4.0
OTHER_RATE = 44_100  # Hz, of one system's files


@dataclass
class Scored:
    folder: Path
    scores: Scores

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def cuts_of(number: int) -> tuple[float, ...]:
    rng = np.random.default_rng(number)
    return tuple(float(t) / 10 for t in np.sort(rng.choice(np.arange(5, 37, 3), 3, replace=False)))


def make_folders(folder: Path) -> None:
    """Films; `fits` hits every cut, `other` has noise, one file too few, one broken and one too many."""
    for name in ("videos", "reference", "fits", "other"):
        (folder / name).mkdir()
    for number in range(NUM_VIDEOS):
        name = f"v{number}" if number else "<script>alert(1)<"
        video = make_film(folder / "videos" / f"{name}.mp4", cuts_of(number), DURATION_S)
        tone = chords((220.0 * 1.1**number, 330.0 * 1.1**number), each_s=DURATION_S)
        music = clicks(np.array(cuts_of(number)), DURATION_S) + 0.3 * tone
        write_waveform(folder / "reference" / f"{name}.wav", music)
        write_waveform(folder / "fits" / f"{name}.wav", music + noise(DURATION_S, 0.003))
        if number == 1:
            (folder / "fits" / "v1.wav").unlink()
            join(video, folder / "reference/v1.wav", folder / "fits/v1.mp4", codec="aac")
        if number == 2:
            write_waveform(folder / "fits/v2.2.wav", chords((500.0,), each_s=6.0))
        if number != 3:
            write_waveform(
                folder / "other" / f"{name}.wav", noise(2 * DURATION_S, 0.3), sample_rate=OTHER_RATE
            )
    (folder / "other/v4.wav").write_bytes(b"no sound at all")
    write_waveform(folder / "other/of-no-video.wav", noise(1.0))


def make_evaluator(folder: Path) -> Path:
    """Untrained: its numbers mean nothing, but they are all there."""
    config = encoder_config("pocket")
    fingerprint = encoder_fingerprint(VideoEncoder.load(config), AudioCodec.load(config))
    torch.manual_seed(0)
    model = EvaluationModel(EvaluatorConfig(video_dim=576, music_dim=192, dim=16, num_layers=1, num_heads=2))
    save_evaluator(
        folder, model, EvaluatorInfo(preset="pocket", encoder_fingerprint=fingerprint, step=0, training={})
    )
    return folder


def run_score(folder: Path, *, examples: int = 0) -> Scores:
    return score_folders(
        folder / "videos",
        [("fits", folder / "fits"), ("other", folder / "other")],
        folder / "reference",
        folder / "out",
        embedder="encodec",
        evaluator=folder / "evaluator",
        examples=examples,
        soundfont=None,
        workers=1,
    )


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    folder = tmp_path_factory.mktemp("scored")
    make_folders(folder)
    make_evaluator(folder / "evaluator")
    scores = run_score(folder, examples=2)
    (folder / "out/report.html").rename(folder / "report.html")  # later runs write another one
    return Scored(folder, scores)


def of(scored: Scored, name: str) -> SystemScores:
    return next(system for system in scored.scores.systems if system.name == name)


def test_music_that_fits_scores_higher_than_noise_and_than_its_own_shuffle(scored: Scored) -> None:
    fits, other = of(scored, "fits"), of(scored, "other")
    for metric in ("onset_motion", "cut_onsets"):
        assert fits.estimates[metric].value > other.estimates[metric].value + 0.2
        assert fits.estimates[metric].value > fits.shuffled[metric] + 0.2
        assert fits.estimates[metric].low <= fits.estimates[metric].value <= fits.estimates[metric].high


def test_a_silent_video_as_the_reference_is_a_picture_still(scored: Scored, tmp_path: Path) -> None:
    shutil.copytree(scored.folder / "videos", tmp_path / "videos")  # films without sound
    join(tmp_path / "videos/v1.mp4", scored.folder / "reference/v1.wav", tmp_path / "v2.mp4", codec="aac")
    (tmp_path / "v2.mp4").replace(tmp_path / "videos/v2.mp4")
    for name in ("fits", "other"):
        (tmp_path / name).symlink_to(scored.folder / name)
    (tmp_path / "reference").symlink_to(tmp_path / "videos")
    (tmp_path / "evaluator").symlink_to(scored.folder / "evaluator")
    scores = run_score(tmp_path)
    fits = next(system for system in scores.systems if system.name == "fits")
    assert len(scores.failures) == NUM_VIDEOS - 1 + 1  # films without sound, and the broken file of `other`
    assert np.isfinite(fits.items["onset_motion"]).all()


def test_music_near_the_reference_is_nearer_than_noise(scored: Scored) -> None:
    fits, other = of(scored, "fits"), of(scored, "other")
    for metric in ("fad", "kad"):
        assert fits.estimates[metric].value < other.estimates[metric].value
    assert fits.estimates["coverage"].value == 1
    assert fits.estimates["key_agreement"].value > other.estimates["key_agreement"].value


def test_the_reference_is_measured_but_not_compared_with_itself(scored: Scored) -> None:
    reference = of(scored, "reference")
    assert "onset_motion" in reference.estimates
    assert not {"fad", "kad", "coverage"} & set(reference.estimates)
    assert {c.first for c in scored.scores.comparisons} | {c.second for c in scored.scores.comparisons} == {
        "fits",
        "other",
    }


def test_what_is_missing_broken_or_too_much_is_said_and_the_rest_is_scored(scored: Scored) -> None:
    scores = scored.scores
    assert scores.missing == {"other": ["v3"]}
    assert scores.extra == {"other": ["of-no-video.wav"]}
    ((path, reason),) = scores.failures.items()
    assert path.endswith("other/v4.wav")
    assert "no media file" in reason
    assert (of(scored, "fits").num_pieces, of(scored, "other").num_pieces) == (6, 4)
    text = (scored.folder / "out/scores.md").read_text()
    assert "other: no music for 1 of 6 videos: v3" in text
    assert "v4.wav" in text


def test_music_of_any_rate_and_length_counts_as_far_as_the_film_goes(scored: Scored) -> None:
    written_s = 2 * DURATION_S * SAMPLE_RATE / OTHER_RATE
    found = of(scored, "other").estimates["length_s"]
    assert found.value == pytest.approx(written_s - DURATION_S, abs=0.1)


def test_takes_of_one_video_are_compared_with_each_other(scored: Scored) -> None:
    takes = of(scored, "fits").estimates["take_diversity"]
    assert takes.num == 1
    assert takes.value > 0.001


def test_the_evaluators_figures_stand_beside_their_control(scored: Scored) -> None:
    fits = of(scored, "fits")
    for metric in ("cmr", "ta", "cmr_printed"):
        assert fits.estimates[metric].num == 6
        assert metric in fits.shuffled
    assert scored.scores.batch_size == 4  # the same for both, though one has six pieces
    assert "batches of 4, for all systems: chance is 0.25" in (scored.folder / "out/scores.md").read_text()


def test_the_json_is_the_table(scored: Scored) -> None:
    found = json.loads((scored.folder / "out/scores.json").read_text())
    fits = of(scored, "fits").estimates["onset_motion"]
    assert found["systems"]["fits"]["metrics"]["onset_motion"]["value"] == fits.value
    assert found["systems"]["other"]["items"]["v3"]["onset_motion"] is None
    assert "pocket codec" in found["embedder"]
    row = next(
        r for r in (scored.folder / "out/scores.md").read_text().splitlines() if r.startswith("| fits | 6 |")
    )
    assert f"{fits.value:.2f} [{fits.low:.2f}, {fits.high:.2f}], shuffled" in row


def test_a_second_run_measures_nothing_again_and_a_changed_file_is_measured_anew(scored: Scored) -> None:
    cache = scored.folder / "out/measured"
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    again = run_score(scored.folder)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == before
    assert again.to_json() == scored.scores.to_json()
    os.utime(scored.folder / "fits/v5.wav", ns=(1, 1))
    run_score(scored.folder)
    assert len(list(cache.iterdir())) == len(before) + 2  # its sound, and what the evaluator hears


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        assert tag not in ("link", "iframe", "object")
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)


def test_the_page_asks_for_nothing_from_elsewhere_and_names_are_no_markup(scored: Scored) -> None:
    links = Links()
    text = scored.report.read_text()
    links.feed(text)
    assert len(links.found) >= 2 * (1 + 3 * 2)
    assert all(link.startswith("data:") for link in links.found)
    assert text.count("<script>") == 1


def test_the_best_are_all_that_read_so_and_none_where_all_read_alike(scored: Scored) -> None:
    def marked(*values: float) -> list[bool]:
        systems = [
            replace(of(scored, "fits"), name=f"s{i}", estimates={"kad": mean_estimate(np.array([value]))})
            for i, value in enumerate(values)
        ]
        rows = page(replace(scored.scores, systems=systems, comparisons=[]), []).split("<tr>")
        return ["class=best" in row for row in rows if "<b>" in row]

    assert marked(0.123, 0.119, 0.2) == [True, True, False]
    assert marked(0.1, 0.1) == [False, False]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH to look at the page")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_the_page_whole_and_plays_a_system_in_time_with_the_film(
    scored: Scored, tmp_path: Path, width: int
) -> None:
    pytest.importorskip("websockets")
    with Browser(tmp_path, width=width) as browser:
        browser.open(scored.report)
        browser.wait("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert browser.evaluate("document.images.length") >= 2 * 3
        assert browser.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        heights = "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height)"
        assert min(browser.evaluate(heights)) > 0
        titles = browser.evaluate("[...document.querySelectorAll('h2')].map(h => h.innerText)")
        assert {"Fit to the picture", "Against the reference", "To watch and hear", "Notes"} <= set(titles)
        browser.click(".item button:nth-of-type(2)")
        browser.wait("document.querySelector('.item video').currentTime > 0.5")
        playing = "[...document.querySelectorAll('.item:first-of-type audio')].map(a => !a.paused || a.ended)"
        assert browser.evaluate(playing)[:2] == [False, True]
        film, sound = "document.querySelector('.item video')", "document.querySelectorAll('.item audio')[1]"
        apart = f"Math.abs({film}.currentTime - {sound}.currentTime)"
        assert browser.evaluate(apart) < 0.5


def test_several_processes_measure_as_one_does(scored: Scored, tmp_path: Path) -> None:
    jobs = [Job(path=scored.folder / f"videos/v{i}.mp4", kind="picture") for i in (1, 2, 3)]
    motions = []
    for workers in (1, 2):
        measurer = Measurer(cache=tmp_path / f"by-{workers}", embedder="encodec", description="")
        measurer.cache.mkdir()
        for _ in ("first", "when nothing is left to measure"):
            assert dict(measure_all(measurer, jobs, workers)) == dict.fromkeys(jobs, "")
        motions.append([measurer.motion(job).curve for job in jobs])
    assert np.array_equal(*motions)


def start_measuring(scored: Scored, tmp_path: Path, in_a_worker: str = "") -> subprocess.Popen[str]:
    """Two processes that measure 200 films; each first runs `in_a_worker`."""
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from gvmgen.evaluation.measuring import Job, Measurer, measure_all\n"
        "if __name__ == '__main__':\n"
        "    films = [Job(path=Path(path), kind='picture') for path in sys.argv[2:]]\n"
        "    for job, reason in measure_all(Measurer(cache=Path(sys.argv[1])), films, 2):\n"
        "        print(job.path, flush=True)\n"
        "else:\n"
        f"    {in_a_worker or 'pass'}\n"
    )
    (tmp_path / "measures.py").write_text(script)
    film = scored.folder / "videos/v1.mp4"
    films = [shutil.copyfile(film, tmp_path / f"{number}.mp4") for number in range(200)]
    (tmp_path / "measured").mkdir()
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "measures.py"), str(tmp_path / "measured"), *map(str, films)],
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


@pytest.mark.parametrize("killed", [signal.SIGKILL, signal.SIGINT])
def test_processes_that_measure_end_with_their_parent_and_at_ctrl_c(
    scored: Scored, tmp_path: Path, killed: signal.Signals
) -> None:
    parent = start_measuring(scored, tmp_path)
    assert parent.stdout is not None
    parent.stdout.readline()
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) >= 2
    if killed is signal.SIGINT:
        os.killpg(parent.pid, killed)  # as the terminal does it
    else:
        parent.kill()
    _, said = parent.communicate(timeout=60)
    assert not psutil.wait_procs(family, timeout=60)[1]
    assert said.count("Traceback") == (killed is signal.SIGINT)  # the script's own; the command catches it
    assert 0 < len(list((tmp_path / "measured").glob("*.npz"))) < 200


def test_ctrl_c_while_a_process_that_measures_still_starts_ends_all(scored: Scored, tmp_path: Path) -> None:
    started = tmp_path / "started"
    parent = start_measuring(scored, tmp_path, f"Path({str(started)!r}).touch(); time.sleep(2)")
    deadline = time.monotonic() + 60
    while not started.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(parent.pid).children(recursive=True)
    os.killpg(parent.pid, signal.SIGINT)
    _, said = parent.communicate(timeout=60)
    assert not psutil.wait_procs(family, timeout=60)[1]
    assert said.count("Traceback") == 1  # the script's own, none of a process beside it


def heard(sound: Sound, seed: int) -> Heard:
    """A piece that sounds so, with made embeddings and classes."""
    rng = np.random.default_rng(seed)
    return Heard(
        sound=sound,
        embedding=Embedding(
            rows=rng.normal(size=(4, 3)) + rng.normal(size=3), classes=rng.dirichlet(np.ones(5))
        ),
        full_s=4.0,
    )


def test_repeated_tracks_and_foreign_classes_show_in_coverage_diversity_and_kld() -> None:
    sound = measure_sound(noise(1.0))
    videos = [f"v{i}" for i in range(12)]
    motion = Motion(curve=np.zeros(40, np.float32), cuts=np.zeros(0), duration_s=4.0)
    motions = dict.fromkeys(videos, motion)
    truth: Takes = {video: [heard(sound, i)] for i, video in enumerate(videos)}
    reference = Reference(truth)
    same = judge("same", videos, motions, truth, reference)
    collapsed = judge("collapsed", videos, motions, dict.fromkeys(videos, truth["v0"]), reference)
    assert same.estimates["kld"].value == pytest.approx(0, abs=1e-3)
    assert collapsed.estimates["kld"].value > 0.1
    assert same.estimates["coverage"].value == 1 > collapsed.estimates["coverage"].value
    assert collapsed.estimates["diversity"].value == pytest.approx(0, abs=1e-9)
    assert collapsed.estimates["fad"].value > same.estimates["fad"].value
    kld = next(c for c in compare([same, collapsed]) if c.metric == "kld")
    assert kld.difference < 0
    assert kld.p < 0.05


def test_names_and_folders_that_cannot_be_used_are_said_before_any_work(tmp_path: Path) -> None:
    make_film(tmp_path / "videos.mp4", (), 1.0)
    (tmp_path / "music").mkdir()
    (tmp_path / "music/videos.mid").write_bytes(b"MThd")
    twice = [("a", tmp_path / "music"), ("a", tmp_path / "music")]
    with pytest.raises(ValueError, match="the name is taken"):
        make_plan(tmp_path, twice, None)
    with pytest.raises(ValueError, match="name a soundfont, --soundfont"):
        score_folders(
            tmp_path,
            twice[:1],
            None,
            tmp_path / "out",
            embedder="encodec",
            evaluator=None,
            examples=0,
            soundfont=None,
            workers=1,
        )
    assert not (tmp_path / "out").exists()
