"""The music codec against transformers' own forward and against audiocraft's, on small models."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import EncodecConfig, EncodecModel

from gvmgen.encoders import audio
from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.encodec import EncodecSettings
from gvmgen.encoders.presets import EncoderConfig
from shards.spec import num_code_frames
from tools.pocket.init_untrained import codec_config, draw_codebooks, random_music


def config(codec: Path | str) -> EncoderConfig:
    return EncoderConfig(clip_model="", clip_weights=None, codec=str(codec))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow EnCodec in transformers' form, with codebooks from its own output."""
    torch.manual_seed(0)
    model = EncodecModel(codec_config(num_filters=4)).eval()
    draw_codebooks(model, torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("codec")
    model.save_pretrained(folder)
    return folder


def load_peer(folder: Path) -> EncodecModel:
    return EncodecModel.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model(folder: Path) -> EncodecModel:
    return load_peer(folder)


@pytest.fixture(scope="module")
def codec(folder: Path) -> AudioCodec:
    return AudioCodec.load(config(folder))


@pytest.fixture(scope="module")
def music() -> Tensor:
    """float32 [1, N], 11.01 s: more than two of the codec's pieces, and no whole number of code frames."""
    return random_music(12, torch.Generator().manual_seed(1))[0, :, :352_320]


def agreement(codes: Tensor, wanted: Tensor) -> float:
    """Share of equal codes: sums in another order turn a rare tie, and then the codebooks that follow it."""
    assert codes.shape == wanted.shape
    return float((codes == wanted).float().mean())


def test_codes_and_waveform_equal_transformers_own(
    codec: AudioCodec, model: EncodecModel, music: Tensor
) -> None:
    with torch.inference_mode():
        codes = model.encode(music[:, None]).audio_codes[0]
        waveform = model.decode(codes[None], [None]).audio_values[:, 0]
        latent = model.encoder(music[:, None])
    assert torch.allclose(codec.latent(music), latent, atol=1e-5 * float(latent.abs().max()))
    assert agreement(codec.encode(music), codes) > 0.995
    assert torch.allclose(codec.decode(codes), waveform, atol=1e-5)
    assert waveform.abs().max() > 0.01
    assert all(len(codes[0, k].unique()) > 30 for k in range(4))  # not a degenerate codec


@pytest.mark.parametrize("piece", [9, 37, 250])
def test_pieces_leave_no_seam(
    codec: AudioCodec, model: EncodecModel, music: Tensor, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    with torch.inference_mode():
        codes = model.encode(music[:, None]).audio_codes[0]
        waveform = model.decode(codes[None], [None]).audio_values[:, 0]
    monkeypatch.setattr(audio, "_PIECE", piece)
    assert agreement(codec.encode(music), codes) > 0.995
    assert torch.allclose(codec.decode(codes), waveform, atol=1e-6)


@pytest.mark.parametrize("num_samples", [1, 639, 640, 641, 32_000, 160_001])
def test_codes_cover_a_waveform_of_any_length(codec: AudioCodec, music: Tensor, num_samples: int) -> None:
    codes = codec.encode(music[:, :num_samples])
    assert codes.dtype == torch.int64
    assert codes.shape == (1, 4, num_code_frames(num_samples / 32_000))
    assert codec.decode(codes).shape == (1, 640 * codes.shape[-1])


def test_a_batch_equals_its_rows(codec: AudioCodec, music: Tensor) -> None:
    rows = torch.cat([music[:, :64_000], music[:, 64_000:128_000]])
    codes = codec.encode(rows)
    assert agreement(codes, torch.cat([codec.encode(row[None]) for row in rows])) > 0.995
    assert torch.allclose(codec.decode(codes)[1:], codec.decode(codes[1:]), atol=1e-5)


def test_another_weight_is_another_fingerprint(folder: Path, codec: AudioCodec) -> None:
    assert AudioCodec(load_peer(folder)).fingerprint == codec.fingerprint
    other: Any = load_peer(folder)
    with torch.no_grad():
        other.decoder.layers[0].conv.bias[0] += 1
    assert AudioCodec(other).fingerprint != codec.fingerprint


def test_a_codec_of_another_rate_is_refused() -> None:
    settings = codec_config(num_filters=4)
    settings.sampling_rate = 24_000
    with pytest.raises(ValueError, match=r"24000.*32000"):
        AudioCodec(EncodecModel(settings))


def test_settings_that_a_file_leaves_out_are_transformers_own() -> None:
    theirs = EncodecConfig().to_dict() | {"codebook_dim": None}  # which stands for the hidden size
    ours = json.loads(json.dumps(asdict(EncodecSettings())))  # lists for tuples, as in a file
    assert ours == {name: theirs[name] for name in ours}


@pytest.mark.parametrize("change", [{"use_causal_conv": True}, {"norm_type": "time_group_norm"}])
def test_a_network_that_is_not_computed_here_is_refused(folder: Path, change: dict[str, Any]) -> None:
    values = json.loads((folder / "config.json").read_text())
    with pytest.raises(ValueError, match=next(iter(change))):
        EncodecSettings.read(values | change)


def test_weights_in_an_older_form_are_the_same_codec(folder: Path, codec: AudioCodec, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(load_peer(folder).state_dict(), tmp_path / "pytorch_model.bin")
    assert AudioCodec.load(config(tmp_path)).fingerprint == codec.fingerprint


def test_weights_that_do_not_fit_their_settings_are_named(folder: Path, tmp_path: Path) -> None:
    values = json.loads((folder / "config.json").read_text()) | {"num_filters": 8}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"(?s)size mismatch.*encoder\.layers\.0\.conv"):
        AudioCodec.load(config(tmp_path))


def test_a_folder_without_weights_is_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(audio.MissingWeightsError, match="--preset pocket"):
        AudioCodec.load(config(tmp_path))


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "it ran",))

    path = tmp_path / "compression_state_dict.bin"
    for write in (
        lambda: torch.save({"best_state": Evil()}, path),
        lambda: path.write_bytes(pickle.dumps(Evil())),
    ):
        write()
        with pytest.raises(ValueError, match="not opened"):
            AudioCodec.load(config(path))
    assert not (tmp_path / "it ran").exists()


def test_an_audiocraft_file_that_names_another_codec_says_so(tmp_path: Path) -> None:
    path = tmp_path / "compression_state_dict.bin"
    torch.save({"pretrained": "facebook/encodec_32khz", "exported": True}, path)
    with pytest.raises(ValueError, match="facebook/encodec_32khz"):
        AudioCodec.load(config(tmp_path))


SETTINGS = """
sample_rate: 32000
channels: 1
compression_model: encodec
encodec:
  autoencoder: seanet
  quantizer: rvq
  sample_rate: ${sample_rate}
  channels: ${channels}
  causal: false
  renormalize: false
seanet:
  dimension: 128
  channels: ${channels}
  causal: ${encodec.causal}
  n_filters: 4
  n_residual_layers: 1
  ratios: [8, 5, 4, 4]
  activation: ELU
  activation_params: {alpha: 1.0}
  norm: weight_norm
  norm_params: {}
  kernel_size: 7
  residual_kernel_size: 3
  last_kernel_size: 7
  dilation_base: 2
  pad_mode: PAD_MODE
  true_skip: true
  compress: 2
  lstm: 2
  disable_norm_outer_blocks: 0
  encoder: {}
  decoder: {trim_right_ratio: 1.0, final_activation: null, final_activation_params: null}
rvq: {n_q: 4, q_dropout: false, bins: 2048, decay: 0.99, kmeans_init: false}
"""


def write_audiocraft(folder: Path, model: EncodecModel, pad_mode: str) -> tuple[Path, Any]:
    """(an exported audiocraft codec with the model's weights, audiocraft's own model loaded from it)."""
    loaders = pytest.importorskip("audiocraft.models.loaders", reason="needs audiocraft: make audiocraft")
    builders = pytest.importorskip("audiocraft.models.builders")
    omegaconf = pytest.importorskip("omegaconf")
    settings = SETTINGS.replace("PAD_MODE", pad_mode)
    peer = builders.get_compression_model(omegaconf.OmegaConf.create(settings + "device: cpu\n"))
    peer.load_state_dict(_audiocraft_names(model.state_dict(), set(peer.state_dict())))
    path = folder / "compression_state_dict.bin"
    torch.save(
        {"best_state": peer.state_dict(), "xp.cfg": settings, "version": "1.3.0", "exported": True}, path
    )
    return path, loaders.load_compression_model(path)


def _audiocraft_names(tensors: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """transformers' tensors under audiocraft's names, matched by position, not by our own renaming."""

    def place(name: str) -> tuple[Any, ...]:
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        kind = name.replace("parametrizations.weight.original0", "weight_g").rsplit(".", 1)[-1]
        kind = {"original1": "weight_v"}.get(kind, kind)
        return name.split(".")[0], numbers, kind

    theirs = sorted(names, key=place)
    ours = sorted(tensors, key=place)
    return {a: tensors[b] for a, b in zip(theirs, ours, strict=True)}


@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
def test_audiocraft_gives_the_same_codes_and_waveform(
    model: EncodecModel, music: Tensor, tmp_path: Path, pad_mode: str
) -> None:
    path, peer = write_audiocraft(tmp_path, model, pad_mode)
    codec = AudioCodec.load(config(path.parent))
    with torch.inference_mode():
        codes, _ = peer.encode(music[:, None])
        waveform = peer.decode(codes)[:, 0]
    assert agreement(codec.encode(music), codes) > 0.995
    assert torch.allclose(codec.decode(codes), waveform, atol=1e-5)
    assert codec.fingerprint["pad_mode"] == pad_mode


def test_both_formats_of_the_same_weights_have_one_fingerprint(
    model: EncodecModel, codec: AudioCodec, tmp_path: Path
) -> None:
    path, _ = write_audiocraft(tmp_path, model, "reflect")
    assert AudioCodec.load(config(path)).fingerprint == codec.fingerprint


def test_an_audiocraft_file_whose_weights_do_not_fit_names_them(model: EncodecModel, tmp_path: Path) -> None:
    path, peer = write_audiocraft(tmp_path, model, "reflect")
    tensors = peer.state_dict()
    tensors["decoder.model.0.conv.conv.surplus"] = tensors.pop("decoder.model.0.conv.conv.bias")
    torch.save({"best_state": tensors, "xp.cfg": SETTINGS.replace("PAD_MODE", "reflect")}, path)
    with pytest.raises(ValueError, match=r"(?s)decoder.layers.0.conv.bias.*surplus"):
        AudioCodec.load(config(path))
