"""Which model a user gets, and what a run's folder holds after a failure."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from gvmgen import runs
from gvmgen.runs import RunFolder, find_model, write_text


def make_checkpoint(runs_folder: Path, run: str, step: int, preset: str = "pocket", age_s: float = 0) -> Path:
    def fill(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"preset": preset}))
        (folder / "state.json").write_text("{}")

    folder = RunFolder(runs_folder / run)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    checkpoint = folder.save(step, fill, keep_last=9)
    then = checkpoint.stat().st_mtime - age_s
    os.utime(checkpoint / "state.json", (then, then))
    return checkpoint


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the box."""
    folder = tmp_path / "box"
    folder.mkdir()
    (folder / "config.json").write_text('{"preset": "pocket"}')
    monkeypatch.setattr(runs, "MODEL_IN_THE_BOX", folder)
    return folder


def test_the_newest_checkpoint_of_all_runs_is_taken(tmp_path: Path, box: Path) -> None:
    make_checkpoint(tmp_path / "runs", "old", 900, age_s=60)
    newest = make_checkpoint(tmp_path / "runs", "new", 20)
    assert find_model(None, tmp_path / "runs", None) == newest


def test_without_a_run_the_model_in_the_box_is_taken(tmp_path: Path, box: Path) -> None:
    assert find_model(None, tmp_path / "runs", None) == box
    assert find_model(None, tmp_path / "runs", "pocket") == box


def test_only_models_of_the_wanted_preset_are_taken(tmp_path: Path, box: Path) -> None:
    small = make_checkpoint(tmp_path / "runs", "a", 1, preset="small", age_s=60)
    make_checkpoint(tmp_path / "runs", "b", 1, preset="pocket")
    assert find_model(None, tmp_path / "runs", "small") == small


def test_no_model_of_the_preset_says_where_it_looked_and_names_pocket(tmp_path: Path, box: Path) -> None:
    with pytest.raises(ValueError, match=r"no model of preset large.*--preset pocket"):
        find_model(None, tmp_path / "runs", "large")


def test_a_runs_folder_stands_for_its_newest_checkpoint(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "run", 5)
    last = make_checkpoint(tmp_path, "run", 10)
    assert find_model(str(tmp_path / "run"), tmp_path, None) == last


@pytest.mark.parametrize(
    ("name", "why"), [("nowhere", "no such file or folder"), ("empty", "holds no model")]
)
def test_a_model_that_is_none_is_refused(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=why):
        find_model(str(tmp_path / name), tmp_path, None)


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_one(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "run", 5)

    def fail(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("no space left on device")

    folder = RunFolder(tmp_path / "run")
    with pytest.raises(OSError, match="no space"):
        folder.save(6, fail, keep_last=1)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step_00000005"]


def test_a_folder_without_its_state_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, "run", 5)
    (checkpoint / "state.json").unlink()
    assert RunFolder(tmp_path / "run").latest() is None


def test_a_text_that_the_disk_cannot_take_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_text(path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_text(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
