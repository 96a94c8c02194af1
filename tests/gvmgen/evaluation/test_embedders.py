"""Each embedder listens; those from the hub as small models of their own classes, from a local folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gvmgen.encoders.presets import MissingWeightsError
from gvmgen.evaluation.embedders import load_embedder
from shards.spec import SAMPLE_RATE

pytest.importorskip("scipy")


def noise(duration_s: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, round(duration_s * SAMPLE_RATE)).astype(np.float32)


@pytest.fixture
def clap(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    text = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    audio = {
        "patch_embeds_hidden_size": 16,
        "hidden_size": 32,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "enable_fusion": False,
    }
    config = transformers.ClapConfig(
        text_config=text | {"intermediate_size": 16}, audio_config=audio, projection_dim=12
    )
    transformers.ClapModel(config).save_pretrained(tmp_path)
    transformers.ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def tagger(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_mel_bins=32,
        max_length=64,
        num_labels=7,
    )
    transformers.ASTForAudioClassification(config).save_pretrained(tmp_path)
    transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(tmp_path)
    return tmp_path


def test_the_codec_in_the_box_gives_one_row_a_second_and_says_its_name() -> None:
    embedder = load_embedder("encodec")
    assert "pocket codec in the box" in embedder.description
    found = embedder.embed(noise(3.2))
    assert found.rows.shape == (3, 64)
    assert found.classes is None
    assert embedder.embed(noise(0.3)).rows.shape == (1, 64)


def test_clap_gives_a_unit_row_every_five_seconds(clap: Path) -> None:
    embedder = load_embedder(f"clap={clap}")
    found = embedder.embed(noise(12))
    assert found.rows.shape == (3, 12)
    assert np.linalg.norm(found.rows, axis=1) == pytest.approx(1, abs=1e-5)
    assert str(clap) in embedder.description


def test_a_tagger_gives_rows_and_the_probabilities_of_its_classes(tagger: Path) -> None:
    found = load_embedder(f"tagger={tagger}").embed(noise(11.5))
    assert found.rows.shape == (2, 16)
    assert found.classes is not None
    assert found.classes.shape == (7,)
    assert found.classes.sum() == pytest.approx(1, abs=1e-5)


def test_an_unknown_embedder_lists_the_known_and_lacking_weights_name_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="known: encodec, clap, tagger"):
        load_embedder("vggish")
    with pytest.raises(MissingWeightsError, match="in the box"):
        load_embedder(f"clap={tmp_path / 'nothing'}")
