"""EnCodec (arXiv 2210.13438) as a plain network; transformers describes it and trains it.

Importing transformers' model takes longer than scoring a short video: trainers, losses and caches come along.
Modules and weights have its names; tests/gvmgen/encoders/test_audio.py compares the two.
Shapes: B batch, D width, K codebooks, T code frames, L steps of any rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, pad
from torch.nn.utils.parametrizations import weight_norm


@dataclass(frozen=True, kw_only=True)
class EncodecSettings:
    """The part of transformers' `EncodecConfig` that shapes the network, with its defaults."""

    sampling_rate: int = 24_000
    audio_channels: int = 1
    target_bandwidths: tuple[float, ...] = (1.5, 3.0, 6.0, 12.0, 24.0)  # kbit/s
    normalize: bool = False
    hidden_size: int = 128
    num_filters: int = 32
    num_residual_layers: int = 1
    upsampling_ratios: tuple[int, ...] = (8, 5, 4, 2)
    norm_type: str = "weight_norm"
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    use_causal_conv: bool = True
    pad_mode: str = "reflect"
    compress: int = 2
    num_lstm_layers: int = 2
    codebook_size: int = 1024
    codebook_dim: int | None = None
    use_conv_shortcut: bool = True

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """From a `config.json`. Raises ValueError for a network that is not computed here."""
        names = {field.name for field in fields(cls)}
        settings = cls(**{name: value for name, value in values.items() if name in names})
        if settings.norm_type != "weight_norm" or settings.use_causal_conv:
            found = f"norm_type {settings.norm_type!r}, use_causal_conv {settings.use_causal_conv}"
            raise ValueError(f"this EnCodec has {found}; is it the 32 kHz music codec, which is not causal?")
        return settings

    @property
    def frame_rate(self) -> int:
        """Code frames a second."""
        return math.ceil(self.sampling_rate / math.prod(self.upsampling_ratios))

    @property
    def num_quantizers(self) -> int:
        bits = math.ceil(math.log2(self.codebook_size))
        return int(1000 * self.target_bandwidths[-1] // (self.frame_rate * bits))


class Conv(nn.Module):
    """Its output is as long as its input over the stride, rounded up. [B, D, L] -> [B, D', L']"""

    def __init__(
        self,
        config: EncodecSettings,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation))
        self.pad_mode, self.stride = config.pad_mode, stride
        self.padding = (kernel - 1) * dilation + 1 - stride

    def forward(self, x: Tensor) -> Tensor:
        right = self.padding // 2
        left = self.padding - right
        return self.conv(self._padded(x, left, right + -x.shape[-1] % self.stride))

    def _padded(self, x: Tensor, left: int, right: int) -> Tensor:
        if self.pad_mode != "reflect":
            return pad(x, (left, right), self.pad_mode)
        missing = max(0, max(left, right) + 1 - x.shape[-1])  # what is to be reflected must be there
        return pad(pad(x, (0, missing)), (left, right), "reflect")[..., : x.shape[-1] + left + right]


class ConvTranspose(nn.Module):
    """[B, D, L] -> [B, D', L · stride]"""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = weight_norm(nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        right = self.stride // 2
        return y[..., self.stride - right : y.shape[-1] - right]


class Residual(nn.Module):
    """Two convolutions beside a shortcut. [B, D, L] -> [B, D, L]"""

    def __init__(self, config: EncodecSettings, dim: int, dilation: int) -> None:
        super().__init__()
        hidden = dim // config.compress
        self.block = nn.Sequential(
            nn.ELU(),
            Conv(config, dim, hidden, config.residual_kernel_size, dilation=dilation),
            nn.ELU(),
            Conv(config, hidden, dim, 1),
        )
        self.shortcut = Conv(config, dim, dim, 1) if config.use_conv_shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.block(x)


class Lstm(nn.Module):
    """[B, D, L] -> [B, D, L]"""

    def __init__(self, config: EncodecSettings, dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, config.num_lstm_layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(2, 0, 1)  # [B, D, L] -> [L, B, D]
        return (self.lstm(x)[0] + x).permute(1, 2, 0)


class Layers(nn.Module):
    """The encoder's or the decoder's layers, one after another."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


def encoder(config: EncodecSettings) -> Layers:
    """Waveform [B, 1, N] -> latents [B, D, T]."""
    dim = config.num_filters
    layers: list[nn.Module] = [Conv(config, config.audio_channels, dim, config.kernel_size)]
    for ratio in reversed(config.upsampling_ratios):
        layers += _residuals(config, dim)
        layers += [nn.ELU(), Conv(config, dim, 2 * dim, 2 * ratio, ratio)]
        dim *= 2
    last = Conv(config, dim, config.hidden_size, config.last_kernel_size)
    return Layers(*layers, Lstm(config, dim), nn.ELU(), last)


def decoder(config: EncodecSettings) -> Layers:
    """Latents [B, D, T] -> waveform [B, 1, N]."""
    dim = config.num_filters * 2 ** len(config.upsampling_ratios)
    layers: list[nn.Module] = [Conv(config, config.hidden_size, dim, config.kernel_size), Lstm(config, dim)]
    for ratio in config.upsampling_ratios:
        layers += [nn.ELU(), ConvTranspose(dim, dim // 2, ratio)]
        dim //= 2
        layers += _residuals(config, dim)
    return Layers(*layers, nn.ELU(), Conv(config, dim, config.audio_channels, config.last_kernel_size))


def _residuals(config: EncodecSettings, dim: int) -> list[Residual]:
    return [Residual(config, dim, config.dilation_growth_rate**n) for n in range(config.num_residual_layers)]


class Codebook(nn.Module):
    """Entries [V, D]; all but `embed` served the training and belong to the weights."""

    def __init__(self, config: EncodecSettings) -> None:
        super().__init__()
        shape = (config.codebook_size, config.codebook_dim or config.hidden_size)
        self.register_buffer("inited", torch.ones(1))
        self.register_buffer("cluster_size", torch.zeros(config.codebook_size))
        self.embed = nn.Buffer(torch.zeros(shape))
        self.register_buffer("embed_avg", torch.zeros(shape))

    def nearest(self, latents: Tensor) -> Tensor:
        """The nearest entry's number. [B, T, D] -> int64 [B, T]"""
        # |x - e|² is least where x e - |e|² / 2 is most: |x|² is the same for every entry.
        closeness = torch.addmm(-self.embed.pow(2).sum(1) / 2, latents.flatten(0, 1), self.embed.t())
        return closeness.argmax(dim=-1).view(latents.shape[:-1])


class Quantizer(nn.Module):
    """Each codebook rounds what those before it left over."""

    def __init__(self, config: EncodecSettings) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(config.num_quantizers):
            layer = nn.Module()
            layer.codebook = Codebook(config)
            self.layers.append(layer)

    def encode(self, latents: Tensor) -> Tensor:
        """[B, D, T] -> int64 [K, B, T]"""
        rest, codes = latents, []
        for codebook in self._codebooks():
            codes.append(codebook.nearest(rest.mT))
            rest = rest - embedding(codes[-1], codebook.embed).mT
        return torch.stack(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """int64 [K, B, T] -> [B, D, T]"""
        pairs = zip(codes, self._codebooks(), strict=True)
        return reduce(torch.add, [embedding(ids, codebook.embed).mT for ids, codebook in pairs])

    def _codebooks(self) -> list[Codebook]:
        return [layer.codebook for layer in self.layers]  # type: ignore[misc]


class Encodec(nn.Module):
    """The parts of the codec; `AudioCodec` runs them in pieces."""

    def __init__(self, config: EncodecSettings) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = encoder(config), decoder(config)
        self.quantizer = Quantizer(config)

    @classmethod
    def of(cls, theirs: nn.Module) -> Self:
        """The same as transformers' `EncodecModel`."""
        model: Any = theirs
        return cls.loaded(EncodecSettings.read(model.config.to_dict()), model.state_dict())

    @classmethod
    def loaded(cls, config: EncodecSettings, tensors: Mapping[str, Tensor]) -> Self:
        """With these weights, in float32. Raises RuntimeError that names those that do not fit."""
        codec = cls(config)
        codec.load_state_dict(tensors)
        return codec
