"""`gvm-eval train` from shards to figures: stopped, gone on with, finished, refused."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.presets import encoder_config
from gvmgen.evaluation import load_evaluator
from gvmgen.evaluation.config import EvaluatorTraining
from gvmgen.evaluation.seconds import Pair, load_pairs, music_seconds, video_seconds
from gvmgen.evaluation.sources import ShardPairs
from gvmgen.evaluation.training import Trainer, train_evaluator
from shards.spec import CODE_RATE, NUM_PATCHES, Sample, ShardError
from shards.writer import write_shard

WIDTH = 4
TINY = EvaluatorTraining(
    preset="pocket", dim=16, num_layers=1, num_heads=2, steps=6, batch_size=4, warmup_steps=1
)


def make_sample(number: int) -> Sample:
    random = np.random.default_rng(number)
    seconds = 3 if number == 9 else 4 + number % 2  # number 9 is too short to be of use
    features = random.standard_normal((seconds, NUM_PATCHES, WIDTH)).astype(np.float16)
    codes = random.integers(0, 2048, (4, seconds * CODE_RATE)).astype(np.int16)
    split = "test" if number < 3 else "train"
    return Sample(f"segment_{number}", features, codes, {"split": split, "duration_s": float(seconds)})


def shards(data: Path, run: Path) -> ShardPairs:
    return ShardPairs(data, "pocket", run / "seconds")


@pytest.fixture(scope="module")
def codec() -> AudioCodec:
    return AudioCodec.load(encoder_config("pocket"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, codec: AudioCodec) -> Path:
    folder = tmp_path_factory.mktemp("data")
    fingerprint = {"video": {"dtype": "float32"}, "audio": codec.fingerprint}
    samples = [make_sample(number) for number in range(10)]
    write_shard(folder / "shards", 0, samples, plan_hash="plan", fingerprint=fingerprint)
    return folder


def test_a_stopped_training_goes_on_and_ends_as_if_it_had_not_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_evaluator(shards(data, tmp_path), tmp_path / "whole", TINY, save_every=100)
    take_step = Trainer.take_step

    def interrupted(self: Trainer, step: int) -> float:
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return take_step(self, step)

    monkeypatch.setattr(Trainer, "take_step", interrupted)
    train_evaluator(shards(data, tmp_path), tmp_path / "cut", TINY, save_every=100)
    monkeypatch.undo()
    assert "Stopped after step 3 of 6, saved" in capsys.readouterr().err
    assert not (tmp_path / "cut" / "figures.json").exists()
    assert load_evaluator(tmp_path / "cut").info.step == 3
    train_evaluator(shards(data, tmp_path), tmp_path / "cut", TINY, save_every=100)
    whole, cut = load_evaluator(tmp_path / "whole"), load_evaluator(tmp_path / "cut")
    assert cut.info.step == 6
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, cut.model.state_dict()[name]), name
    figures = [json.loads((tmp_path / run / "figures.json").read_text()) for run in ("whole", "cut")]
    assert figures[0] == figures[1]
    assert figures[0]["num_pairs"] == 3
    assert "3 pairs, batches of 3" in capsys.readouterr().out


def test_pairs_hold_what_the_shards_hold_and_are_read_once(
    data: Path, tmp_path: Path, codec: AudioCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_pairs(data, "train", "pocket", tmp_path)
    monkeypatch.setattr("gvmgen.evaluation.seconds.read_pairs", None)  # not to be called again
    second = load_pairs(data, "train", "pocket", tmp_path)
    assert [pair.key for pair in second] == [f"segment_{number}" for number in range(3, 9)]
    sample = make_sample(4)
    codes = torch.from_numpy(sample.codes.astype(np.int64))[None]
    torch.testing.assert_close(second[1].video, video_seconds(torch.from_numpy(sample.features)))
    torch.testing.assert_close(second[1].music, music_seconds(codec.dequantise(codes)[0]))
    assert all(torch.equal(a.music, b.music) for a, b in zip(first, second, strict=True))


def test_other_data_under_the_same_cache_is_read_anew(data: Path, tmp_path: Path, codec: AudioCodec) -> None:
    load_pairs(data, "train", "pocket", tmp_path / "cache")
    fingerprint: dict[str, Any] = {"video": {}, "audio": codec.fingerprint}
    samples = [make_sample(number) for number in (13, 14)]
    write_shard(tmp_path / "more" / "shards", 0, samples, plan_hash="other", fingerprint=fingerprint)
    keys = [pair.key for pair in load_pairs(tmp_path / "more", "train", "pocket", tmp_path / "cache")]
    assert keys == ["segment_13", "segment_14"]


def test_seconds_of_music_tell_level_spread_and_movement() -> None:
    still, busy = torch.ones(CODE_RATE, 1), torch.tensor([0.0, 2.0]).repeat(CODE_RATE // 2)[:, None]
    seconds = music_seconds(torch.cat([still, busy, still[:20]]))
    assert seconds.shape == (2, 3)  # the part of a third second is left out
    assert seconds[0].tolist() == [1, 0, 0]
    assert seconds[1].tolist() == pytest.approx([1, 1.0102, 2], abs=1e-3)


def test_pairs_held_out_are_measured_and_not_trained_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on: set[str] = set()
    batch = Trainer.batch

    def noted(self: Trainer, step: int) -> list[Pair]:
        trained_on.update(pair.key for pair in batch(self, step))
        return batch(self, step)

    monkeypatch.setattr(Trainer, "batch", noted)
    train_evaluator(shards(data, tmp_path), tmp_path, replace(TINY, held_out=2), save_every=100)
    assert trained_on == {f"segment_{number}" for number in range(3, 7)}
    assert json.loads((tmp_path / "figures.json").read_text())["num_pairs"] == 5


def test_another_recipe_in_the_same_run_is_refused(data: Path, tmp_path: Path) -> None:
    train_evaluator(shards(data, tmp_path), tmp_path, replace(TINY, steps=1), save_every=1)
    with pytest.raises(
        ValueError, match=r"made with other settings: training\.lr: found 0\.0003, wanted 0\.1"
    ):
        train_evaluator(shards(data, tmp_path), tmp_path, replace(TINY, steps=1, lr=0.1), save_every=1)


def test_codes_of_another_codec_are_refused(tmp_path: Path) -> None:
    fingerprint = {"video": {}, "audio": {"weights_sha256": "other"}}
    write_shard(tmp_path / "shards", 0, [make_sample(5)], plan_hash="plan", fingerprint=fingerprint)
    with pytest.raises(ValueError, match=r"made by another codec than --preset pocket has: .*weights_sha256"):
        load_pairs(tmp_path, "train", "pocket", tmp_path)


def test_no_shards_are_an_error_that_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="gvm-prep encode"):
        train_evaluator(shards(tmp_path, tmp_path), tmp_path / "run", TINY, save_every=1)
