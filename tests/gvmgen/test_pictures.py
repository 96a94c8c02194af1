"""What is shown of attention is what the network attends to; samples on the way disturb nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gvmgen.model import merge_heads
from gvmgen.pictures import PIXELS, spatial_weights, temporal_weights, tiled, watched
from gvmgen.train import train
from tests.gvmgen.networks import TINY, make_codes, make_features, make_network
from tests.gvmgen.tiny_runs import losses, tiny_config


def test_the_shown_spatial_weights_are_those_that_mix_the_patches() -> None:
    network = make_network()
    with torch.no_grad(), watched(network) as (spatial, temporal):
        network(make_features(1, 3), make_codes(1, 150))
        attention, queries, patches = spatial[-1]
        weights = spatial_weights(attention, queries, patches)  # [F, H, Q, P]
        value = attention.key_value(patches).chunk(2, dim=-1)[1].unflatten(-1, (weights.shape[1], -1))
        mixed = merge_heads(weights @ value.transpose(1, 2))
        torch.testing.assert_close(
            attention.norm(attention.dense(attention.out(mixed))), attention(queries, patches)
        )
    assert len(temporal) == TINY.num_layers


def test_the_shown_temporal_weights_are_those_that_mix_the_frames() -> None:
    network = make_network()
    with torch.no_grad(), watched(network) as (_, temporal):
        network(make_features(1, 3), make_codes(1, 150))
        attention, x, memory, bias = temporal[0]
        mixed = merge_heads(temporal_weights(attention, x, memory, bias) @ memory.value)
        torch.testing.assert_close(attention.out(mixed), attention(x, memory, bias))


def test_each_query_is_a_square_that_leaves_out_the_class_token() -> None:
    weights = torch.zeros(3, 10)
    weights[:, 0] = 9.0  # the class token
    weights[:, 1] = 1.0
    weights[2, 9] = 2.0
    picture = tiled(weights)
    assert picture.shape == (8 * PIXELS, 8 * PIXELS, 3)  # 2 x 2 squares of 3 x 3 with a border
    levels = picture[::PIXELS, ::PIXELS, 0]
    assert levels[0, 0] == levels[0, 4] == 255
    assert (levels[4, 0], levels[6, 2]) == (127, 255)
    assert not levels[4:, 4:].any()


def test_samples_on_the_way_are_kept_and_change_nothing(tiny_data: Path, tmp_path: Path) -> None:
    train(tiny_config(tiny_data, tmp_path / "plain", steps=3))
    train(tiny_config(tiny_data, tmp_path / "shown", steps=3, samples_every=2, tracker="tensorboard"))
    assert losses(tmp_path / "shown") == losses(tmp_path / "plain")
    run = tmp_path / "shown" / "tiny"
    (codes,) = (np.load(path) for path in (run / "samples" / "step_00000002").glob("*.npy"))
    assert (codes.dtype, codes.shape) == (np.int16, (4, 3 * 50))
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert len(events.Tags()["images"]) == 2
    assert "train/mfu" in events.Tags()["scalars"]


def test_a_tracker_that_is_unknown_or_missing_is_named(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--tracker tensorbord: unknown; known: none, all"):
        train(tiny_config(tiny_data, tmp_path, tracker="tensorbord"))
    with pytest.raises(ValueError, match="pip install clearml"):
        train(tiny_config(tiny_data, tmp_path, tracker="clearml"))
