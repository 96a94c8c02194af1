"""The frozen music codec: EnCodec 32 kHz, of weights that transformers or audiocraft wrote.

Shapes: B batch, N waveform samples, K codebooks, T code frames, D latent width.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gvmgen.encoders.audiocraft_codec import AUDIOCRAFT_FILE, load_audiocraft
from gvmgen.encoders.convolutions import QuickElu, QuickEncoder, in_pieces
from gvmgen.encoders.encodec import Encodec, EncodecSettings, Lstm
from gvmgen.encoders.fingerprint import weights_sha256
from gvmgen.encoders.presets import EncoderConfig, MissingWeightsError
from shards.spec import CODE_RATE, CODEBOOK_SIZE, NUM_CODEBOOKS, SAMPLE_RATE

if TYPE_CHECKING:
    from transformers import EncodecModel

_STRIDE = SAMPLE_RATE // CODE_RATE
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"  # of a folder in transformers' form
_PIECE = 250  # code frames that the convolutions compute at once
_MARGIN = 4  # code frames beside a piece; the convolutions see fewer than 3


class AudioCodec:
    """Waveform [B, N] <-> codes [B, K, T], float32 throughout: a lower precision changes codes."""

    def __init__(self, codec: Encodec | EncodecModel, device: str | torch.device = "cpu") -> None:
        """codec: ours or transformers'; ours is taken over and changed."""
        codec = codec if isinstance(codec, Encodec) else Encodec.of(codec)
        _check(codec.config)
        self._weights_sha256 = weights_sha256(codec.state_dict().items())
        self._device = torch.device(device)
        frozen: Any = codec.eval().requires_grad_(False)
        self._codec = _fold_weight_norm(frozen.to(self._device, torch.float32))
        if self._device.type == "cpu":
            _quicken_elu(self._codec)

    @classmethod
    def load(cls, config: EncoderConfig, device: str | torch.device = "cpu") -> Self:
        """The codec of a preset, in the transformers or the audiocraft format.

        Raises MissingWeightsError where the weights are neither on disk nor reachable.
        """
        return cls(_load_codec(config.codec), device)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that shapes the codes; equal for equal weights, whatever their format."""
        return {
            "model": f"EnCodec {SAMPLE_RATE} Hz, {NUM_CODEBOOKS} x {CODEBOOK_SIZE} at {CODE_RATE} Hz",
            "weights_sha256": self._weights_sha256,
            "pad_mode": self._codec.config.pad_mode,
        }

    @torch.inference_mode()
    def encode(self, waveform: Tensor) -> Tensor:
        """Codes of the whole waveform. float32 [B, N] -> int64 [B, K, T], T = N / 640 rounded up."""
        codes = self._codec.quantizer.encode(self.latent(waveform))
        return codes.transpose(0, 1)  # [K, B, T] -> [B, K, T]

    @cached_property
    def _quick_encoder(self) -> QuickEncoder:
        layers = list(self._codec.encoder.layers)
        return QuickEncoder(layers[: _lstm_index(layers)])

    @torch.inference_mode()
    def latent(self, waveform: Tensor) -> Tensor:
        """What the codes are rounded from. float32 [B, N] -> [B, D, T], T = N / 640 rounded up."""
        layers = list(self._codec.encoder.layers)
        split = _lstm_index(layers)
        sound = waveform.to(self._device)[:, None]  # [B, N] -> [B, 1, N]
        if self._device.type == "cpu":
            latent = self._quick_encoder(sound)  # -> [B, D, T]
        else:
            latent = _in_pieces(layers[:split], sound, _STRIDE, 1 / _STRIDE)
        return _run(layers[split:], latent)

    @torch.inference_mode()
    def dequantise(self, codes: Tensor) -> Tensor:
        """The quantised latents that codes stand for. int64 [B, K, T] -> float32 [B, T, D]."""
        latents = self._codec.quantizer.decode(codes.to(self._device).transpose(0, 1))  # [B, D, T]
        return latents.transpose(1, 2)

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """The whole waveform of codes. int64 [B, K, T] -> float32 [B, N], N = 640 T."""
        layers = list(self._codec.decoder.layers)
        split = _lstm_index(layers) + 1
        latent = self._codec.quantizer.decode(
            codes.to(self._device).transpose(0, 1)
        )  # [B, K, T] -> [B, D, T]
        return _in_pieces(layers[split:], _run(layers[:split], latent), 1, _STRIDE)[:, 0]


def _run(layers: list[Any], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _lstm_index(layers: list[Any]) -> int:
    """Where the convolutions, which see few neighbours, meet the LSTM, which sees all that went before."""
    return next(i for i, layer in enumerate(layers) if isinstance(layer, Lstm))


def _in_pieces(layers: list[Any], x: Tensor, unit: int, scale: float) -> Tensor:
    """Run convolutions a piece at a time; they pad at every edge, and a margin takes up what differs."""
    return in_pieces(lambda piece, _: _run(layers, piece), x, unit, scale, _PIECE, _MARGIN)


def _check(config: EncodecSettings) -> None:
    """Raise ValueError unless the codec speaks the shards' language."""
    found = {
        "sample rate": config.sampling_rate,
        "code rate": config.frame_rate,
        "codebooks": config.num_quantizers,
        "codebook size": config.codebook_size,
        "channels": config.audio_channels,
    }
    wanted = dict(zip(found, (SAMPLE_RATE, CODE_RATE, NUM_CODEBOOKS, CODEBOOK_SIZE, 1), strict=True))
    if found != wanted or config.normalize:
        raise ValueError(f"this EnCodec has {found}, shards hold {wanted}; is it the 32 kHz music codec?")


def _load_codec(name: str) -> Encodec | EncodecModel:
    """From a folder or a file in either format, or from the hub."""
    path = Path(name).expanduser()
    if path.is_file():
        return load_audiocraft(path)
    if (path / AUDIOCRAFT_FILE).is_file():
        return load_audiocraft(path / AUDIOCRAFT_FILE)
    if (path / _WEIGHTS).is_file():
        return _load_folder(path)
    return _load_by_transformers(path if path.is_dir() else name)


def _load_folder(folder: Path) -> Encodec:
    """What `save_pretrained` wrote. Raises ValueError that names what does not fit."""
    try:
        settings = EncodecSettings.read(json.loads((folder / _CONFIG).read_text(encoding="utf-8")))
        return Encodec.loaded(settings, load_file(folder / _WEIGHTS))
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: {error}") from error


def _load_by_transformers(name: Path | str) -> EncodecModel:
    """From the hub, and from folders in older forms."""
    from transformers import EncodecModel
    from transformers.utils import logging

    from gvmgen.encoders.hub import hub_or_cache

    logging.disable_progress_bar()
    try:
        with hub_or_cache():
            return EncodecModel.from_pretrained(name, dtype=torch.float32)
    except OSError as error:
        raise MissingWeightsError(
            f"the weights of the music codec {name} are neither on disk nor reachable; "
            "go online once, name a local folder, or use --preset pocket"
        ) from error


def _fold_weight_norm(codec: Any) -> Any:
    """Compute each normalised weight once instead of at every call."""
    for module in codec.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    return codec


def _quicken_elu(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.ELU):
            setattr(module, name, QuickElu())
        else:
            _quicken_elu(child)
