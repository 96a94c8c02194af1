"""The network's sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gvmgen.config import MODEL_PRESETS, ModelConfig, TrainConfig, model_config
from gvmgen.model import GVMGen


@pytest.mark.parametrize(("preset", "wanted"), [("small", 493e6), ("large", 1.9e9)])
def test_presets_have_the_published_number_of_parameters(preset: str, wanted: float) -> None:
    with torch.device("meta"):
        model = GVMGen(model_config(preset))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("preset", MODEL_PRESETS)
def test_a_config_survives_json(preset: str) -> None:
    config = replace(model_config(preset), pooling="preserve", num_queries=8, frame_positions=False)
    assert ModelConfig.from_json(config.to_json()) == config


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown preset 'medium'; known: pocket, small, large"):
        model_config("medium")


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ValueError, match="num_quries"):
        ModelConfig.from_json({"num_quries": 4})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dim": 100, "num_heads": 16}, "dim 100"),
        ({"feature_dim": 100, "transformation_num_heads": 16}, "feature_dim 100"),
        ({"pooling": "maximum"}, "maximum"),
        ({"num_queries": 0}, "num_queries"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"anchor_s": 8, "window_s": 30}, "anchor_s is 8; it must be 0 to 7"),
    ],
)
def test_impossible_sizes_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ModelConfig.from_json(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_s": float("inf")}, "crop_s is inf; it must be a whole number of seconds"),
        ({"steps": True}, "steps is True; it must be a whole number"),
        ({"preset": "pocket", "model": {"anchor_s": 3}}, "anchor_s is learned on crops"),
        ({"preset": "pocket", "model": {"anchor_s": 4}, "crop_s": 3.0}, "anchor_s is 4; it must be 0 to 3"),
    ],
)
def test_training_settings_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = TrainConfig.from_json(settings).model_config
