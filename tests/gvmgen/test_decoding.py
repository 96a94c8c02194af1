"""Properties of decoding. R rows of an engine, K codebooks, S steps, V codebook size."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from gvmgen.decoding import (
    FramePull,
    PlainEngine,
    SamplingConfig,
    choose,
    generate_codes,
    generate_in_groups,
    guide,
    uniform_draws,
)
from gvmgen.model import GVMGen
from tests.gvmgen.networks import TINY, make_codes, make_features, make_network

VARIANTS: list[dict[str, Any]] = [
    {},
    {"pooling": "preserve"},
    {"temporal_cross_attention": False},
    {"frame_positions": False},
    {"code_rate": 5},  # twelve steps pass three frames
]
all_variants = pytest.mark.parametrize("changes", VARIANTS, ids=str)
FREE = SamplingConfig(top_k=0)


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.inference_mode():
        yield


def make_conditions(network: GVMGen, batch: int) -> Tensor:
    return network.conditions(make_features(batch, 3))


@all_variants
@pytest.mark.parametrize("num_prefilled", [1, 4, 12])
def test_cached_decoding_equals_uncached(changes: dict[str, Any], num_prefilled: int) -> None:
    network = make_network(**changes)
    conditions, inputs = make_conditions(network, 2), make_codes(2, 12)
    uncached = network.decode(conditions, inputs)  # [R, K, S, V]
    engine = PlainEngine(network, conditions, max_steps=12)
    logits = [engine.prefill(inputs[:, :, :num_prefilled])]
    logits += [engine.step(inputs[:, :, step]) for step in range(num_prefilled, 12)]
    torch.testing.assert_close(
        torch.stack(logits, dim=2), uncached[:, :, num_prefilled - 1 :], atol=1e-5, rtol=1e-4
    )


def test_a_second_prefill_goes_on_from_the_first() -> None:
    network = make_network()
    conditions, inputs = make_conditions(network, 2), make_codes(2, 12)
    engine = PlainEngine(network, conditions, max_steps=12)
    engine.prefill(inputs[:, :, :5])
    last = engine.prefill(inputs[:, :, 5:])
    torch.testing.assert_close(last, network.decode(conditions, inputs)[:, :, -1], atol=1e-5, rtol=1e-4)


@all_variants
def test_a_batch_gives_what_its_rows_give_alone(changes: dict[str, Any]) -> None:
    network = make_network(**changes)
    conditions = make_conditions(network, 3)
    together = generate_codes(network, conditions, 20, FREE, seeds=[5, 6, 7])
    for row, seed in enumerate([5, 6, 7]):
        alone = generate_codes(network, conditions[row : row + 1], 20, FREE, seeds=[seed])
        assert torch.equal(together[row : row + 1], alone)


def test_a_row_depends_on_its_own_seed_only() -> None:
    network = make_network()
    conditions = make_conditions(network, 1).repeat(2, 1, 1)
    first = generate_codes(network, conditions, 20, FREE, seeds=[5, 6])
    second = generate_codes(network, conditions, 20, FREE, seeds=[9, 6])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])


def test_seeds_that_share_their_low_bits_differ() -> None:
    draws = uniform_draws([7, 7 + (1 << 32), 7], 3, 4)
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_the_video_changes_the_music() -> None:
    network = make_network()
    conditions = make_conditions(network, 2)
    codes = generate_codes(network, conditions, 20, FREE, seeds=[5, 5])
    assert not torch.equal(codes[0], codes[1])


def test_a_piece_holds_codes_only() -> None:
    network = make_network()
    for num_code_frames in (1, 2, 3, 30):
        codes = generate_codes(network, make_conditions(network, 2), num_code_frames, FREE, seeds=[1, 2])
        assert codes.shape == (2, 4, num_code_frames)
        assert codes.min() >= 0
        assert codes.max() < TINY.codebook_size


def test_a_longer_piece_begins_as_the_shorter_one() -> None:
    """So the end of a piece is composed beside real codes, not beside pads that training never shows."""
    network = make_network()
    conditions, seeds = make_conditions(network, 16), range(16)
    short = generate_codes(network, conditions, 15, FREE, seeds)
    long = generate_codes(network, conditions, 25, FREE, seeds)
    assert torch.equal(long[..., :15], short)


@pytest.mark.parametrize("num_given", [1, 2, 3, 4, 10, 20])
def test_a_piece_goes_on_from_its_prompt(num_given: int) -> None:
    network = make_network()
    conditions = make_conditions(network, 2)
    prompt = make_codes(2, num_given)
    codes = generate_codes(network, conditions, 20, FREE, seeds=[1, 2], prompt=prompt)
    assert torch.equal(codes[..., :num_given], prompt)
    whole = generate_codes(network, conditions, 20, FREE, seeds=[1, 2])
    again = generate_codes(network, conditions, 20, FREE, seeds=[1, 2], prompt=whole[..., :num_given])
    assert torch.equal(again, whole)


def test_a_prompt_longer_than_the_piece_is_refused() -> None:
    network = make_network()
    with pytest.raises(ValueError, match="prompt has 9 code frames, the piece only 8"):
        generate_codes(network, make_conditions(network, 1), 8, FREE, seeds=[1], prompt=make_codes(1, 9))


def test_progress_reaches_its_end() -> None:
    network, calls = make_network(), []
    generate_codes(
        network,
        make_conditions(network, 1),
        6,
        FREE,
        seeds=[1],
        prompt=make_codes(1, 2),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(done, 9) for done in range(3, 10)]


def test_guidance_leads_away_from_music_without_the_video() -> None:
    seeing, blind = torch.randn(2, 4, 7), torch.randn(2, 4, 7)
    logits = torch.cat([seeing, blind])
    torch.testing.assert_close(guide(logits, 3.0), 3 * seeing - 2 * blind)
    torch.testing.assert_close(guide(logits, 0.0), blind)
    assert torch.equal(guide(seeing, 1.0), seeing)


def test_guidance_of_one_is_the_same_with_half_the_rows() -> None:
    network = make_network()
    conditions = make_conditions(network, 1)
    off = generate_codes(network, conditions, 20, SamplingConfig(guidance=1.0), seeds=[4])
    almost = generate_codes(network, conditions, 20, SamplingConfig(guidance=1.0 + 1e-9), seeds=[4])
    assert torch.equal(off, almost)


DRAWS = uniform_draws([0], 20_000, 1)[0]  # [20000, 1]
LOGITS = torch.tensor([0.1, 2.0, -1.0, 1.0, 0.5])


def shares(sampling: SamplingConfig) -> Tensor:
    """How often each id of LOGITS is chosen."""
    chosen = choose(LOGITS.expand(len(DRAWS), 1, -1), sampling, DRAWS)
    return torch.bincount(chosen.flatten(), minlength=len(LOGITS)) / len(DRAWS)


def following_network(**changes: Any) -> GVMGen:
    """A network whose `frame_codes` have something to say."""
    network = make_network(frame_codes=True, **changes)
    torch.nn.init.normal_(network.frame_codes.heads.weight)
    torch.nn.init.normal_(network.frame_codes.moment.weight)
    return network


@pytest.mark.parametrize("changes", [{}, {"code_rate": 5}], ids=str)
def test_each_code_is_pulled_by_how_much_likelier_its_frames_make_it(changes: dict[str, Any]) -> None:
    codes, num_code_frames = following_network(**changes).frame_codes, 14
    glimpses = codes.glimpses(make_features(2, 3))[[0, 1, 0]]
    seen = codes.predict(codes(glimpses, num_code_frames)).log_softmax(-1)  # [B, K, T, V]
    blind = codes.predict(codes(0 * glimpses, num_code_frames)).log_softmax(-1)
    pull = FramePull(codes, glimpses, num_code_frames, follow=1.5)
    for k in range(TINY.num_codebooks):
        for step in range(num_code_frames + TINY.num_codebooks - 1):
            if 0 <= step - k < num_code_frames:
                wanted = 1.5 * (seen - blind)[:, k, step - k]
                torch.testing.assert_close(pull.at(step)[:, k], wanted)
            else:
                assert not pull.at(step)[:, k].any()


def test_a_strong_pull_composes_what_the_frames_say_each_row_by_its_own() -> None:
    network = following_network()
    codes, conditions = network.frame_codes, make_conditions(network, 2)
    glimpses = codes.glimpses(make_features(2, 3))
    greedy = SamplingConfig(temperature=0.0, guidance=1.0, follow=1e4)
    composed = generate_codes(network, conditions, 20, greedy, seeds=[1, 2], glimpses=glimpses)
    seen, blind = (codes.predict(codes(g, 20)).log_softmax(-1) for g in (glimpses, 0 * glimpses))
    assert torch.equal(composed, (seen - blind).argmax(-1))
    alone = generate_codes(network, conditions[1:], 20, greedy, seeds=[2], glimpses=glimpses[1:])
    assert torch.equal(alone[0], composed[1])


@pytest.mark.parametrize("num_groups", [1, 2, 3, 9])
def test_groups_of_rows_compose_what_they_compose_together(num_groups: int) -> None:
    network = following_network()
    conditions, glimpses = make_conditions(network, 3), network.frame_codes.glimpses(make_features(3, 3))
    sampling, prompt, done = SamplingConfig(top_k=0, follow=0.1), make_codes(3, 2), []
    together = generate_codes(network, conditions, 20, sampling, [5, 6, 7], prompt, glimpses=glimpses)
    threads = torch.get_num_threads()
    grouped = generate_in_groups(
        num_groups,
        network,
        conditions,
        20,
        sampling,
        [5, 6, 7],
        prompt,
        lambda step, of: done.append((step, of)),
        None,
        glimpses,
    )
    assert torch.equal(grouped, together)
    assert done[-1] == (23, 23)
    assert torch.get_num_threads() == threads


def test_whoever_stops_a_group_hears_of_it() -> None:
    network = make_network()

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_in_groups(
            2, network, make_conditions(network, 2), 9, FREE, [5, 6], make_codes(2, 1), stop, None, None
        )


def test_frame_codes_that_have_not_learned_pull_nowhere() -> None:
    network = make_network(frame_codes=True)
    conditions, glimpses = make_conditions(network, 1), network.frame_codes.glimpses(make_features(1, 3))
    pieces = [
        generate_codes(network, conditions, 20, SamplingConfig(follow=follow), seeds=[5], glimpses=glimpses)
        for follow in (0.0, 9.0)
    ]
    assert torch.equal(*pieces)


def test_a_network_without_frame_codes_cannot_follow_them() -> None:
    network = make_network()
    with pytest.raises(ValueError, match="no frame_codes"):
        generate_codes(network, make_conditions(network, 1), 20, SamplingConfig(follow=1.0), seeds=[5])


def test_ids_are_drawn_by_their_probability() -> None:
    torch.testing.assert_close(shares(FREE), LOGITS.softmax(0), atol=0.01, rtol=0)


def test_temperature_sharpens_and_flattens() -> None:
    for temperature in (0.5, 2.0):
        wanted = (LOGITS / temperature).softmax(0)
        sampling = SamplingConfig(top_k=0, temperature=temperature)
        torch.testing.assert_close(shares(sampling), wanted, atol=0.01, rtol=0)


def test_top_k_keeps_the_k_likeliest() -> None:
    wanted = LOGITS.masked_fill(LOGITS < 0.5, -torch.inf).softmax(0)  # three of them
    torch.testing.assert_close(shares(SamplingConfig(top_k=3)), wanted, atol=0.01, rtol=0)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    two = LOGITS.softmax(0).sort(descending=True).values[:2].sum().item()
    wanted = LOGITS.masked_fill(LOGITS < 1.0, -torch.inf).softmax(0)  # two of them
    sampling = SamplingConfig(top_k=0, top_p=two - 0.01)
    torch.testing.assert_close(shares(sampling), wanted, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    "sampling",
    [SamplingConfig(temperature=0.0), SamplingConfig(top_k=1), SamplingConfig(top_k=0, top_p=1e-6)],
    ids=str,
)
def test_narrow_sampling_is_greedy(sampling: SamplingConfig) -> None:
    assert shares(sampling).tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "value"), [("top_k", -1), ("top_p", 1.5), ("top_p", -0.1), ("temperature", -1.0)]
)
def test_impossible_sampling_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        SamplingConfig(**{name: value})  # type: ignore[arg-type]


def test_only_the_networks_own_steps_wake_pytorchs_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A code is chosen on the calling thread; the network then has all of its threads again."""
    seen: dict[str, set[int]] = {"choose": set(), "step": set()}

    def watched(logits: Tensor, *rest: Any) -> Tensor:
        seen["choose"].add(torch.get_num_threads())
        return choose(logits, *rest)

    class Engine(PlainEngine):
        def step(self, codes: Tensor) -> Tensor:
            seen["step"].add(torch.get_num_threads())
            return super().step(codes)

    network, before = make_network(), torch.get_num_threads()
    monkeypatch.setattr("gvmgen.decoding.choose", watched)
    torch.set_num_threads(3)
    try:
        generate_codes(
            network, make_conditions(network, 1), 4, FREE, seeds=[0], make_engine=partial(Engine, network)
        )
    finally:
        torch.set_num_threads(before)
    assert seen == {"choose": {1}, "step": {3}}
