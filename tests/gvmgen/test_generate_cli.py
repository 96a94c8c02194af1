"""What `gvm-gen` says, writes and how it exits; the model is a stand-in that plays a tone at once."""

from __future__ import annotations

import json
import os
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from gvmgen import generate_cli
from gvmgen.console import ExitCode
from gvmgen.decoding import SamplingConfig
from gvmgen.encoders.probe import probe
from gvmgen.evaluation.evaluator import EVALUATOR_IN_THE_BOX
from gvmgen.finish.sound import Sound
from gvmgen.generate import Composer, Music
from gvmgen.jobs import find_work, seconds
from gvmgen.progress import StageBar
from shards.spec import SAMPLE_RATE
from tests import media as made


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "numbered.mp4"
    return made.make_numbered(path, made.constant_times(1.0, Fraction(10)))


class ToneComposer:
    """Plays a tone as high as the seed; the files around it are real."""

    engines = SimpleNamespace(description="fp32")
    model = SimpleNamespace(decoder=SimpleNamespace(heads=torch.nn.Linear(1, 1)))
    encoders: ClassVar[dict[str, Any]] = {"video": {"model": "an ear"}, "audio": {"model": "an eye"}}
    identity: ClassVar[dict[str, Any]] = {"weights": "none"}

    def sampling(self, *, goes_on: bool = False, **chosen: Any) -> SamplingConfig:
        return SamplingConfig(**chosen)

    def warnings(self) -> list[str]:
        return ["not for commercial use: a stand-in"]

    def takes(self, video: Path, count: int, **wish: Any) -> list[Music]:
        available_s = probe(video).duration_s - wish["start_s"]
        duration_s = min(wish["duration_s"] or available_s, wish["preview_s"] or available_s)
        times = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
        pieces = []
        for seed in range(wish["seed"], wish["seed"] + count):
            sound = Sound(SAMPLE_RATE)
            sound.append(0.1 * np.sin(2 * np.pi * (200 + 100 * seed) * times))
            pieces.append(Music(sound, video, wish["start_s"], seed, "tone", 0.5, {"seed": seed}))
        return pieces


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Composer, "load", lambda *_, **__: ToneComposer())


def generate(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    """The exit code of gvm-gen."""
    monkeypatch.setattr(sys, "argv", ["gvm-gen", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        generate_cli.generate_main()
    return stopped.value.code


def broken(video: Path, folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.mp4"
    match kind:
        case "empty":
            path.touch()
        case "text":
            path.write_text("this is no video")
        case "cut":
            made.cut_bytes(video, path, share=0.5)
        case "sound":
            made.make_sound_only(path)
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut", "sound"])
def test_a_bad_video_ends_with_one_line_that_names_it(
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    path, out = broken(video, tmp_path, kind), tmp_path / "out.wav"
    assert generate(monkeypatch, path, "-o", out) == ExitCode.INPUT
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert not out.exists()


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("out.txt", "unknown kind of file; known: .wav, .flac, .mp3, .opus, .m4a, .mp4, .mkv, .mov"),
        ("nowhere/out.wav", "mkdir -p"),
        ("folder.wav", "is a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    out: str,
    why: str,
) -> None:
    (tmp_path / "folder.wav").mkdir()
    assert generate(monkeypatch, video, "-o", tmp_path / out) == ExitCode.INPUT
    assert why in capsys.readouterr().err


def test_the_video_is_never_its_own_output(
    video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = video.read_bytes()
    assert generate(monkeypatch, video, "-o", video) == ExitCode.INPUT
    assert "is the video itself" in capsys.readouterr().err
    assert video.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--model", "nowhere"], "no such file or folder"),
        (["--preset", "huge"], "unknown preset 'huge'; known: pocket, small, large"),
        (["--top-k", "-1"], "top_k is -1"),
        (["--loudness", "loud"], "give LUFS, off, or one of"),
        (["--ending", "slam"], "known: fade, cut"),
        (["--from", "soon"], "--from soon: give seconds"),
        (["--from", "5", "--to", "3"], "the end, 3 s, does not lie after the start, 5 s"),
        (["--to", "3", "--duration", "3"], "give one of them"),
        (["--preview", "0"], "give 0.02 s or more"),
        (["--preview", "0.00001"], "give 0.02 s or more"),
        (["--duration", "0.00001"], "take 0.02 s or more"),
        (["--follow", "-1"], "follow is -1.0; give 0 (none) or more"),
        (["--device", "cpu:1"], "processors have no numbers; give cpu"),
        (["--original", "keep"], "holds the music alone; --original keep needs a film: .mp4, "),
        (["--from", "70"], "cannot start at 70 s, it lasts 1.00 s"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    why: str,
) -> None:
    assert generate(monkeypatch, video, "-o", tmp_path / "out.wav", *arguments) == ExitCode.INPUT
    assert why in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--sed", "1"], ["--seed", "-1"], ["--seed", "one"], ["--takes", "0"]])
def test_an_option_that_does_not_exist_or_fit_is_a_usage_error(
    video: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    assert generate(monkeypatch, video, "-o", "out.wav", *arguments) == ExitCode.USAGE


@pytest.mark.usefixtures("loaded")
def test_a_model_that_is_not_for_commerce_says_so(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(monkeypatch, video, "-o", tmp_path / "out.wav") == ExitCode.OK
    said = capsys.readouterr()
    assert "not for commercial use" in said.err
    assert f"{tmp_path / 'out.wav'}: 1.00 s of music in 0.5 s (2x real time), seed 0, model tone" in said.out


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("out", ["out.flac", "film.mov"])
def test_a_part_and_a_preview_are_as_long_as_asked(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    arguments = ["--from", "0:00.3", "--to", "0.9", "--preview", "0.25", "--json"]
    assert generate(monkeypatch, video, "-o", tmp_path / out, *arguments) == ExitCode.OK
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["duration_s"] == 0.25
    assert probe(tmp_path / out, needs_picture=False).audio_end_s >= 0.25


@pytest.mark.usefixtures("loaded")
def test_a_folder_is_scored_past_a_bad_file_and_what_is_there_is_skipped(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for name in ("a.mp4", "c.MP4"):
        (videos / name).write_bytes(video.read_bytes())
    (videos / "b.mov").write_text("this is no video")
    (videos / "notes.txt").touch()
    assert generate(monkeypatch, videos, "-o", out, "--suffix", "mp3") == ExitCode.FAILED
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == [str(out / f"{name}.mp3") for name in "abc"]
    assert "failed" in lines[1]
    assert str(videos / "b.mov") in lines[1]
    assert lines[-1] == "2 scored, 0 already there, 1 failed"
    (videos / "b.mov").unlink()
    before = (out / "a.mp3").stat().st_mtime_ns
    assert generate(monkeypatch, videos, "-o", out, "--suffix", "mp3") == ExitCode.OK
    assert capsys.readouterr().out.splitlines()[-1] == "0 scored, 2 already there, 0 failed"
    assert (out / "a.mp3").stat().st_mtime_ns == before


@pytest.mark.usefixtures("loaded")
def test_a_folder_goes_past_a_name_too_long_to_work_beside_and_names_that_are_no_text(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    no_text = os.fsdecode(b"caf\xe9.mp4")
    for name in (no_text, "l" * 246 + ".mp4", "z.mp4"):
        (videos / name).write_bytes(video.read_bytes())
    assert generate(monkeypatch, videos, "-o", out) == ExitCode.FAILED
    lines = capsys.readouterr().out.splitlines()
    assert "failed" in lines[1]
    assert "its name is too long" in lines[1]
    assert lines[-1] == "2 scored, 0 already there, 1 failed"
    assert sorted(path.name for path in out.iterdir()) == [os.fsdecode(b"caf\xe9.wav"), "z.wav"]


class FailingComposer(ToneComposer):
    """Meets an error at the second video."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def takes(self, video: Path, count: int, **wish: Any) -> list[Music]:
        if video.name == "b.mp4":
            raise self.error
        return super().takes(video, count, **wish)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (PermissionError(13, "Permission denied", "b.mp4"), ExitCode.FAILED, ["music", "failed", "music"]),
        (OSError(28, "No space left on device"), ExitCode.SYSTEM, ["music"]),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, ["music"]),
    ],
)
def test_a_folder_tells_what_came_of_its_videos_however_it_ends(
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: ExitCode,
    told: list[str],
) -> None:
    monkeypatch.setattr(Composer, "load", lambda *_, **__: FailingComposer(error))
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4", "._a.mp4"):  # the last as macOS leaves them
        (videos / name).write_bytes(video.read_bytes())
    assert generate(monkeypatch, videos, "-o", tmp_path / "out") == code
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if str(tmp_path) in line]
    assert len(lines) == len(told)
    assert all(word in line for word, line in zip(told, lines, strict=True))
    assert code == ExitCode.FAILED or said.err.splitlines()[-1].startswith("gvm-gen: ")


def test_a_folder_is_never_its_own_output(
    video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [video.parent, "-o", video.parent, "--suffix", ".mp4"]
    assert generate(monkeypatch, *arguments) == ExitCode.INPUT
    assert f"is the videos' own folder, and {video.name} is one" in capsys.readouterr().err


@pytest.mark.usefixtures("loaded")
def test_a_part_may_end_where_the_video_does_though_sums_are_rounded(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = ["--from", "0.9", "--duration", "0.1"]
    assert generate(monkeypatch, video, "-o", tmp_path / "out.wav", *part) == ExitCode.OK


def test_music_is_never_written_over_its_video_nor_as_an_unknown_kind(video: Path, tmp_path: Path) -> None:
    (music,) = ToneComposer().takes(video, 1, seed=0, start_s=0.0, duration_s=None, preview_s=None)
    before = video.read_bytes()
    for path, words in ((video, "is the video itself"), (tmp_path / "x.aac", "unknown kind of file")):
        with pytest.raises(ValueError, match=words):
            music.save(path)
    assert video.read_bytes() == before
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("loaded")
def test_takes_of_a_film_are_kept_whatever_its_name_and_sample_rate(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("librosa", reason="librosa measures what takes are ranked by")
    no_text = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    no_text.write_bytes(video.read_bytes())
    arguments = ["-o", tmp_path / "film.mkv", "--takes", "2", "--sample-rate", "192000"]
    assert generate(monkeypatch, no_text, *arguments) == ExitCode.OK
    assert len(list((tmp_path / "film_takes").glob("*.m4a"))) == 2
    kept = json.loads((tmp_path / "film_takes/scores.json").read_text())
    assert kept["video"] == str(no_text)


@pytest.mark.usefixtures("loaded")
def test_takes_are_kept_with_scores_and_the_best_becomes_the_output(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("librosa", reason="librosa measures what takes are ranked by")
    out = tmp_path / "out.flac"
    assert generate(monkeypatch, video, "-o", out, "--takes", "2", "--seed", "7", "--json") == ExitCode.OK
    said = capsys.readouterr()
    assert "takes are ranked by cuts and motion alone: the evaluator in the box knows other" in said.err
    outcome = json.loads(said.out)
    kept = json.loads((tmp_path / "out_takes/scores.json").read_text())
    assert kept["takes"] == outcome["takes"]
    assert sorted(take["seed"] for take in kept["takes"]) == [7, 8]
    assert outcome["seed"] == kept["takes"][0]["seed"]
    assert out.read_bytes() == Path(kept["takes"][0]["file"]).read_bytes()
    assert (tmp_path / "out_takes/index.html").read_text().count("<article>") == 2


def test_a_models_own_sampling_counts_but_for_what_the_user_chooses(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    class Choosy(ToneComposer):
        def sampling(self, *, goes_on: bool = False, **chosen: Any) -> SamplingConfig:
            return SamplingConfig(**{"guidance": 8.0, "top_k": 10, "temperature": 0.5} | chosen)

        def takes(self, video: Path, count: int, **wish: Any) -> list[Music]:
            used.append(wish["sampling"])
            return super().takes(video, count, **wish)

    monkeypatch.setattr(Composer, "load", lambda *_, **__: Choosy())
    for arguments in ([], ["--top-k", "0", "--temperature", "2"]):
        assert generate(monkeypatch, video, "-o", tmp_path / "out.wav", *arguments) == ExitCode.OK
    assert used == [
        SamplingConfig(guidance=8.0, top_k=10, temperature=0.5),
        SamplingConfig(guidance=8.0, top_k=0, temperature=2.0),
    ]


def test_what_is_in_the_way_is_named_before_a_model_is_loaded(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Composer, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "out.wav.part").touch()
    assert generate(monkeypatch, video, "-o", tmp_path / "out.wav") == ExitCode.INPUT
    assert "out.wav.part: is in the way; move it, or give another output" in capsys.readouterr().err


def test_an_evaluator_for_a_single_take_is_refused(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-o", tmp_path / "out.wav", "--evaluator", tmp_path]
    assert generate(monkeypatch, video, *arguments) == ExitCode.INPUT
    assert "--evaluator ranks takes: give --takes 2 or more" in capsys.readouterr().err


@pytest.mark.usefixtures("loaded")
def test_a_broken_evaluator_in_the_box_is_an_error(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("librosa", reason="librosa measures what takes are ranked by")
    (tmp_path / "config.json").write_text("{")
    monkeypatch.setattr("gvmgen.evaluation.evaluator.EVALUATOR_IN_THE_BOX", tmp_path)
    assert generate(monkeypatch, video, "-o", tmp_path / "out.wav", "--takes", "2") == ExitCode.INPUT
    assert "is no evaluator that can be used" in capsys.readouterr().err


@pytest.mark.usefixtures("loaded")
def test_an_evaluator_that_cannot_judge_is_refused(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("librosa", reason="librosa measures what takes are ranked by")
    for folder, why in ((EVALUATOR_IN_THE_BOX, "other encoders"), (tmp_path, "holds no evaluator")):
        arguments = ["--takes", "2", "--evaluator", folder]
        assert generate(monkeypatch, video, "-o", tmp_path / "out.wav", *arguments) == ExitCode.INPUT
        assert why in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_cannot_be_worked_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no videos here"):
        find_work(tmp_path, tmp_path / "out", ".wav")
    for name in ("a.mp4", "a.mov"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"a.mp4 and a.mov would both become .*a.wav"):
        find_work(tmp_path, tmp_path / "out", ".wav")
    with pytest.raises(ValueError, match="is a file"):
        find_work(tmp_path, tmp_path / "a.mp4", ".wav")


@pytest.mark.parametrize(("text", "wanted"), [("75", 75), ("1:15", 75), ("0:01:15.5", 75.5)])
def test_times_are_seconds_or_clock_times(text: str, wanted: float) -> None:
    assert seconds("--from", text) == wanted


def test_the_progress_bar_shows_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with StageBar() as bar:
        bar("watching", 0, 3)
        bar("watching", 3, 3)
        bar("composing", 0, 100)
        bar("composing", 100, 100)
    shown = capsys.readouterr().err
    assert "watching" in shown
    assert "100/100" in shown
