"""What `gvm-train` says and how it exits, without training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gvmgen import cli
from gvmgen.config import TrainConfig
from gvmgen.console import ExitCode


def outcome(monkeypatch: pytest.MonkeyPatch, main: Any, *arguments: object) -> int | str | None:
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The configurations that gvm-train would have trained."""
    configs: list[TrainConfig] = []
    monkeypatch.setattr("gvmgen.train.train", lambda config, **_: configs.append(config))
    monkeypatch.delenv("GVM_PRESET", raising=False)
    return configs


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
        ('{"learning_rate": 1}', "unknown training setting learning_rate; known: batch_size, "),
        ('{"batch-size": 1}', "unknown training setting batch-size; did you mean batch_size?"),
        ('{"lr": "fast"}', "training setting lr is 'fast'; it must be a number"),
        ('{"steps": 1.5}', "training setting steps is 1.5"),
        ('{"run": "a/b"}', "run 'a/b' is no name of a folder"),
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
