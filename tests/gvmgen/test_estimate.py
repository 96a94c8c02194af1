"""What a step takes, counted without computing it."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gvmgen.cli import train_main
from gvmgen.config import OPTIMIZERS, TrainConfig
from gvmgen.estimate import GB, Memory, empty_batch, estimate_memory, kept_bytes, memory_of
from gvmgen.flops import forward_flops
from gvmgen.learnable import choose_learnable
from gvmgen.machine import matrix_rate
from gvmgen.model import GVMGen
from gvmgen.optimiser import make_optimiser, moment_bytes
from shards.spec import NUM_PATCHES
from tests.gvmgen.tiny_runs import tiny_config

CONFIG = tiny_config(Path(), Path(), precision="bf16", crop_s=2)


def test_memory_is_counted_as_a_real_step_keeps_it() -> None:
    torch.manual_seed(0)
    real = kept_bytes(GVMGen(CONFIG.model_config).train(), CONFIG, 1)
    with FakeTensorMode():
        counted = kept_bytes(GVMGen(CONFIG.model_config).train(), CONFIG, 1)
    assert counted == pytest.approx(real, rel=0.02)
    network = GVMGen(CONFIG.model_config)
    products = [m.weight.numel() for m in network.decoder.modules() if isinstance(m, torch.nn.Linear)]
    matrices = [p.numel() for p in network.parameters() if p.ndim == 2]
    assert 2 * sum(products) <= counted[0] <= 2 * sum(matrices)


def test_pieces_and_recomputing_take_less_and_frozen_weights_no_moments() -> None:
    with FakeTensorMode():
        network = GVMGen(CONFIG.model_config).train()
        whole = memory_of(network, CONFIG)
        pieces = memory_of(network, replace(CONFIG, grad_accum=2))
        recomputed = memory_of(network, replace(CONFIG, recompute=True))
        for parameter in network.decoder.parameters():
            parameter.requires_grad_(False)
        frozen = memory_of(network, CONFIG)
    assert pieces.activations == whole.activations / 2
    assert recomputed.activations < whole.activations
    assert frozen.moments < whole.moments / 2
    assert frozen.gradients == frozen.moments / 2


def test_moments_are_counted_as_each_optimiser_keeps_them() -> None:
    network = GVMGen(CONFIG.model_config)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in OPTIMIZERS:
        config = replace(CONFIG, optimizer=optimizer)
        optimiser = make_optimiser(network, config, torch.device("cpu"))
        optimiser.step()
        kept = [
            (name, x) for state in optimiser.state.values() for name, x in state.items() if name[:4] != "qmap"
        ]
        real = sum(x.nbytes for name, x in kept if name != "step")
        counted = sum(moment_bytes(p.numel(), optimizer) for p in network.parameters())
        assert counted == pytest.approx(real, rel=0.01)


def test_an_estimate_names_the_parts_and_says_what_fits() -> None:
    text = estimate_memory(CONFIG)
    size = sum(p.numel() for p in GVMGen(CONFIG.model_config).parameters())
    assert f"{size / 1e6:.1f} M parameters" in text
    assert "AdamW's moments" in text
    assert "24 GB, as asked: " in text
    assert text.endswith("fits")


def test_large_fits_two_cards_as_it_is_and_one_with_moments_of_8_bits() -> None:
    lines = estimate_memory(TrainConfig(preset="large", crop_s=1)).splitlines()
    alone, shared, packed = lines[-3:]
    assert alone.endswith("does not fit")
    assert "--grad-accum 6 --recompute, FSDP over 2 GPUs: " in shared
    assert "--grad-accum 6 --recompute --optimizer adamw8bit: " in packed
    assert shared.endswith("GB, fits")
    assert packed.endswith("GB, fits")


def test_moments_of_8_bits_stay_where_they_are_asked_and_are_never_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gvmgen.estimate.CARD_GB", 0)  # nothing fits: every way is told
    monkeypatch.setattr("gvmgen.estimate.GB", 1e6)  # the network is small
    text = estimate_memory(replace(CONFIG, optimizer="adamw8bit"))
    with FakeTensorMode():
        network = GVMGen(CONFIG.model_config).train()
        choose_learnable(network, CONFIG)
        smaller = replace(CONFIG, optimizer="adamw8bit", grad_accum=CONFIG.batch_size, recompute=True)
        peaks = [memory_of(network, replace(smaller, optimizer=name)).peak for name in OPTIMIZERS]
    assert peaks[1] < 0.9 * peaks[0]
    flags = f"--grad-accum {CONFIG.batch_size} --recompute"
    assert f"{flags}: {peaks[1] / 1e6:.1f} GB, does not fit" in text
    assert f"{flags} --optimizer adamw, FSDP over 8 GPUs" in text
    assert text.count("adamw8bit") == 0


def test_the_command_estimates_without_data(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gvm-train", "--estimate", "--preset", "pocket", "--crop-s", "1"])
    with pytest.raises(SystemExit) as stopped:
        train_main()
    assert stopped.value.code == 0
    assert "activations of 6 x 1 s" in capsys.readouterr().out


def test_adapters_are_counted_as_what_learns() -> None:
    whole, adapted = estimate_memory(CONFIG), estimate_memory(replace(CONFIG, lora=2))
    learning = [float(re.findall(r"which ([\d.]+) M learn", text)[0]) for text in (whole, adapted)]
    assert learning[1] < learning[0]


def test_what_is_too_large_for_one_card_is_shared_by_several() -> None:
    large = Memory(
        weights=8 * GB, gradients=8 * GB, moments=16 * GB, average=0, copies=4 * GB, activations=GB, logits=0
    )
    assert large.peak / GB == 8 + 16 + 8
    assert large.sharded(4).peak / GB == 2 + 4 + 2


@pytest.mark.parametrize("changes", [{}, {"pooling": "preserve"}, {"spatial_cross_attention_every": 0}])
def test_arithmetic_is_counted_as_torch_counts_it(changes: dict[str, object]) -> None:
    config = replace(CONFIG.model_config, **changes)
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        features, codes = empty_batch(CONFIG, 1)
        GVMGen(config).eval()(features, codes)
    causal_half = config.num_layers * 2 * codes.shape[2] ** 2 * config.dim
    counted = counter.get_total_flops() - causal_half
    found = forward_flops(config, features.shape[1], NUM_PATCHES, codes.shape[2])
    assert found == pytest.approx(counted, rel=0.06)  # the delay's three steps more


def test_a_machine_has_a_matrix_rate() -> None:
    assert matrix_rate(torch.device("cpu"), torch.float32) > 1e8
