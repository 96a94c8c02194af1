"""The evaluation model: do a video and a piece of music belong together, and second by second?

B pairs, t seconds, D shared width, H heads.

Two towers turn seconds of video and seconds of music into embeddings, each from inside its own kind. What we
recommend reads nothing but them, so it cannot know who is whose partner:

- `similarities`: every video against every piece of music. CMR and the pair accuracy come from it.
- `alignment`: a(v, m), which second of music each second of video attends to. TA is its diagonal. No tower
  knows how far a second is from the start, and training shows music cut at another place than its video, so
  that only what is seen and heard can tell the right second.

`AsPrinted` is the publication's own form: video and music attend to each other before they are compared, and
know their places in time. Its figures hardly mind a false pair; the controls show how little.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from gvmgen.evaluation.config import TEMPERATURE, EvaluatorConfig
from gvmgen.model import merge_heads, split_heads

STEEPEST_SLOPE = 1.0  # a second; with it a head sees little beyond the neighbours


class Fused(NamedTuple):
    """What the publication's form makes of pairs."""

    video: Tensor  # [B, D], unit length
    music: Tensor  # [B, D], unit length
    attention: Tensor  # [B, t, t], rows sum to 1


def distance_bias(num_seconds: int, num_heads: int, device: torch.device) -> Tensor:
    """float32 [H, t, t]: -slope_h * |i - j|: distance, no place. ALiBi (Press et al. 2022), symmetric."""
    seconds = torch.arange(num_seconds, device=device, dtype=torch.float32)
    slopes = STEEPEST_SLOPE * 0.5 ** torch.arange(num_heads, device=device)
    return -slopes[:, None, None] * (seconds[:, None] - seconds).abs()


def places(num_seconds: int, dim: int, device: torch.device) -> Tensor:
    """float32 [t, D]: sinusoids of the seconds' places."""
    rates = 10_000.0 ** (-torch.arange(dim // 2, device=device) / (dim // 2))
    phases = torch.arange(num_seconds, device=device)[:, None] * rates
    return torch.cat([phases.cos(), phases.sin()], dim=-1)


class TowerLayer(nn.Module):
    """Pre-norm: self-attention with `distance_bias`, feed-forward."""

    def __init__(self, config: EvaluatorConfig) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads, self.dropout = config.num_heads, config.dropout
        self.norm_attention = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x: [B, t, D]; bias: [H, t, t]. Returns [B, t, D]."""
        parts = self.query_key_value(self.norm_attention(x)).chunk(3, dim=-1)
        query, key, value = (split_heads(part, self.num_heads) for part in parts)
        mixed = merge_heads(fn.scaled_dot_product_attention(query, key, value, attn_mask=bias))
        x = x + self._drop(self.out(mixed))
        return x + self._drop(self.down(self._drop(fn.gelu(self.up(self.norm_feed_forward(x))))))

    def _drop(self, x: Tensor) -> Tensor:
        return fn.dropout(x, self.dropout, self.training)


class Tower(nn.Module):
    """Seconds of one kind [B, t, in_dim] -> embeddings [B, t, D]."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: EvaluatorConfig, in_dim: int) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.dropout
        self.register_buffer("mean", torch.zeros(in_dim))
        self.register_buffer("deviation", torch.ones(in_dim))
        self.project = nn.Linear(in_dim, config.dim)
        self.layers = nn.ModuleList(TowerLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, seconds: Tensor) -> Tensor:
        x = self.project((seconds - self.mean) / self.deviation)
        x = fn.dropout(x, self.dropout, self.training)
        bias = distance_bias(x.shape[1], self.num_heads, x.device)
        for layer in self.layers:
            x = layer(x, bias)
        return self.norm(x)

    def standardise(self, seconds: Tensor) -> None:
        """Take mean and deviation from the training set's seconds [N, in_dim]."""
        self.mean.copy_(seconds.mean(dim=0))
        self.deviation.copy_(seconds.std(dim=0).clamp(min=1e-4))


class Alignment(nn.Module):
    """a(v, m): the share of attention that each second of video pays to each second of music."""

    def __init__(self, config: EvaluatorConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query = nn.Linear(config.dim, config.dim)
        self.key = nn.Linear(config.dim, config.dim)

    def forward(self, video: Tensor, music: Tensor) -> Tensor:
        """[B, t, D] and [B, t', D] -> [B, t, t'], rows sum to 1: the mean over the heads."""
        query = split_heads(self.query(video), self.num_heads)
        key = split_heads(self.key(music), self.num_heads)
        scores = query @ key.mT * query.shape[-1] ** -0.5  # [B, H, t, t']
        return scores.softmax(dim=-1).mean(dim=1)


class AsPrinted(nn.Module):
    """The publication's form: cross-attention first, one vector for each side of a pair after it."""

    def __init__(self, config: EvaluatorConfig) -> None:
        super().__init__()
        self.to_music = nn.MultiheadAttention(config.dim, config.num_heads, batch_first=True)
        self.to_video = nn.MultiheadAttention(config.dim, config.num_heads, batch_first=True)

    def forward(self, video: Tensor, music: Tensor) -> Fused:
        """video, music: [B, t, D]."""
        where = places(video.shape[1], video.shape[2], video.device)
        video, music = video + where, music + where
        heard, attention = self.to_music(video, music, music)
        seen, _ = self.to_video(music, video, video)
        return Fused(
            fn.normalize((video + heard).mean(dim=1), dim=-1),
            fn.normalize((music + seen).mean(dim=1), dim=-1),
            attention,
        )


class EvaluationModel(nn.Module):
    """The whole model. `video_tower` and `music_tower` give the embeddings that all else reads."""

    def __init__(self, config: EvaluatorConfig) -> None:
        super().__init__()
        self.config = config
        self.video_tower = Tower(config, config.video_dim)
        self.music_tower = Tower(config, config.music_dim)
        self.alignment = Alignment(config)
        self.as_printed = AsPrinted(config)


def similarities(video: Tensor, music: Tensor) -> Tensor:
    """Every video against every piece of music: [N, t, D] and [M, t, D] -> [N, M], -1 … 1.

    The mean cosine of the embeddings of the same second: that is the product of two global embeddings, each
    side's unit seconds laid end to end. A mean over the seconds first would forget when things happen.
    """
    video, music = fn.normalize(video, dim=-1), fn.normalize(music, dim=-1)
    return torch.einsum("ntd,mtd->nm", video, music) / video.shape[1]


def info_nce(similarities: Tensor) -> Tensor:
    """Symmetric InfoNCE of similarities [B, B], partners on the diagonal (eq. 4, 5), in nats."""
    partners = torch.arange(len(similarities), device=similarities.device)
    scores = similarities / TEMPERATURE
    return (fn.cross_entropy(scores, partners) + fn.cross_entropy(scores.mT, partners)) / 2


def diagonals(attention: Tensor, starts: Tensor) -> Tensor:
    """What seconds of music get from their own seconds of video: [B, t, t'] -> [B, t'].

    starts: int64 [B]; the music begins that many seconds after the video.
    """
    rows = torch.arange(len(attention), device=attention.device)[:, None]
    columns = torch.arange(attention.shape[2], device=attention.device)
    return attention[rows, starts[:, None] + columns, columns]
