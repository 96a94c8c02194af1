"""The training loop on small shards of random samples: the real command, real signals, real processes."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file

from gvmgen.checkpoint import ModelInfo, load_model, read_config, save_model
from gvmgen.config import TrainConfig
from gvmgen.data import permutation
from gvmgen.runs import RunFolder
from gvmgen.start import check_launch, grown
from gvmgen.train import train
from shards.reader import ShardSet
from shards.spec import ShardError
from shards.writer import write_shard
from tests.gvmgen.networks import make_codes, make_features, make_network
from tests.gvmgen.tiny_runs import (
    ROOT,
    TINY,
    checkpoint,
    command,
    lines,
    losses,
    make_sample,
    same,
    tensors,
    tiny_config,
    two_processes,
    wait_for_lines,
)


@pytest.fixture(scope="session")
def data(tiny_data: Path) -> Path:
    return tiny_data


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a run that nobody interrupted: checkpoints at steps 3 and 6."""
    runs = tmp_path_factory.mktemp("finished")
    train(tiny_config(data, runs, save_every=3, eval_every=3))
    return runs


def interrupted_at_3(finished: Path, runs: Path) -> Path:
    """The same run as SIGKILL leaves it after step 3: a later log, a half-written checkpoint."""
    shutil.copytree(finished, runs)
    checkpoints = runs / "tiny" / "checkpoints"
    (checkpoints / "step_00000006").rename(checkpoints / ".step_00000006.1.tmp")
    with (runs / "tiny" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 7, "spl')
    return runs


def test_a_run_logs_every_step_and_validates_when_asked(finished: Path) -> None:
    assert [line["step"] for line in lines(finished, "train")] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines(finished, "test")] == [3, 6]
    for line in lines(finished, "train") + lines(finished, "test"):
        assert line["loss"] == pytest.approx(np.mean([line[f"loss_{k}"] for k in range(4)]))
    assert all(0 < line["mfu"] < 1 and 0 <= line["data_wait"] < 1 for line in lines(finished, "train"))


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    runs = interrupted_at_3(finished, tmp_path / "runs")
    train(tiny_config(data, runs, save_every=3, eval_every=3))
    assert losses(runs) == losses(finished)
    assert same(tensors(checkpoint(runs, 6)), tensors(checkpoint(finished, 6)))
    assert not list((runs / "tiny/checkpoints").glob(".*.tmp"))


def test_a_batch_in_pieces_gives_the_gradient_of_the_whole_batch(data: Path, tmp_path: Path) -> None:
    without_dropout = TINY | {"transformation_dropout": 0.0}
    runs = [
        losses_of(tiny_config(data, tmp_path / str(pieces), model=without_dropout, grad_accum=pieces))
        for pieces in (1, 2)
    ]
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)


def losses_of(config: TrainConfig) -> list[float]:
    train(config)
    return losses(Path(config.runs))


def test_a_finished_run_trains_no_further(data: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "runs")
    before = (tmp_path / "runs/tiny/metrics.jsonl").read_text()
    train(tiny_config(data, tmp_path / "runs", save_every=3, eval_every=3))
    assert (tmp_path / "runs/tiny/metrics.jsonl").read_text() == before


def test_other_settings_are_refused_with_their_difference(data: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "runs")
    with pytest.raises(ValueError, match=r"train.lr: found 0.003, wanted 0.01") as refusal:
        train(tiny_config(data, tmp_path / "runs", lr=1e-2))
    assert "--run NAME" in str(refusal.value)


def test_other_data_is_refused_unless_changes_are_accepted(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "runs")
    shutil.copytree(data, tmp_path / "more")
    samples = [make_sample(20, 2, "train")]
    write_shard(tmp_path / "more/shards", 1, samples, plan_hash="plan", fingerprint={"codec": "none"})
    config = tiny_config(tmp_path / "more", tmp_path / "runs", steps=8)
    with pytest.raises(ValueError, match="plan_hash"):
        train(config)
    train(config, accept_changes=True)
    assert len(losses(tmp_path / "runs")) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": 4}, "is of no parameter of this model"),
        (
            {"model": TINY | {"num_layers": 1}},
            "another network than asked for: num_layers: found 2, wanted 1",
        ),
    ],
)
def test_accepted_changes_that_cannot_be_leave_the_run_as_it_was(
    data: Path, finished: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    runs = shutil.copytree(finished, tmp_path / "runs")
    before = (runs / "tiny/config.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        train(tiny_config(data, runs, steps=8, **changes), accept_changes=True)
    assert (runs / "tiny/config.json").read_bytes() == before


def test_a_checkpoint_of_other_data_is_refused_even_where_the_run_forgot_its_settings(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    runs = shutil.copytree(finished, tmp_path / "runs")
    (runs / "tiny/config.json").unlink()
    state = checkpoint(runs, 6) / "state.json"
    state.write_text(state.read_text().replace('"plan_hash": "', '"plan_hash": "other'))
    with pytest.raises(ValueError, match="state to resume has plan_hash"):
        train(tiny_config(data, runs))


def test_with_another_batch_size_it_goes_on_behind_the_segments_it_has_seen(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    runs = shutil.copytree(finished, tmp_path / "runs")
    train(tiny_config(data, runs, batch_size=7, steps=8), accept_changes=True)
    state = json.loads((checkpoint(runs, 8) / "state.json").read_text())
    assert state["samples"] == 6 * 2 + 2 * 7
    assert state["data"] | {"plan_hash": ""} == {
        "plan_hash": "",
        "seed": 0,
        "epoch": 3,
        "samples_consumed": 5,
    }


def test_a_run_of_an_older_version_goes_on_without_the_settings_that_came_later(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    runs = shutil.copytree(finished, tmp_path / "runs")
    settings = json.loads((runs / "tiny/config.json").read_text())
    for name in ("ema", "lora", "lr_decay", "train"):
        del settings["train"][name]
    (runs / "tiny/config.json").write_text(json.dumps(settings))
    train(tiny_config(data, runs))
    with pytest.raises(ValueError, match=r"train.ema: found 0.0, wanted 0.9"):
        train(tiny_config(data, runs, ema=0.9))


def test_weights_that_read_other_encoders_features_are_refused(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    given = shutil.copytree(checkpoint(finished, 6), tmp_path / "given")
    config = json.loads((given / "config.json").read_text())
    (given / "config.json").write_text(json.dumps(config | {"encoder_fingerprint": {"codec": "other"}}))
    with pytest.raises(ValueError, match=r"codec: found 'other', wanted 'none'"):
        train(tiny_config(data, tmp_path, init=str(given)))


@pytest.mark.parametrize(
    ("kind", "named"),
    [(DistributedType.DEEPSPEED, "DEEPSPEED"), (DistributedType.FSDP, "fsdp_version: 2")],
)
def test_a_launch_that_checkpoints_could_not_hold_is_refused(kind: DistributedType, named: str) -> None:
    accelerator: Any = SimpleNamespace(distributed_type=kind, is_fsdp2=False)
    with pytest.raises(ValueError, match=named):
        check_launch(accelerator)


def test_two_processes_cannot_train_in_one_folder(data: Path, tmp_path: Path) -> None:
    held = RunFolder(tmp_path / "tiny")
    held.claim()
    with pytest.raises(ValueError, match="another gvm-train is at work"):
        train(tiny_config(data, tmp_path))


def test_only_the_last_checkpoints_are_kept(data: Path, tmp_path: Path) -> None:
    train(tiny_config(data, tmp_path, steps=4, save_every=1, keep_last=2))
    kept = sorted(path.name for path in (tmp_path / "tiny/checkpoints").iterdir())
    assert kept == ["step_00000003", "step_00000004"]


def test_a_run_starts_from_the_weights_it_is_given(data: Path, finished: Path, tmp_path: Path) -> None:
    checkpoint = finished / "tiny/checkpoints/step_00000006"
    train(tiny_config(data, tmp_path, init=str(checkpoint), lr=1e-12, steps=1))
    started, given = (
        tensors(path)["decoder.heads.weight"]
        for path in (tmp_path / "tiny/checkpoints/step_00000001", checkpoint)
    )
    torch.testing.assert_close(started, given)


def test_weights_that_lack_a_part_start_with_a_silent_one_and_other_sizes_are_refused(
    data: Path, tmp_path: Path
) -> None:
    plain = make_network(frame_changes=False)
    save_model(tmp_path / "given", plain, ModelInfo(preset="pocket"))
    wanted = replace(plain.config, frame_changes=True, frame_codes=True, dropout=0.1)
    network = grown(load_model(tmp_path / "given")[0], wanted, "given").eval()
    assert network.config == wanted
    features, codes = make_features(2, 3), make_codes(2, 10)
    assert torch.equal(network(features, codes)[0], plain(features, codes)[0])
    with pytest.raises(ValueError, match="given is another network than asked for: dim: found 32, wanted 64"):
        grown(plain, replace(wanted, dim=64), "given")
    with pytest.raises(ValueError, match="frame_changes: found True, wanted False"):
        grown(network, plain.config, "given")


def test_a_run_does_not_take_over_what_was_found_to_suit_the_weights_it_starts_from(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    given = shutil.copytree(checkpoint(finished, 6), tmp_path / "given")
    config = json.loads((given / "config.json").read_text())
    (given / "config.json").write_text(json.dumps(config | {"sampling": {"guidance": 8.0}}))
    train(tiny_config(data, tmp_path, init=str(given), steps=1))
    assert json.loads((checkpoint(tmp_path, 1) / "config.json").read_text())["sampling"] == {}


def test_a_rehearsal_writes_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_config(data, tmp_path), dry_run=True)
    assert "nothing was written" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_rehearsal_refuses_what_the_run_would(
    data: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"made with other settings: train\.lr"):
        train(tiny_config(data, finished, lr=5.0), dry_run=True)
    train(tiny_config(data, finished, lr=5.0), dry_run=True, accept_changes=True)
    assert "Resumes at" not in capsys.readouterr().out


def test_a_warm_up_longer_than_the_run_is_pointed_out(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(data, tmp_path, warmup_steps=4000), dry_run=True)
    assert "warm-up takes 4000 steps, the run only 6" in capsys.readouterr().out


def test_without_shards_it_says_where_it_looked_and_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"shards.*gvm-prep encode --shards"):
        train(tiny_config(tmp_path, tmp_path))


def test_features_of_another_preset_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"features are 32 wide, preset pocket reads 192"):
        train(tiny_config(data, tmp_path, model={}))


def test_gradients_that_stay_infinite_end_the_run(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gvmgen.train.MAX_SKIPPED", 2)
    broken = shutil.copytree(finished / "tiny/checkpoints/step_00000006", tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["decoder.heads.weight"][0] = torch.nan
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(ValueError, match="not been finite for 3 steps"):
        train(tiny_config(data, tmp_path, init=str(broken)))


def test_a_corrupt_sample_ends_the_run_with_its_name_and_a_checkpoint(data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data, tmp_path / "data")
    config = tiny_config(folder, tmp_path, batch_size=1)
    with pytest.raises(ShardError, match=damage_sixth(config)):
        train(config)
    assert (checkpoint(tmp_path, 5) / "state.json").is_file()


def test_a_corrupt_sample_can_be_substituted_and_is_named_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(data, tmp_path / "data")
    config = tiny_config(folder, tmp_path, batch_size=1, on_corrupt="substitute", steps=15)
    key = damage_sixth(config)
    train(config)
    assert capsys.readouterr().err.count(f"sample {key} is corrupt, another takes its place") == 1
    assert np.isfinite(losses(tmp_path)).all()


def damage_sixth(config: TrainConfig) -> str:
    """Overwrite a part of the sample that is drawn sixth; its key."""
    shards = ShardSet.open(Path(config.data) / "shards", "train")
    drawn = shards.samples[int(permutation(len(shards), config.seed, 0)[5])]
    with drawn.tar.open("r+b") as tar:
        tar.seek(drawn.record.fields["features.npy"].array_offset)
        tar.write(b"\xff" * 64)
    return drawn.record.key


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_stopped_goes_on_where_it_was(
    data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    config = tiny_config(data, tmp_path / "stopped", steps=60, save_every=2)
    arguments = [sys.executable, *command(config, tmp_path)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        wait_for_lines(config.run_folder / "metrics.jsonl", 3)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=120)
    stopped_at = len(losses(tmp_path / "stopped"))
    assert stopped_at < 60
    if number == signal.SIGTERM:
        assert process.returncode == 0
        assert "Stopped (SIGTERM) after step" in stderr
    again = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "Resumes at step" in again.stderr
    # In a process of its own, too: other tests change this one's number of threads, and so the last bit.
    whole = replace(config, runs=str(tmp_path / "whole"))
    subprocess.run([sys.executable, *command(whole, tmp_path)], capture_output=True, check=True)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_whose_launcher_is_killed_saves_and_stops(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, steps=100_000, save_every=100_000)
    launcher = [str(Path(sys.executable).with_name("accelerate")), "launch"]
    with subprocess.Popen([*launcher, *command(config, tmp_path)], stderr=subprocess.DEVNULL) as process:
        wait_for_lines(config.run_folder / "metrics.jsonl", 2)
        process.kill()
    for _ in range(600):
        if RunFolder(config.run_folder).latest():
            return
        time.sleep(0.1)
    raise AssertionError("the run went on without its launcher")


ON_CPU = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_run_whose_other_process_dies_saves_and_says_so(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, steps=100_000, save_every=100_000)
    arguments = two_processes(command(config, tmp_path))
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=ON_CPU) as launcher:
        wait_for_lines(config.run_folder / "metrics.jsonl", 3)
        os.kill(second_process(launcher.pid), signal.SIGKILL)
        _, stderr = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert "another process of this run is gone after step" in stderr
    saved = RunFolder(config.run_folder).latest()
    assert saved is not None
    assert read_config(saved)[1].step >= 3


def second_process(launcher: int) -> int:
    """The id of the process of rank 1."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    environments = {int(child): Path(f"/proc/{child}/environ").read_bytes() for child in children}
    (found,) = (child for child, text in environments.items() if b"\0RANK=1\0" in text)
    return found


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_message_and_the_checkpoints_before(
    data: Path, tmp_path: Path
) -> None:
    config = tiny_config(data, tmp_path, steps=2, save_every=1)
    train(config)
    arguments = command(replace(config, steps=4), tmp_path)
    # No file above 1 MB: what the system says is what a full disk's user sees, but for the reason.
    limited = ["bash", "-c", 'ulimit -f 1000; exec "$@"', "bash", sys.executable, *arguments]
    done = subprocess.run([*limited, "--accept-changes"], capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert "cannot write step 3" in done.stderr
    assert "Traceback" not in done.stderr
    kept = sorted(path.name for path in (config.run_folder / "checkpoints").iterdir())
    assert kept == ["step_00000001", "step_00000002"]
    train(replace(config, steps=4), accept_changes=True)
    assert len(losses(tmp_path)) == 4


@pytest.mark.slow
def test_two_processes_learn_what_one_does(data: Path, tmp_path: Path) -> None:
    without_dropout = TINY | {"transformation_dropout": 0.0}
    one = tiny_config(data, tmp_path / "one", model=without_dropout)
    train(one)
    two = replace(one, runs=str(tmp_path / "two"))
    done = subprocess.run(
        two_processes(command(two, tmp_path)), check=True, capture_output=True, text=True, env=ON_CPU
    )
    assert "on 2 x cpu" in done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


@pytest.mark.slow
def test_sharded_weights_learn_the_same_and_their_checkpoint_is_anyones(data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data, tmp_path / "data")
    more = [make_sample(30, 2, "test"), make_sample(31, 3, "test")]  # three, so that shares differ
    write_shard(folder / "shards", 1, more, plan_hash="plan", fingerprint={"codec": "none"})
    model = TINY | {"transformation_dropout": 0.0}
    one = tiny_config(folder, tmp_path / "one", model=model, ema=0.5, save_every=3, eval_every=3)
    train(one)
    sharded = replace(one, runs=str(tmp_path / "sharded"))
    (_, _, settings) = command(sharded, tmp_path)
    script = str(Path(__file__).with_name("fsdp_run.py"))
    subprocess.run(two_processes([script, settings]), check=True, env=ON_CPU | {"PYTHONPATH": str(ROOT)})
    shutil.rmtree(checkpoint(tmp_path / "sharded", 6))
    train(sharded)  # on one process, from what two wrote
    for split in ("train", "test"):
        found, wanted = (
            [line["loss"] for line in lines(tmp_path / name, split)] for name in ("sharded", "one")
        )
        assert found == pytest.approx(wanted, rel=1e-4)
    a, b = (tensors(checkpoint(tmp_path / name, 6)) for name in ("sharded", "one"))
    assert a.keys() == b.keys()
    torch.testing.assert_close(a["decoder.heads.weight"], b["decoder.heads.weight"], rtol=1e-3, atol=1e-4)


def test_it_learns_a_few_segments_by_heart(data: Path, tmp_path: Path) -> None:
    """The README's command in miniature: below half of what guessing costs, ln 2048."""
    sizes = TINY | {"dim": 128, "num_heads": 4}
    train(tiny_config(data, tmp_path, model=sizes, steps=120, lr=1e-2, warmup_steps=10, batch_size=7))
    assert losses(tmp_path)[-1] < math.log(2048) / 2
