"""MusicGen's weights in our decoder: the same weights, the same logits, in both of its formats.

Small random MusicGens of audiocraft's and transformers' own classes stand for the published ones.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gvmgen.checkpoint import load_model
from gvmgen.delay import align_logits, decoder_inputs
from gvmgen.encoders.presets import MissingWeightsError
from gvmgen.imports import ImportReport, import_musicgen
from tests.gvmgen.networks import TINY, make_codes, make_features

TOLERANCE = 1e-4
SAME = replace(TINY, frame_positions=False)  # the network that MusicGen's decoder is
NUM_FRAMES = 30
TEXT_DIM = 20


def sharpen(model: torch.nn.Module) -> None:
    """Give a fresh model's weights sizes at which a wrong place of one would show."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        else:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)


@pytest.fixture(scope="module")
def transformers_musicgen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A MusicgenForConditionalGeneration and the folder that it is saved in."""
    from transformers import MusicgenConfig, MusicgenForConditionalGeneration

    text = {"d_model": TEXT_DIM, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    audio = {"num_filters": 2, "hidden_size": 8, "codebook_size": TINY.codebook_size}
    decoder = {
        "vocab_size": TINY.codebook_size,
        "hidden_size": TINY.dim,
        "num_hidden_layers": TINY.num_layers,
        "num_attention_heads": TINY.num_heads,
        "ffn_dim": TINY.dim * TINY.feed_forward_scale,
        "num_codebooks": TINY.num_codebooks,
        "pad_token_id": TINY.pad_id,
        "bos_token_id": TINY.pad_id,
    }
    config = MusicgenConfig(
        text_encoder={"model_type": "t5", **text},
        audio_encoder={"model_type": "encodec", **audio},
        decoder={"model_type": "musicgen_decoder", **decoder},
    )
    model = MusicgenForConditionalGeneration(config).eval()
    sharpen(model)
    folder = tmp_path_factory.mktemp("transformers")
    model.save_pretrained(folder)
    return model, folder


@torch.inference_mode()
def test_transformers_musicgen_gives_the_same_logits(transformers_musicgen: tuple[Any, Path]) -> None:
    theirs, folder = transformers_musicgen
    ours, _ = import_musicgen(folder, SAME, keeps_text_attention=True)
    inputs = decoder_inputs(make_codes(2, NUM_FRAMES), TINY.pad_id)
    text = torch.randn(2, 7, TEXT_DIM)
    wanted = theirs(
        encoder_outputs=(text,),
        attention_mask=torch.ones(2, 7, dtype=torch.long),
        decoder_input_ids=inputs.flatten(0, 1),
    ).logits.unflatten(0, (2, -1))  # [B * K, S, V] -> [B, K, S, V]
    logits = ours.eval().decode(theirs.enc_to_dec_proj(text), inputs)
    torch.testing.assert_close(logits, wanted, atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def audiocraft_musicgen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """An LMModel and the folder of its exported checkpoint."""
    lm = pytest.importorskip(
        "audiocraft.models.lm", reason="audiocraft is not installed", exc_type=ImportError
    )
    patterns = pytest.importorskip("audiocraft.modules.codebooks_patterns")
    conditioners = pytest.importorskip("audiocraft.modules.conditioners")
    sizes = {
        "n_q": TINY.num_codebooks,
        "card": TINY.codebook_size,
        "dim": TINY.dim,
        "num_heads": TINY.num_heads,
        "num_layers": TINY.num_layers,
        "hidden_scale": TINY.feed_forward_scale,
    }
    switches = {
        "norm": "layer_norm",
        "norm_first": True,
        "bias_proj": False,
        "bias_ff": False,
        "bias_attn": False,
        "causal": True,
        "positional_embedding": "sin",
        "activation": "gelu",
    }
    model = lm.LMModel(
        patterns.DelayedPatternProvider(TINY.num_codebooks),
        conditioners.ConditioningProvider({}),
        conditioners.ConditionFuser(
            {"cross": ["description"], "sum": [], "prepend": [], "input_interpolate": []}
        ),
        cross_attention=True,
        **sizes,
        **switches,
    ).eval()
    sharpen(model)
    settings = {
        "transformer_lm": sizes | switches,
        "codebooks_pattern": {"modeling": "delay", "delay": {"delays": list(range(TINY.num_codebooks))}},
        "fuser": {"cross_attention_pos_emb": False, "sum": [], "prepend": [], "cross": ["description"]},
    }
    folder = tmp_path_factory.mktemp("audiocraft")
    package = {"best_state": model.state_dict(), "xp.cfg": yaml.safe_dump(settings), "exported": True}
    torch.save(package, folder / "state_dict.bin")
    return model, folder


@torch.inference_mode()
def test_audiocraft_musicgen_gives_the_same_logits(audiocraft_musicgen: tuple[Any, Path]) -> None:
    theirs, folder = audiocraft_musicgen
    ours, _ = import_musicgen(folder, SAME, keeps_text_attention=True)
    codes, text = make_codes(2, NUM_FRAMES), torch.randn(2, 7, TINY.dim)
    wanted = theirs.compute_predictions(
        codes, [], condition_tensors={"description": (text, torch.ones(2, 7, dtype=torch.long))}
    )
    logits, mask = align_logits(ours.eval().decode(text, decoder_inputs(codes, TINY.pad_id)))
    assert torch.equal(mask, wanted.mask)
    torch.testing.assert_close(logits[mask], wanted.logits[mask], atol=TOLERANCE, rtol=0)


def test_text_attention_is_dropped_and_ours_starts_silent(transformers_musicgen: tuple[Any, Path]) -> None:
    _, folder = transformers_musicgen
    ours, report = import_musicgen(folder, TINY)
    ours.eval()
    codes = make_codes(1, NUM_FRAMES)
    first, _ = ours(make_features(1, 3, seed=1), codes)
    second, _ = ours(make_features(1, 3, seed=2), codes)
    torch.testing.assert_close(first, second)  # the video has no say yet
    first.square().mean().backward()
    assert ours.decoder.layers[0].cross_attention.out.weight.grad.abs().max() > 0  # but will learn one
    assert any(name.endswith("encoder_attn.q_proj.weight") for name in report.dropped)


def test_every_tensor_is_accounted_for(transformers_musicgen: tuple[Any, Path]) -> None:
    theirs, folder = transformers_musicgen
    for keeps, num_new in ((False, 1), (True, 0)):
        ours, report = import_musicgen(folder, TINY, keeps_text_attention=keeps)
        assert sorted(report.loaded + report.initialised) == sorted(ours.state_dict())
        assert any("decoder.layers.0.cross_attention" in name for name in report.initialised) == bool(num_new)
        assert all(name.split(".")[0] in ("transformation", "decoder") for name in report.initialised)
        assert_dropped(report, set(theirs.state_dict()), keeps)


def assert_dropped(report: ImportReport, names: set[str], keeps: bool) -> None:
    parts = {name.split(".")[0] for name in report.dropped}
    assert parts == {"text_encoder", "audio_encoder", "enc_to_dec_proj"} | (set() if keeps else {"decoder"})
    kept = {name for name in names if name.startswith("decoder.")} - set(report.dropped)
    text = "encoder_attn"
    assert any(text in name for name in kept) is keeps
    lines = "\n".join(report.lines())
    assert "loaded: decoder.layers.*.up.weight (2 tensors)" in lines
    assert "re-initialised: transformation.queries (1 tensors)" in lines


def test_a_musicgen_of_another_size_is_refused(transformers_musicgen: tuple[Any, Path]) -> None:
    _, folder = transformers_musicgen
    with pytest.raises(ValueError, match=r"num_layers is 2, wanted 3"):
        import_musicgen(folder, replace(TINY, num_layers=3))


def test_a_missing_tensor_is_named(transformers_musicgen: tuple[Any, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _, folder = transformers_musicgen
    tensors = load_file(folder / "model.safetensors")
    del tensors["decoder.lm_heads.3.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"missing decoder\.lm_heads\.3\.weight"):
        import_musicgen(tmp_path, TINY)


def test_weights_that_cannot_be_had_are_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingWeightsError, match="nobody/musicgen-nothing: no such folder"):
        import_musicgen("nobody/musicgen-nothing", TINY)


def test_a_musicgen_is_no_model_to_compose_with(tmp_path: Path) -> None:
    package = {"best_state": {}, "xp.cfg": "conditioners: {description: {model: t5}}"}
    torch.save(package, tmp_path / "state_dict.bin")
    with pytest.raises(ValueError, match="gvm-train --init"):
        load_model(tmp_path)


def test_a_folder_without_weights_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json and model\.safetensors"):
        import_musicgen(tmp_path, TINY)
