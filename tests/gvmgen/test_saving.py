"""Checkpoints: the average of the weights, the best one, writing beside the steps, adapters merged."""

from __future__ import annotations

import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gvmgen.checkpoint import load_model
from gvmgen.runs import find_model
from gvmgen.saving import BackgroundWriter, HostCopy, Snapshot
from gvmgen.train import Trainer, train
from tests.gvmgen.networks import make_codes
from tests.gvmgen.tiny_runs import TINY, checkpoint, losses, same, tensors, tiny_config

NAME = "decoder.heads.weight"


@pytest.fixture(scope="module")
def averaged(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of four steps with an average of the weights, each step saved."""
    runs = tmp_path_factory.mktemp("averaged")
    train(tiny_config(tiny_data, runs, ema=0.75, steps=4, save_every=1, keep_last=9))
    return runs


def test_what_composes_is_the_moving_average_of_the_steps_weights(
    tiny_data: Path, averaged: Path, tmp_path: Path
) -> None:
    train(tiny_config(tiny_data, tmp_path, steps=1, lr=1e-30))
    average = tensors(checkpoint(tmp_path, 1))[NAME]  # as the weights start
    for step in (1, 2, 3, 4):
        saved = tensors(checkpoint(averaged, step))
        average = 0.75 * average + 0.25 * saved[f"{NAME}/value"]
        torch.testing.assert_close(saved[NAME], average)
        assert not torch.equal(saved[NAME], saved[f"{NAME}/value"])


def test_averaging_does_not_change_what_is_learned(tiny_data: Path, averaged: Path, tmp_path: Path) -> None:
    train(tiny_config(tiny_data, tmp_path, steps=4))
    assert losses(tmp_path) == losses(averaged)


@pytest.mark.parametrize(
    "changes", [{"ema": 0.75}, {"ema": 0.75, "lora": 2}, {"optimizer": "adamw8bit"}], ids=str
)
def test_a_run_with_average_adapters_or_moments_of_8_bits_resumes_bit_for_bit(
    tiny_data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = tiny_config(tiny_data, tmp_path / "whole", steps=4, save_every=2, **changes)
    train(config)
    runs = shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(checkpoint(runs, 4))
    train(tiny_config(tiny_data, runs, steps=4, save_every=2, **changes))
    assert same(tensors(checkpoint(runs, 4)), tensors(checkpoint(tmp_path / "whole", 4)))


def test_moments_of_8_bits_take_a_quarter_and_learn_nearly_the_same(tiny_data: Path, tmp_path: Path) -> None:
    for optimizer in ("adamw", "adamw8bit"):
        train(tiny_config(tiny_data, tmp_path / optimizer, steps=6, optimizer=optimizer))
    saved = tensors(checkpoint(tmp_path / "adamw8bit", 6))
    assert saved[f"{NAME}/state1"].dtype == torch.uint8
    assert saved[f"{NAME}/state2"].shape == saved[NAME].shape
    assert saved["decoder.norm.weight/state1"].dtype == torch.float32, "small tensors keep 32 bits"
    exact, coarse = losses(tmp_path / "adamw"), losses(tmp_path / "adamw8bit")
    assert coarse[0] == exact[0]
    assert coarse == pytest.approx(exact, abs=0.05)
    assert coarse[-1] < coarse[0] - 0.1


def test_moments_of_another_optimiser_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    train(tiny_config(tiny_data, tmp_path, steps=1))
    with pytest.raises(ValueError, match=r"of another --optimizer.*--init") as refusal:
        train(tiny_config(tiny_data, tmp_path, steps=2, optimizer="adamw8bit"), accept_changes=True)
    assert "step_00000001/optimizer.safetensors" in str(refusal.value)


def test_without_its_package_moments_of_8_bits_name_what_to_install(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ValueError, match=r"pip install 'gvmgen\[adamw8bit\]'"):
        train(tiny_config(tiny_data, tmp_path, optimizer="adamw8bit"))


def test_the_best_checkpoint_outlives_the_last_ones(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validations = iter([3.0, 1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(Trainer, "evaluate", lambda _: [next(validations)] * 4)
    config = tiny_config(tiny_data, tmp_path, steps=4, eval_every=1, save_every=1, keep_last=1)
    train(config)
    assert sorted(path.name for path in checkpoint(tmp_path, 0).parent.iterdir()) == [
        "step_00000002",
        "step_00000004",
    ]
    best = find_model(str(config.run_folder / "best"), tmp_path, None)
    assert load_model(best)[1].step == 2
    train(tiny_config(tiny_data, tmp_path, steps=5, eval_every=1, keep_last=1), accept_changes=True)
    assert best.resolve() == checkpoint(tmp_path, 2), "a resumed run remembers its best loss"


def test_steps_go_on_while_a_checkpoint_is_written(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, write = tmp_path / "tiny" / "metrics.jsonl", Snapshot.write
    went_on = []

    def write_late(snapshot: Snapshot, folder: Path) -> None:
        for _ in range(1200):  # until the log shows two more steps
            if len(log.read_text().splitlines()) >= snapshot.info.step + 2:
                went_on.append(snapshot.info.step)
                break
            threading.Event().wait(0.1)
        write(snapshot, folder)

    config = tiny_config(tiny_data, tmp_path, steps=5, save_every=3)
    with monkeypatch.context() as patch:
        patch.setattr(Snapshot, "write", write_late)
        patch.setattr(Trainer, "save", save_at_three(Trainer.save))
        train(config)
    assert went_on == [3]
    train(tiny_config(tiny_data, tmp_path / "stopped", steps=5, save_every=3))
    stopped = checkpoint(tmp_path / "stopped", 3)
    assert same(tensors(checkpoint(tmp_path, 3)), tensors(stopped)), "it holds step 3, not what came after"


def save_at_three(save):
    """Saving at the end would wait for the write that waits for steps."""
    return lambda trainer, is_best=False: save(trainer, is_best) if trainer.step == 3 else None


def test_a_write_that_failed_is_raised_where_the_run_next_looks() -> None:
    def fail() -> None:
        raise OSError("no space left on device")

    writer, failed = BackgroundWriter(), threading.Event()
    writer.start(lambda: failed.wait(60))
    writer.check()
    failed.set()
    writer.start(fail)
    with pytest.raises(OSError, match="no space"):
        writer.wait()
    writer.wait()


def test_a_host_copy_reuses_its_memory() -> None:
    copies, tensor = HostCopy(), torch.arange(4.0)
    first = copies.take({"a": tensor}, keep=True)["a"]
    tensor += 1
    assert first.tolist() == [0, 1, 2, 3]
    second = copies.take({"a": tensor}, keep=True)["a"]
    assert second.tolist() == [1, 2, 3, 4]
    assert second.data_ptr() == first.data_ptr()
    assert copies.take({"a": tensor}, keep=False) == {}


def test_adapters_are_merged_into_the_weights_that_compose(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[Tensor] = []
    evaluate = Trainer.evaluate

    def and_compute(trainer: Trainer) -> list[float]:
        trainer.network.eval()
        computed.append(trainer.network(features, codes)[0])
        return evaluate(trainer)

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 2, 9, TINY["feature_dim"], generator=generator)
    codes = make_codes(1, 100)
    monkeypatch.setattr(Trainer, "evaluate", and_compute)
    train(tiny_config(tiny_data, tmp_path, lora=2, steps=3, eval_every=3))
    merged, _ = load_model(checkpoint(tmp_path, 3))
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    torch.testing.assert_close(merged(features, codes)[0], computed[0], rtol=1e-4, atol=1e-5)
