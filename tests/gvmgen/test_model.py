"""Properties of the network. B batch, F frames, Q queries, K codebooks, T code frames, V codebook size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gvmgen.model import GVMGen, code_loss
from tests.gvmgen.networks import TINY, make_codes, make_features, make_network

VARIANTS: list[dict[str, Any]] = [
    {},
    *({"num_queries": num_queries} for num_queries in (1, 2, 8, 16, 32)),
    {"pooling": "sum"},
    {"pooling": "preserve"},
    {"spatial_cross_attention_every": 0},
    {"spatial_cross_attention_every": 1},
    {"temporal_cross_attention": False},
    {"frame_positions": False},
    {"pooling": "preserve", "frame_positions": False},
    {"frame_changes": True},
    {"frame_changes": True, "pooling": "preserve"},
    {"frame_codes": True},
]
all_variants = pytest.mark.parametrize("changes", VARIANTS, ids=str)


@all_variants
def test_every_variant_learns_from_the_video(changes: dict[str, Any]) -> None:
    network = make_network(**changes)
    features, codes = make_features(2, 3), make_codes(2, 10)
    features.requires_grad_()
    logits, mask = network(features, codes)
    assert logits.shape == (2, 4, 10, TINY.codebook_size)
    code_loss(logits, codes, mask).backward()
    assert features.grad is not None
    assert features.grad.abs().amax(dim=(2, 3)).min() > 0  # every frame of every row counts
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert {name.partition(".")[0] for name in without} <= {"frame_codes"}  # they learn alone


def test_preserved_queries_give_a_condition_each() -> None:
    features = make_features(2, 3)
    assert make_network().conditions(features).shape == (2, 3, TINY.dim)
    assert make_network(pooling="preserve").conditions(features).shape == (2, 3 * TINY.num_queries, TINY.dim)


def test_a_frame_gives_the_same_condition_alone_and_among_others() -> None:
    network, features = make_network(), make_features(2, 3)
    alone = network.conditions(features[1:, 2:])
    torch.testing.assert_close(network.conditions(features)[1:, 2:], alone)


@all_variants
def test_no_logit_sees_the_future(changes: dict[str, Any]) -> None:
    network, features, codes = make_network(**changes), make_features(1, 2), make_codes(1, 12)
    before, mask = network(features, codes)
    changed_k, changed_t = 1, 5
    codes[:, changed_k, changed_t] = (codes[:, changed_k, changed_t] + 1) % TINY.codebook_size
    after, _ = network(features, codes)
    differs = (before != after).any(dim=-1)[0]  # [K, T]
    steps = torch.arange(12) + torch.arange(4)[:, None]  # the step that predicts each code
    assert not differs[steps <= changed_t + changed_k].any()
    assert differs[(steps > changed_t + changed_k) & mask[0]].all()


@all_variants
def test_a_row_without_its_video_depends_on_no_video(changes: dict[str, Any]) -> None:
    network, codes = make_network(**changes), make_codes(2, 8)
    drop = torch.tensor([True, False])
    first, _ = network(make_features(2, 3, seed=1), codes, drop_condition=drop)
    second, _ = network(make_features(2, 3, seed=5), codes, drop_condition=drop)
    torch.testing.assert_close(first[0], second[0])
    assert not torch.allclose(first[1], second[1])


@all_variants
def test_an_anchor_ends_with_a_frame_that_is_not_seen(changes: dict[str, Any]) -> None:
    network, codes = make_network(anchor_s=2, **changes), make_codes(2, 8)
    features = make_features(2, 4)
    other = features.clone()
    other[:, 1] = make_features(2, 4, seed=5)[:, 1]  # the anchor's last second
    anchored = torch.tensor([True, False])
    first, second = (network(each, codes, anchored=anchored)[0] for each in (features, other))
    torch.testing.assert_close(first[0], second[0])
    assert not torch.allclose(first[1], second[1])


@all_variants
def test_padding_changes_nothing(changes: dict[str, Any]) -> None:
    network, features, codes = make_network(**changes), make_features(2, 5), make_codes(2, 20)
    padded, mask = network(
        features, codes, num_frames=torch.tensor([5, 3]), num_code_frames=torch.tensor([20, 12])
    )
    alone, alone_mask = network(features[1:, :3], codes[1:, :, :12])
    assert torch.equal(mask[1:, :, :12], alone_mask)
    assert not mask[1, :, 12:].any()
    torch.testing.assert_close(padded[1:, :, :12], alone, atol=1e-5, rtol=1e-4)
    assert not padded[1, :, 12:].any()


def test_frame_positions_draw_each_second_of_music_to_its_frame() -> None:
    decoder = make_network().decoder
    bias = decoder.position_bias(0, 250, 5, torch.device("cpu"))
    assert bias is not None
    steps = torch.tensor([step for step in range(250) if step % 50])  # on the second two frames are as near
    nearest = bias[0, :, steps].argmax(dim=-1)
    assert torch.equal(nearest, (steps // 50).expand(TINY.num_heads, -1))


def test_frame_positions_depend_on_distance_in_time_only() -> None:
    decoder = make_network().decoder
    early = decoder.position_bias(0, 100, 4, torch.device("cpu"))
    late = decoder.position_bias(50, 100, 5, torch.device("cpu"))
    assert early is not None
    assert late is not None
    torch.testing.assert_close(late[..., 1:], early)


def test_with_frame_positions_the_order_of_the_frames_counts() -> None:
    features, codes = make_features(1, 4), make_codes(1, 10)
    for has_positions in (True, False):
        network = make_network(frame_positions=has_positions)
        forwards, _ = network(features, codes)
        backwards, _ = network(features.flip(1), codes)
        assert torch.allclose(forwards, backwards, atol=1e-5) is not has_positions


def make_watchful(**changes: Any) -> tuple[GVMGen, GVMGen]:
    """A network that tells what changed, and its twin that does not."""
    network, twin = make_network(frame_changes=True, **changes), make_network(**changes)
    assert network.transformation.changes is not None
    torch.nn.init.normal_(network.transformation.changes.down.weight)
    twin.load_state_dict({k: v for k, v in network.state_dict().items() if k in twin.state_dict()})
    return network, twin


@pytest.mark.parametrize("pooling", ["average", "preserve"])
def test_frame_changes_tell_of_a_cut_at_its_frame_and_of_a_still_picture_nothing(pooling: str) -> None:
    network, twin = make_watchful(pooling=pooling)
    first, second = make_features(1, 2).unbind(dim=1)
    video = torch.stack([first, first, second, second], dim=1)
    told = (network.conditions(video) != twin.conditions(video))[0].unflatten(0, (4, -1)).flatten(1)
    assert told[2].all()
    assert not told[[0, 1, 3]].any()


def test_a_stretch_that_knows_the_frame_before_it_has_the_conditions_of_the_whole() -> None:
    network, _ = make_watchful()
    features = make_features(2, 5)
    apart = [network.conditions(features[:, :2]), network.conditions(features[:, 2:], features[:, 1:2])]
    torch.testing.assert_close(torch.cat(apart, dim=1), network.conditions(features))


def test_frame_changes_start_silent() -> None:
    network, features = make_network(frame_changes=True), make_features(1, 3)
    silent = network.conditions(features)
    network.transformation.changes = None
    assert torch.equal(silent, network.conditions(features))


def test_recomputing_layers_changes_no_gradient() -> None:
    gradients = []
    for recomputes in (False, True):
        network = make_network(transformation_dropout=0.0).train()
        network.decoder.recompute_layers = recomputes
        codes = make_codes(2, 8)
        code_loss(network(make_features(2, 3), codes)[0], codes, torch.ones(codes.shape)).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_loss_is_the_mean_of_the_codebooks_own_means() -> None:
    codes = make_codes(1, 6)
    logits = torch.zeros(1, 4, 6, TINY.codebook_size)
    logits[:, 0].scatter_(-1, codes[:, 0, :, None], 50.0)  # codebook 0 is certain and right
    mask = torch.ones(1, 4, 6, dtype=torch.bool)
    mask[:, 1:, 1:] = False  # the others have one code each
    assert code_loss(logits, codes, mask).item() == pytest.approx(0.75 * math.log(TINY.codebook_size))


def test_masked_codes_do_not_count() -> None:
    codes, logits = make_codes(1, 6), torch.randn(1, 4, 6, TINY.codebook_size)
    mask = torch.ones(1, 4, 6, dtype=torch.bool)
    mask[..., 3:] = False
    loss = code_loss(logits, codes, mask)
    logits[..., 3:, :] = 1e4 * torch.randn(1, 4, 3, TINY.codebook_size)
    torch.testing.assert_close(code_loss(logits, codes, mask), loss)


def test_a_new_network_is_about_as_good_as_chance() -> None:
    codes = make_codes(4, 40)
    logits, mask = make_network()(make_features(4, 2), codes)
    chance = math.log(TINY.codebook_size)
    assert chance <= code_loss(logits, codes, mask).item() < chance + 1


def test_frame_codes_hear_a_moments_own_frame_and_its_neighbours() -> None:
    codes = make_network(frame_codes=True).frame_codes
    glimpses = torch.randn(1, 6, 2 * TINY.feature_dim)
    other = glimpses.clone()
    other[:, 4] += 1
    num_moments = TINY.code_rate // TINY.frame_rate
    before, after = (codes(each, 6 * num_moments) for each in (glimpses, other))
    differs = (before != after).any(dim=-1).unflatten(1, (6, num_moments)).all(dim=-1)
    assert differs[0].tolist() == [False, False, False, True, True, True]


def test_a_glimpse_tells_what_changed_since_the_frame_before_also_where_that_lies_before() -> None:
    codes, features = make_network(frame_codes=True).frame_codes, make_features(1, 4)
    whole = codes.glimpses(features)
    assert torch.equal(codes.glimpses(features[:, 2:], features[:, 1:2]), whole[:, 2:])
    still = codes.glimpses(features[:, :1].expand(-1, 4, -1, -1))
    assert torch.equal(still[:, 1:], still[:, :1].expand(-1, 3, -1))


def test_frame_codes_say_of_padded_rows_what_they_say_of_them_alone() -> None:
    network = make_network(frame_codes=True, code_rate=5)
    torch.nn.init.normal_(network.frame_codes.heads.weight)
    features, codes = make_features(2, 4), make_codes(2, 20)
    lengths = {"num_frames": torch.tensor([4, 2]), "num_code_frames": torch.tensor([20, 10])}
    padded, mask = network(features, codes, by_frames=True, **lengths)
    alone, alone_mask = network(features[1:, :2], codes[1:, :, :10], by_frames=True)
    assert torch.equal(mask[1:, :, :10], alone_mask)
    assert not mask[1, :, 10:].any()
    torch.testing.assert_close(padded[1:, :, :10], alone)
    assert torch.equal(network(features, codes, **lengths)[1], mask)  # losses of both are of the same codes
