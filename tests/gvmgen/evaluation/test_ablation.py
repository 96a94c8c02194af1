"""The ablation on tiny networks: every variant is one, what is done is not done again, the table says it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gvmgen.config import ModelConfig, TrainConfig, model_config
from gvmgen.decoding import SamplingConfig
from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.presets import encoder_config
from gvmgen.evaluation.ablation import (
    VARIANTS,
    Ablation,
    Task,
    ablate,
    compose_all,
    fitting_start,
    interval,
    markdown,
    video_level_data,
    watch,
)
from gvmgen.evaluation.config import EvaluatorConfig
from gvmgen.evaluation.evaluator import EvaluatorInfo, save_evaluator
from gvmgen.evaluation.model import EvaluationModel
from gvmgen.fast.choice import choose_engines
from gvmgen.model import GVMGen
from shards.reader import ShardSet
from shards.spec import CODE_RATE, NUM_PATCHES, Sample
from shards.writer import write_shard

WIDTH, SECONDS = 16, 4
TINY = {
    "feature_dim": WIDTH,
    "projection_dim": WIDTH,
    "transformation_num_heads": 2,
    "transformation_num_layers": 2,
    "dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "window_s": SECONDS,
}


def make_sample(number: int, split: str) -> Sample:
    random = np.random.default_rng(number)
    features = random.standard_normal((SECONDS, NUM_PATCHES, WIDTH)).astype(np.float16)
    codes = random.integers(0, 2048, (4, SECONDS * CODE_RATE)).astype(np.int16)
    return Sample(f"segment_{number}", features, codes, {"split": split, "duration_s": float(SECONDS)})


@pytest.fixture(scope="module")
def fingerprint() -> dict[str, object]:
    return {"video": {"dtype": "float32"}, "audio": AudioCodec.load(encoder_config("pocket")).fingerprint}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, fingerprint: dict[str, object]) -> Path:
    folder = tmp_path_factory.mktemp("data")
    samples = [make_sample(i, "test" if i < 3 else "train") for i in range(7)]
    write_shard(folder / "shards", 0, samples, plan_hash="plan", fingerprint=fingerprint)
    return folder


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory, fingerprint: dict[str, object]) -> Path:
    folder = tmp_path_factory.mktemp("evaluator")
    sizes = EvaluatorConfig(video_dim=3 * WIDTH, music_dim=3 * 64, dim=16, num_layers=1, num_heads=2)
    torch.manual_seed(0)
    info = EvaluatorInfo(preset="pocket", encoder_fingerprint=fingerprint, step=0, training={})
    save_evaluator(folder, EvaluationModel(sizes), info)
    return folder


def base(data: Path) -> TrainConfig:
    return TrainConfig(
        data=str(data), preset="pocket", model=TINY, steps=2, batch_size=2, warmup_steps=0, lr=1e-3,
        save_every=2, eval_every=2, keep_last=1, precision="no",
    )  # fmt: skip


def test_what_is_measured_is_not_trained_again(data: Path, evaluator: Path, tmp_path: Path) -> None:
    ablation = Ablation(
        base=base(data),
        evaluator=evaluator,
        out=tmp_path,
        variants=("base", "video_level"),
        num_seeds=1,
        num_pieces=2,
    )
    assert ablate(ablation)
    kept, lost = tmp_path / "base_0" / "figures.json", tmp_path / "video_level_0" / "figures.json"
    table, before, kept_at = (tmp_path / "table.md").read_text(), lost.read_text(), kept.stat().st_mtime_ns
    lost.unlink()
    assert ablate(ablation)
    assert kept.stat().st_mtime_ns == kept_at
    assert lost.read_text() == before
    assert (tmp_path / "table.md").read_text() == table
    assert "| one feature a video, no frames | 1 |" in table
    assert "| the videos' own music |" in table


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_network_that_learns(name: str) -> None:
    config = ModelConfig.from_json(model_config("pocket").to_json() | TINY | VARIANTS[name].model)
    network = GVMGen(config)
    logits, _ = network(torch.randn(1, SECONDS, 9, WIDTH), torch.zeros(1, 4, 20, dtype=torch.int64))
    logits.sum().backward()
    assert network.transformation.output.weight.grad is not None


def test_all_frames_of_video_level_features_are_their_mean(data: Path, tmp_path: Path) -> None:
    before = ShardSet.open(data / "shards")
    after = ShardSet.open(video_level_data(data, tmp_path) / "shards")
    assert after.plan_hash == before.plan_hash
    for index in range(len(before)):
        a, b = before.read(index), after.read(index)
        np.testing.assert_array_equal(a.codes, b.codes)
        assert (b.features == b.features[:1]).all()
        np.testing.assert_allclose(b.features[0], a.features.astype(np.float32).mean(axis=0), atol=2e-3)


def test_music_does_not_depend_on_what_is_composed_beside_it(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    network = GVMGen(base(data).model_config).eval()
    test_set = ShardSet.open(data / "shards", "test")
    seen = [watch(network, test_set.read(index), VARIANTS["base"]) for index in range(len(test_set))]
    tasks = [Task(conditions, 20 + 10 * (i == 1), seed=i) for i, conditions in enumerate(seen)]
    engines = choose_engines(network)
    together = compose_all(network, engines, SamplingConfig(), tasks)
    monkeypatch.setattr("gvmgen.evaluation.ablation.ROWS_AT_ONCE", 1)
    alone = compose_all(network, engines, SamplingConfig(), tasks)
    assert [codes.shape for codes in together] == [(1, 4, 20), (1, 4, 30), (1, 4, 20)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert not torch.equal(together[0], together[2])


def test_a_variant_starts_from_the_weights_that_fit(data: Path, tmp_path: Path) -> None:
    from gvmgen.checkpoint import ModelInfo, load_model, save_model

    torch.manual_seed(1)
    source = GVMGen(base(data).model_config)
    save_model(tmp_path / "init", source, ModelInfo(preset="pocket"))
    config = TrainConfig(preset="pocket", model=TINY | {"num_queries": 3})
    start, _ = load_model(fitting_start(tmp_path / "init", config, tmp_path / "start"))
    assert start.config.num_queries == 3
    torch.testing.assert_close(start.decoder.embedding.weight, source.decoder.embedding.weight)
    assert start.transformation.queries.shape[1] == 3


def test_an_interval_over_seeds_is_students() -> None:
    """Three values of deviation 1 about 2: half of it is 4.303 / sqrt(3)."""
    assert interval([1.0, 2.0, 3.0]) == "2.000 ± 2.484"
    assert interval([0.5]) == "0.500"
    assert interval([]) == ""


def test_a_table_half_done_is_a_table_and_compares_seed_with_seed() -> None:
    run = {"loss": 6.0, "accuracy": 0.5, "cmr": 0.4, "ta": 0.2, "accuracy_shuffled": 0.0625}
    lucky = run | {"loss": 5.0, "cmr": 0.6}
    figures = {
        name: {"true": {"value": 0.9}, "shuffled": {"value": 0.1}} for name in ("accuracy", "cmr", "ta")
    }
    truth = {"num_pairs": 18, "batch_size": 16, "chance": 0.0625, "ta_chance": 0.067, "figures": figures}
    other = {seed: found | {"loss": found["loss"] + 0.1} for seed, found in ((1, lucky), (2, run))}
    text = markdown({"base": {0: run, 1: lucky}, "queries_1": other, "sum": {}}, truth)
    assert "| base: 16 queries, average, time axis | 2 | 5.500 ± 6.353 | 0.500 ± 0.000 |" in text
    assert text.count("| 0.100 | 0.000 |") == 1  # only seed 1 has both
    assert "| queries summed | 0 |  |  |  |  |  |  |  |" in text


def test_an_unknown_variant_lists_the_known(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown variants \['queries_3'\]; known: base, queries_1"):
        Ablation(base=base(data), evaluator=tmp_path, out=tmp_path, variants=("queries_3",))


def test_an_evaluator_of_other_encoders_is_refused(data: Path, evaluator: Path, tmp_path: Path) -> None:
    config = json.loads((evaluator / "config.json").read_text())
    config["encoder_fingerprint"]["video"] = {"dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((evaluator / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"learned from other encoders .*video\.dtype"):
        ablate(Ablation(base=base(data), evaluator=tmp_path, out=tmp_path / "out"))
