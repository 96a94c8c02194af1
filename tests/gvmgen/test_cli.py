"""What the commands say and how they exit, without loading a model."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from gvmgen import cli
from gvmgen.config import TrainConfig
from gvmgen.console import ExitCode
from tests import media as made


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "numbered.mp4"
    return made.make_numbered(path, made.constant_times(1.0, Fraction(10)))


def outcome(monkeypatch: pytest.MonkeyPatch, main: Any, *arguments: object) -> int | str | None:
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def generate(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    return outcome(monkeypatch, cli.generate_main, *arguments)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The configurations that gvm-train would have trained."""
    configs: list[TrainConfig] = []
    monkeypatch.setattr("gvmgen.train.train", lambda config, **_: configs.append(config))
    monkeypatch.delenv("GVM_PRESET", raising=False)
    return configs


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
        ("out.txt", "unknown kind of file; known: .wav, .mp4, .mkv, .mov"),
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


@pytest.mark.parametrize("arguments", [["--sed", "1"], ["--seed", "-1"], ["--seed", "one"]])
def test_an_option_that_does_not_exist_or_fit_is_a_usage_error(
    video: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    assert generate(monkeypatch, video, "-o", "out.wav", *arguments) == ExitCode.USAGE


def test_the_publications_recipe_is_the_default(
    trained: list[TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outcome(monkeypatch, cli.train_main) == ExitCode.OK
    recipe = trained[0]
    assert recipe == TrainConfig()
    assert (recipe.preset, recipe.lr, recipe.weight_decay, recipe.batch_size) == ("small", 1e-5, 0.01, 6)
    assert (recipe.warmup_steps, recipe.epochs, recipe.guidance_dropout) == (4000, 150, 0.3)


def test_every_setting_has_a_flag_or_is_for_the_configuration_file_only(
    trained: list[TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {parameter.name for parameter in cli.typer.main.get_command(cli.train_app).params}
    assert set(TrainConfig.__dataclass_fields__) - flags == {"model"}


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_flags_overrule_the_file_and_the_file_the_environment(
    trained: list[TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setenv("GVM_PRESET", "pocket")
    file = tmp_path / f"settings{suffix}"
    values = {"preset": "large", "lr": 0.5, "steps": 7}
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    file.write_text(json.dumps(values) if suffix == ".json" else "\n".join(lines))
    assert outcome(monkeypatch, cli.train_main, "--config", file, "--lr", "0.25") == ExitCode.OK
    assert (trained[0].preset, trained[0].lr, trained[0].steps) == ("large", 0.25, 7)


def test_the_environment_names_the_preset(
    trained: list[TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GVM_PRESET", "pocket")
    assert outcome(monkeypatch, cli.train_main) == ExitCode.OK
    assert trained[0].run_folder == Path("runs/pocket")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "settings.json"),
        ("[1]", "holds no table"),
        ('{"learning_rate": 1}', "unknown training settings ['learning_rate']; known: ["),
        ('{"lr": "fast"}', "training setting lr is 'fast'"),
        ('{"steps": 1.5}', "training setting steps is 1.5"),
        ('{"crop_s": 1.5}', "a whole number of seconds"),
        ('{"batch_size": 5, "grad_accum": 2}', "no multiple of grad_accum"),
    ],
)
def test_a_configuration_file_that_cannot_be_used_is_refused(
    trained: list[TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    why: str,
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(text)
    assert outcome(monkeypatch, cli.train_main, "--config", file) == ExitCode.INPUT
    assert why in capsys.readouterr().err
    assert not trained


def test_without_shards_gvm_train_names_the_command_that_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(monkeypatch, cli.train_main, "--data", tmp_path) == ExitCode.INPUT
    error = capsys.readouterr().err
    assert str(tmp_path / "shards") in error
    assert "gvm-prep encode --shards" in error


def test_the_progress_bar_shows_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with cli.StageBar() as bar:
        bar("watching", 0, 3)
        bar("watching", 3, 3)
        bar("composing", 0, 100)
        bar("composing", 100, 100)
    shown = capsys.readouterr().err
    assert "watching" in shown
    assert "100/100" in shown
