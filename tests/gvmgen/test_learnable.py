"""What is frozen stays, what learns does so at its pace."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from gvmgen.learnable import choose_learnable, composing_weights, rate_scale
from gvmgen.optimiser import make_optimiser, set_learning_rate
from gvmgen.start import initial_model
from gvmgen.train import train
from tests.gvmgen.networks import make_network
from tests.gvmgen.tiny_runs import TINY, checkpoint, losses, tensors, tiny_config

LEARNING = {
    "all": r"(?!frame_codes\.)",
    "feature-transformation": r"transformation\.",
    "cross-attention": r"decoder\.layers\.\d+\.(cross_attention|norm_cross)\.",
    "frame-codes": r"frame_codes\.",
}


@pytest.fixture
def untrained() -> dict[str, torch.Tensor]:
    model, _ = initial_model(tiny_config(Path(), Path()), {})
    return model.state_dict()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors(folder).items() if "/" not in name}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("part", LEARNING)
def test_only_the_chosen_part_learns(
    tiny_data: Path, tmp_path: Path, untrained: dict[str, torch.Tensor], part: str
) -> None:
    train(tiny_config(tiny_data, tmp_path, train=part, steps=2, guidance_dropout=0.0))
    saved = checkpoint(tmp_path, 2)
    wanted = {name for name in untrained if re.match(LEARNING[part], name)}
    assert changed(untrained, weights(saved)) == wanted
    assert {name.partition("/")[0] for name in tensors(saved) if "/" in name} == wanted


def test_frame_codes_learn_what_frames_say_without_the_decoder(tiny_data: Path, tmp_path: Path) -> None:
    train(tiny_config(tiny_data, tmp_path, train="frame-codes", steps=30, lr=0.05, warmup_steps=0))
    assert losses(tmp_path)[-1] < losses(tmp_path)[0] - 0.1


def test_with_adapters_the_feature_transformation_and_the_decoders_products_learn(
    tiny_data: Path, tmp_path: Path, untrained: dict[str, torch.Tensor]
) -> None:
    train(tiny_config(tiny_data, tmp_path, lora=2, steps=2))
    wanted = {
        name
        for name in untrained
        if name.startswith("transformation.") or (name.startswith("decoder.layers.") and ".norm_" not in name)
    }
    assert changed(untrained, weights(checkpoint(tmp_path, 2))) == wanted


def test_untrained_adapters_change_nothing() -> None:
    network, plain = make_network(), make_network()
    choose_learnable(network, tiny_config(Path(), Path(), lora=4))
    merged = composing_weights(network)
    assert merged.keys() == plain.state_dict().keys()
    assert all(torch.equal(merged[name], tensor) for name, tensor in plain.state_dict().items())


def test_without_peft_adapters_name_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'gvmgen\[lora\]'"):
        choose_learnable(make_network(), tiny_config(Path(), Path(), lora=4))


def test_a_part_that_the_network_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="--train cross-attention: this network has none"):
        choose_learnable(
            make_network(temporal_cross_attention=False), tiny_config(Path(), Path(), train="cross-attention")
        )


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("decoder.embedding.weight", 0.125),
        ("decoder.layers.0.up.weight", 0.25),
        ("decoder.layers.2.self_attention.out.lora_A.default.weight", 1.0),
        ("decoder.heads.weight", 1.0),
        ("transformation.layers.0.up.weight", 1.0),
    ],
)
def test_each_decoder_layer_learns_slower_than_the_one_above(name: str, scale: float) -> None:
    assert rate_scale(name, num_layers=3, decay=0.5) == scale


def test_the_optimiser_moves_a_slow_layer_by_its_share_of_the_rate() -> None:
    network = make_network()
    config = tiny_config(Path(), Path(), lr_decay=0.5, weight_decay=0.0)
    optimiser = make_optimiser(network, config, torch.device("cpu"))
    set_learning_rate(optimiser, 1e-3)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()  # Adam's first step is as long as the rate
    for name, parameter in network.named_parameters():
        moved = (before[name] - parameter).abs().max().item()
        assert moved == pytest.approx(1e-3 * rate_scale(name, 2, 0.5), rel=1e-2), name


def test_recomputed_activations_change_no_loss(tiny_data: Path, tmp_path: Path) -> None:
    for name, recompute in (("kept", False), ("again", True)):
        train(tiny_config(tiny_data, tmp_path / name, recompute=recompute, steps=3))
    assert losses(tmp_path / "again") == losses(tmp_path / "kept")


@pytest.mark.slow
def test_compiled_layers_learn_the_same(tiny_data: Path, tmp_path: Path) -> None:
    shallow = TINY | {"num_layers": 1}
    for name, compiled in (("plain", False), ("compiled", True)):
        config = tiny_config(tiny_data, tmp_path / name, compile=compiled, steps=2, model=shallow, crop_s=2)
        train(config)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    assert (
        weights(checkpoint(tmp_path / "compiled", 2)).keys()
        == weights(checkpoint(tmp_path / "plain", 2)).keys()
    )
