"""The official code's own numbers, and its checkpoints as we read them.

The fixture is a small network with random weights in the official format, and what the official code
computes with it.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from gvmgen.checkpoint import load_model
from gvmgen.decoding import (
    PlainEngine,
    SamplingConfig,
    first_codes,
    generate_codes,
    guided_conditions,
    sample_codes,
)
from gvmgen.imports import import_official
from gvmgen.model import GVMGen

REPOSITORY = Path(__file__).resolve().parents[2]
VISUAL = "condition_provider.conditioners.visual_content.clip.visual."
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def fixture(shared_dir: Path) -> Path:
    return shared_dir / "fixtures/official-gvmgen-tiny"


@pytest.fixture(scope="module")
def network(fixture: Path) -> GVMGen:
    return load_model(fixture)[0]


@pytest.fixture(scope="module")
def expected(fixture: Path) -> dict[str, Tensor]:
    with np.load(fixture / "expected.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture
def package(fixture: Path) -> dict[str, Any]:
    """The checkpoint as `torch.save` was given it, to be changed by a test."""
    return torch.load(fixture / "state_dict.bin", weights_only=True)


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_conditions_are_the_official_codes(network: GVMGen, expected: dict[str, Tensor]) -> None:
    assert_near(network.conditions(expected["patch_features"]), expected["condition"])


@torch.inference_mode()
def test_teacher_forced_logits_are_the_official_codes(network: GVMGen, expected: dict[str, Tensor]) -> None:
    logits, mask = network(expected["patch_features"], expected["codes"])
    assert torch.equal(mask, expected["logits_mask"])
    assert_near(logits, expected["logits"])


def greedy(network: GVMGen, conditions: Tensor, guidance: float) -> Tensor:
    """As the official code ends a piece: with pads beside the last codes."""
    sampling = SamplingConfig(guidance=guidance, temperature=0.0)
    engine = PlainEngine(network, guided_conditions(conditions, guidance), max_steps=43)
    prompt = first_codes(network, len(conditions), None)
    seeds = [0] * len(conditions)
    return sample_codes(
        engine, 40, sampling, seeds, prompt=prompt, pad_id=network.config.pad_id, pad_tail=True
    )


@torch.inference_mode()
def test_greedy_codes_are_the_official_codes(network: GVMGen, expected: dict[str, Tensor]) -> None:
    conditions = network.conditions(expected["patch_features"])
    assert torch.equal(greedy(network, conditions, 3.0), expected["greedy_cfg3"])
    assert torch.equal(greedy(network, conditions[:1], 1.5), expected["greedy_cfg1_5_first"])


@torch.inference_mode()
def test_our_own_ending_differs_in_the_last_steps_only(network: GVMGen, expected: dict[str, Tensor]) -> None:
    conditions = network.conditions(expected["patch_features"])
    codes = generate_codes(network, conditions, 40, SamplingConfig(temperature=0.0), seeds=[0, 0])
    assert torch.equal(codes[..., :37], expected["greedy_cfg3"][..., :37])
    assert torch.equal(codes[:, 0], expected["greedy_cfg3"][:, 0])


def test_the_file_and_its_folder_are_the_same_model(network: GVMGen, fixture: Path) -> None:
    from_file, info = load_model(fixture / "state_dict.bin")
    assert from_file.config == network.config
    assert info.encoder_fingerprint is None
    assert not from_file.config.frame_positions


def test_the_report_names_what_is_left_out(fixture: Path) -> None:
    model, report = import_official(fixture)
    assert set(report.loaded) == set(model.state_dict())
    assert report.initialised == ()
    assert all(name.startswith(VISUAL) for name in report.dropped)
    assert any("dropped" in line and "conv1" in line for line in report.lines())
    assert not any("qformer" in name or "ln_post" in name for name in report.dropped)


def save(package: dict[str, Any], folder: Path) -> Path:
    torch.save(package, folder / "state_dict.bin")
    return folder


def changed_settings(package: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> None:
    settings = yaml.safe_load(package["xp.cfg"])
    change(settings)
    package["xp.cfg"] = yaml.safe_dump(settings)


def former_of(settings: dict[str, Any]) -> dict[str, Any]:
    return settings["conditioners"]["visual_content"]["video"]["qformer"]


def test_every_tensor_that_does_not_fit_is_named(package: dict[str, Any], tmp_path: Path) -> None:
    state = package["best_state"]
    del state["linears.2.weight"]
    state["transformer.layers.0.linear3.weight"] = torch.ones(2)
    state[VISUAL + "qformer.layernorm.weight"] = torch.ones(5)
    with pytest.raises(ValueError, match="does not fit the model") as error:
        load_model(save(package, tmp_path))
    text = str(error.value)
    assert "missing linears.2.weight" in text
    assert "unexpected transformer.layers.0.linear3.weight" in text
    assert "qformer.layernorm.weight is [5], wanted [128]" in text
    assert text.count(";") == 2


def test_a_checkpoint_that_holds_code_is_not_run(package: dict[str, Any], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    package["trap"] = Trap()
    with pytest.raises(ValueError, match="cannot be read as tensors and plain values"):
        load_model(save(package, tmp_path))
    (tmp_path / "state_dict.bin").write_bytes(pickle.dumps(package["trap"], protocol=2))
    with pytest.raises(ValueError, match="cannot be read as tensors and plain values"):
        load_model(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state_dict.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"state_dict\.bin: cannot be read"):
        load_model(tmp_path)


def test_tensors_alone_are_no_checkpoint(package: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"best_state and xp\.cfg"):
        load_model(save(package["best_state"], tmp_path))


@torch.inference_mode()
def test_sums_over_queries_load_too(
    package: dict[str, Any], expected: dict[str, Tensor], network: GVMGen, tmp_path: Path
) -> None:
    changed_settings(package, lambda settings: former_of(settings).update(query_type="sum"))
    summing, _ = load_model(save(package, tmp_path))
    assert summing.config.pooling == "sum"
    features = expected["patch_features"]
    # the layer norm after the pooling takes the factor of 16 away again
    assert_near(summing.conditions(features), network.conditions(features))


def test_sizes_come_from_the_checkpoints_own_configuration(package: dict[str, Any], tmp_path: Path) -> None:
    def shrink(settings: dict[str, Any]) -> None:
        former_of(settings).update(query_num=2, qformer_layers=3, cross_attention_frequency=1)
        settings["transformer_lm"].update(num_layers=2, num_heads=8)

    changed_settings(package, shrink)
    state = package["best_state"]
    for name in list(state):
        if "qformer.encoder.layer.1." in name and "attention" in name:
            state[name.replace("attention", "crossattention")] = state[name].clone()
        if "layer.1.self_output" in name:
            state[name.replace("self_output", "cross_output")] = state[name].clone()
        if name.startswith("transformer.layers.2.") or any(f"encoder.layer.{i}." in name for i in (3, 4, 5)):
            del state[name]
    state[VISUAL + "query_tokens"] = state[VISUAL + "query_tokens"][:, :2].clone()
    config = load_model(save(package, tmp_path))[0].config
    assert (config.num_queries, config.transformation_num_layers, config.num_layers) == (2, 3, 2)
    assert (config.spatial_cross_attention_every, config.num_heads) == (1, 8)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s["transformer_lm"].update(bias_attn=True), "bias_attn is True, wanted False"),
        (lambda s: s["transformer_lm"].update(positional_embedding="rope"), "positional_embedding is 'rope'"),
        (lambda s: s["codebooks_pattern"]["delay"].update(delays=[0, 0, 1, 1]), "delays"),
        (lambda s: s["fuser"].update(cross_attention_pos_emb=True), "cross_attention_pos_emb"),
        (lambda s: former_of(s).update(query_type="maximum"), "query_type is 'maximum'"),
        (lambda s: s["conditioners"]["visual_content"]["video"].update(is_qformer=False), "is_qformer"),
        (lambda s: s.pop("transformer_lm"), "transformer_lm"),
    ],
)
def test_settings_of_another_network_are_refused(
    package: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    changed_settings(package, change)
    with pytest.raises(ValueError, match=named):
        load_model(save(package, tmp_path))


def test_half_precision_weights_are_read_as_float32(package: dict[str, Any], tmp_path: Path) -> None:
    package["best_state"] = {name: tensor.half() for name, tensor in package["best_state"].items()}
    model, _ = load_model(save(package, tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@torch.inference_mode()
def test_the_import_tool_writes_the_same_model(
    package: dict[str, Any], expected: dict[str, Tensor], network: GVMGen, tmp_path: Path
) -> None:
    save(package, tmp_path)
    (tmp_path / "compression_state_dict.bin").write_bytes(b"a codec")
    command = [sys.executable, "tools/import_checkpoint.py", str(tmp_path), str(tmp_path / "model")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "dropped" in done.stdout
    imported, info = load_model(tmp_path / "model")
    assert info.codec is not None
    assert Path(info.codec).read_bytes() == b"a codec"
    assert len(info.provenance["sha256"]) == 64
    features, codes = expected["patch_features"], expected["codes"]
    assert torch.equal(imported(features, codes)[0], network(features, codes)[0])
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "exists; name a new folder" in again.stderr
