"""The network: patch features of video frames -> conditions -> logits of the music's codes.

B batch, F video frames, P patches, Q queries, D width, H heads, K codebooks, T code frames, S delayed steps,
V codebook size, M length of the visual memory (F, or F * Q where the queries are preserved).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as fn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gvmgen.config import ModelConfig
from gvmgen.delay import align_logits, decoder_inputs, predicted


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, S, D] -> [B, H, S, D / H]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, S, D / H] -> [B, S, D]."""
    return x.transpose(1, 2).flatten(-2)


class Linear(nn.Linear):
    """A linear layer whose weights `initialise` draws, once."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""


class Embedding(nn.Embedding):
    """An embedding whose weights `initialise` draws, once."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""


class SpatialAttention(nn.Module):
    """Attention of the queries to themselves or to their frame's patches, then dense, LayerNorm, dropout.

    There is no residual around it: so does the official code, which the publication does not say.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.feature_dim
        self.num_heads = config.transformation_num_heads
        self._rate = config.transformation_dropout
        self.query = Linear(dim, dim)
        self.key_value = Linear(dim, 2 * dim)
        self.out = Linear(dim, dim)
        self.dense = Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=config.transformation_norm_eps)

    def forward(self, queries: Tensor, source: Tensor) -> Tensor:
        """queries: [B * F, Q, D]; source: [B * F, Q or P, D]. Returns [B * F, Q, D]."""
        query = split_heads(self.query(queries), self.num_heads)
        mixed = self.dense(self.out(merge_heads(self._attend(query, source))))
        return fn.dropout(self.norm(mixed), self._rate, self.training)

    def _attend(self, query: Tensor, source: Tensor) -> Tensor:
        """query: [B * F, H, Q, D / H]; source: [B * F, P, D]. Returns [B * F, H, Q, D / H].

        The queries are few and the patches many, so keys and values are never projected: each query goes
        through the keys' weights, and the mean of what it sees through the values'. For 16 queries and 577
        patches that is a quarter of the arithmetic. The keys' bias adds the same to all scores of a query.
        """
        to_key, to_value = self.key_value.weight.unflatten(0, (2, self.num_heads, -1))  # [H, D / H, D] each
        value_bias = self.key_value.bias.unflatten(0, (2, self.num_heads, 1, -1))[1]  # [H, 1, D / H]
        # einsum: a product a head; `@` would first copy the weights for each frame
        reach = torch.einsum("fhqk,hkd->fhqd", query * query.shape[-1] ** -0.5, to_key)
        scores = reach.flatten(1, 2) @ source.mT  # [B * F, H * Q, P]
        weights = fn.dropout(scores.softmax(dim=-1), self._rate, self.training)
        seen = (weights @ source).unflatten(1, (self.num_heads, -1))  # [B * F, H, Q, D]
        totals = weights.sum(dim=-1).unflatten(1, (self.num_heads, -1))[..., None]  # 1 but for dropout
        return torch.einsum("fhqd,hkd->fhqk", seen, to_value) + totals * value_bias


class TransformationLayer(nn.Module):
    """Spatial self-attention, spatial cross-attention where the layer has one, feed-forward (section 3.2)."""

    def __init__(self, config: ModelConfig, has_cross_attention: bool) -> None:
        super().__init__()
        dim = config.feature_dim
        self.dropout_rate = config.transformation_dropout
        self.self_attention = SpatialAttention(config)
        self.cross_attention = SpatialAttention(config) if has_cross_attention else None
        self.up = Linear(dim, 2 * dim)
        self.down = Linear(2 * dim, dim)
        self.norm = nn.LayerNorm(dim, eps=config.transformation_norm_eps)

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        """queries: [B * F, Q, D]; patches: [B * F, P, D]. Returns [B * F, Q, D]."""
        queries = self.self_attention(queries, queries)
        if self.cross_attention is not None:
            queries = self.cross_attention(queries, patches)
        update = self.norm(self.down(fn.gelu(self.up(queries))))
        return fn.dropout(queries + update, self.dropout_rate, self.training)


class FrameChanges(nn.Module):
    """What changed in the picture since the frame before: a cut, or motion, which no single frame shows.

    Neither the publication nor the official code has this: they look at each frame alone, and the decoder
    attends to frames one by one. A still picture adds nothing.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.feature_dim, config.dim, bias=False)
        self.down = Linear(config.dim, config.dim, bias=False)

    def forward(self, patches: Tensor, before: Tensor | None) -> Tensor:
        """patches: [B, F, P, D]; before: [B, 1, P, D], what went before, or None. Returns [B, F, dim]."""
        return self.down(fn.gelu(self.up(changes(patches, before))))


def changes(patches: Tensor, before: Tensor | None) -> Tensor:
    """How far each feature is from what it was in the frame before, averaged over patches.

    patches: [B, F, P, D]; before: [B, 1, P, D]; None: the first frame has no change. Returns [B, F, D].
    """
    changed = (patches[:, 1:] - patches[:, :-1]).abs().mean(dim=2)  # [B, F, P, D] -> [B, F - 1, D]
    first = (
        torch.zeros_like(patches[:, :1, 0])
        if before is None
        else (patches[:, :1] - before.to(patches)).abs().mean(dim=2)
    )
    return torch.cat([first, changed], dim=1)


class FeatureTransformation(nn.Module):
    """Patch features -> one condition a frame (section 3.2): trainable music queries look at each frame.

    Without spatial cross-attention (table 5) CLIP's own class token stands for the frame, as in the official
    code without its query transformer.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, every = config.feature_dim, config.spatial_cross_attention_every
        self.config = config
        if every:
            self.queries = nn.Parameter(torch.empty(1, config.num_queries, dim))
            self.norm = nn.LayerNorm(dim, eps=config.transformation_norm_eps)
            self.layers = nn.ModuleList(
                TransformationLayer(config, has_cross_attention=layer % every == 0)
                for layer in range(config.transformation_num_layers)
            )
        self.norm_out = nn.LayerNorm(dim)  # CLIP's `ln_post`, trained
        self.projection = Linear(dim, config.projection_dim, bias=False)  # CLIP's `proj`, trained
        self.output = Linear(config.projection_dim, config.dim)
        self.changes = FrameChanges(config) if config.frame_changes else None

    def forward(self, features: Tensor, before: Tensor | None = None) -> Tensor:
        """features: [B, F, P, D]; before: [B, 1, P, D], the frame before the first, for `frame_changes`.

        Returns [B, F, dim], or [B, F * Q, dim] where the queries are preserved.
        """
        features = features.to(self.output.weight.dtype)
        patches = features.flatten(0, 1)  # [B, F, P, D] -> [B * F, P, D]
        frames = (
            self._pool(self._look(patches)) if self.config.spatial_cross_attention_every else patches[:, :1]
        )
        conditions = self.output(self.projection(self.norm_out(frames)))  # [B * F, 1 or Q, dim]
        conditions = conditions.unflatten(0, features.shape[:2])  # [B, F, 1 or Q, dim]
        if self.changes is not None:
            conditions = conditions + self.changes(features, before)[:, :, None]
        return conditions.flatten(1, 2)

    def _look(self, patches: Tensor) -> Tensor:
        """What the queries find in each frame: [B * F, P, D] -> [B * F, Q, D]."""
        queries = self.norm(self.queries).expand(len(patches), -1, -1)
        queries = fn.dropout(queries, self.config.transformation_dropout, self.training)
        for layer in self.layers:
            queries = layer(queries, patches)
        return queries

    def _pool(self, queries: Tensor) -> Tensor:
        """[B * F, Q, D] -> [B * F, 1, D], eq. 6, or as it is."""
        if self.config.pooling == "preserve":
            return queries
        return (
            queries.mean(1, keepdim=True)
            if self.config.pooling == "average"
            else queries.sum(1, keepdim=True)
        )


class KeyValue(NamedTuple):
    """What attention reads. key, value: [B, H, length, D / H]."""

    key: Tensor
    value: Tensor


# What a layer's temporal cross-attention reads, or the conditions [B, M, D] it is made of: in training, since
# a sharded layer has its weights inside its own forward only. None: there is none.
Memory = KeyValue | Tensor | None


class SelfAttention(nn.Module):
    """Causal attention of the code steps, with one fused projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query_key_value = Linear(config.dim, 3 * config.dim, bias=False)
        self.out = Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, cache: KeyValue | None, start: int) -> Tensor:
        """x: [B, S, D], steps `start` … `start + S - 1`. A cache holds the steps before, and takes these."""
        chunks = self.query_key_value(x).chunk(3, dim=-1)
        query, key, value = (split_heads(chunk, self.num_heads) for chunk in chunks)
        if cache is not None:
            stop = start + x.shape[1]
            cache.key[:, :, start:stop] = key
            cache.value[:, :, start:stop] = value
            key, value = cache.key[:, :, :stop], cache.value[:, :, :stop]
        if start == 0 or x.shape[1] == 1:
            mixed = fn.scaled_dot_product_attention(query, key, value, is_causal=x.shape[1] > 1)
        else:
            seen = torch.ones(x.shape[1], key.shape[2], dtype=torch.bool, device=x.device).tril(start)
            mixed = fn.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.out(merge_heads(mixed))


class TemporalCrossAttention(nn.Module):
    """Attention of the code steps to the visual memory (section 3.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query = Linear(config.dim, config.dim, bias=False)
        self.key_value = Linear(config.dim, 2 * config.dim, bias=False)
        self.out = Linear(config.dim, config.dim, bias=False)

    def memory(self, conditions: Tensor) -> KeyValue:
        """conditions: [B, M, D]. The same for every step, so decoding computes it once."""
        key, value = self.key_value(conditions).chunk(2, dim=-1)
        return KeyValue(split_heads(key, self.num_heads), split_heads(value, self.num_heads))

    def forward(self, x: Tensor, memory: KeyValue, bias: Tensor | None) -> Tensor:
        """x: [B, S, D]; bias: [1 or B, 1 or H, 1 or S, M], added to the scores."""
        query = split_heads(self.query(x), self.num_heads)
        return self.out(merge_heads(fn.scaled_dot_product_attention(query, *memory, attn_mask=bias)))


class DecoderLayer(nn.Module):
    """Pre-norm: self-attention, temporal cross-attention, feed-forward. Only the norms have biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, hidden_dim = config.dim, config.dim * config.feed_forward_scale
        self.config = config
        self.norm_self = nn.LayerNorm(dim)
        self.self_attention = SelfAttention(config)
        if config.temporal_cross_attention:
            self.norm_cross = nn.LayerNorm(dim)
            self.cross_attention = TemporalCrossAttention(config)
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.up = Linear(dim, hidden_dim, bias=False)
        self.down = Linear(hidden_dim, dim, bias=False)

    def forward(
        self, x: Tensor, memory: Memory, bias: Tensor | None, cache: KeyValue | None, start: int
    ) -> Tensor:
        """x: [B, S, D] -> [B, S, D]. memory: None where the network has no temporal cross-attention."""
        x = x + self._drop(self.self_attention(self.norm_self(x), cache, start))
        if memory is not None:
            if isinstance(memory, Tensor):
                memory = self.cross_attention.memory(memory)
            x = x + self._drop(self.cross_attention(self.norm_cross(x), memory, bias))
        return x + self._drop(self.down(self._drop(fn.gelu(self.up(self.norm_feed_forward(x))))))

    def _drop(self, x: Tensor) -> Tensor:
        return fn.dropout(x, self.config.dropout, self.training)


def sinusoids(start: int, num_steps: int, dim: int, device: torch.device) -> Tensor:
    """float32 [S, D]: cosines, then sines, of steps `start` … `start + S - 1`, in MusicGen's own layout."""
    half = dim // 2
    rates = 10_000.0 ** (-torch.arange(half, device=device, dtype=torch.float32) / (half - 1))
    phases = torch.arange(start, start + num_steps, device=device, dtype=torch.float32)[:, None] * rates
    return torch.cat([phases.cos(), phases.sin()], dim=-1)


class TemporalDecoder(nn.Module):
    """Codes so far and the visual memory -> logits of the next code of every codebook (section 3.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        num_ids = config.codebook_size + 1  # the last one is the pad
        self.embedding = Embedding(config.num_codebooks * num_ids, config.dim)
        layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.layers = cast("list[DecoderLayer]", layers)
        self.norm = nn.LayerNorm(config.dim)
        self.heads = Linear(config.dim, config.num_codebooks * config.codebook_size, bias=False)
        self.recompute_layers = False  # training: forget a layer's activations and compute them again

    def memories(self, conditions: Tensor) -> list[KeyValue | None]:
        """conditions: [B, M, D] -> what each layer's temporal cross-attention reads."""
        if not self.config.temporal_cross_attention:
            return [None] * len(self.layers)
        return [layer.cross_attention.memory(conditions) for layer in self.layers]

    def embed(self, codes: Tensor, start: int = 0, summary: Tensor | None = None) -> Tensor:
        """Delayed codes int64 [B, K, S] of steps `start` … -> [B, S, D].

        summary: [B, 1, D], the averaged conditions of a network without temporal cross-attention.
        """
        num_ids = self.config.codebook_size + 1
        offsets = torch.arange(self.config.num_codebooks, device=codes.device)[:, None] * num_ids
        x = self.embedding(codes + offsets).sum(dim=1)  # [B, K, S, D] -> [B, S, D]
        x = x + sinusoids(start, codes.shape[2], self.config.dim, codes.device).to(x.dtype)
        return x if summary is None else x + summary

    def forward(
        self,
        x: Tensor,
        memories: Sequence[Memory],
        bias: Tensor | None = None,
        caches: list[KeyValue] | None = None,
        start: int = 0,
    ) -> Tensor:
        """x: embedded steps [B, S, D]. Returns hidden states [B, S, D]; `predict` turns them into logits."""
        x = fn.dropout(x, self.config.dropout, self.training)
        for index, layer in enumerate(self.layers):
            cache = caches[index] if caches is not None else None
            if self.recompute_layers and self.training:
                x = checkpoint(layer, x, memories[index], bias, cache, start, use_reentrant=False)
            else:
                x = layer(x, memories[index], bias, cache, start)
        return x

    def predict(self, x: Tensor) -> Tensor:
        """Hidden states [B, S, D] -> logits [B, K, S, V]."""
        logits = self.heads(self.norm(x))  # [B, S, K * V]
        return logits.unflatten(-1, (self.config.num_codebooks, -1)).transpose(1, 2)

    def position_bias(
        self, start: int, num_steps: int, num_conditions: int, device: torch.device
    ) -> Tensor | None:
        """float32 [1, H, S, M]: how far each condition's frame is from each step's time; None where unused.

        ALiBi (Press et al. 2022), made symmetric, in seconds: -slope_h * |t - (f + 0.5)|, geometric slopes.
        It gives the visual memory a time axis, which the official code lacks, without a parameter. The
        steepest head's slope of 8 a second singles out one frame; with ALiBi's own 1/2 no head could.
        """
        config = self.config
        if not (config.frame_positions and config.temporal_cross_attention):
            return None
        frames = torch.arange(num_conditions, device=device) // config.conditions_per_frame
        frame_s = (frames + 0.5) / config.frame_rate
        step_s = torch.arange(start, start + num_steps, device=device) / config.code_rate
        heads = torch.arange(config.num_heads, device=device)
        slopes = 2.0 ** (3.0 - 8.0 * heads / config.num_heads)
        return -slopes[:, None, None] * (step_s[:, None] - frame_s).abs()[None, None]


class FrameCodes(nn.Module):
    """What the frames around a moment alone tell of its codes, whatever the music so far.

    Neither the publication nor the official code has this. The music so far tells most of the next code, so
    that the decoder learns little of what the picture says beside it. Here there is no music to lean on, and
    decoding may pull each code towards what its frames say (`SamplingConfig.follow`). It learns by itself:
    `gvm-train --train frame-codes`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.dim // 4
        self.norm_mean = nn.LayerNorm(config.feature_dim)
        self.norm_change = nn.LayerNorm(config.feature_dim, eps=1e-3)  # a still picture changes hardly at all
        self.around = Linear(6 * config.feature_dim, config.dim)  # the frame before, a moment's own, the next
        self.moment = Embedding(config.code_rate // config.frame_rate, config.dim)  # where in its frame it is
        self.narrow = Linear(config.dim, width)
        self.heads = Linear(width, config.num_codebooks * config.codebook_size)

    def glimpses(self, features: Tensor, before: Tensor | None = None) -> Tensor:
        """Features [B, F, P, D] -> [B, F, 2 D]: their mean over the patches, and what changed in it.

        before: [B, 1, P, D], the frame before the first.
        """
        features = features.to(self.heads.weight.dtype)
        means = self.norm_mean(features.mean(dim=2))
        return torch.cat([means, self.norm_change(changes(features, before))], dim=-1)

    def forward(self, glimpses: Tensor, num_code_frames: int, num_frames: Tensor | None = None) -> Tensor:
        """Glimpses [B, F, 2 D] -> hidden states [B, T, width]; `predict` turns them into logits.

        num_frames: int [B], real lengths of padded rows; None: all frames.
        """
        own = torch.arange(glimpses.shape[1], device=glimpses.device).expand(len(glimpses), -1)  # [B, F]
        last = own[:, -1:] if num_frames is None else num_frames[:, None] - 1
        near = [(own + offset).clamp(min=0).minimum(last) for offset in (-1, 0, 1)]
        seen = [glimpses.gather(1, index[..., None].expand_as(glimpses)) for index in near]
        x = self.around(torch.cat(seen, dim=-1))[:, :, None] + self.moment.weight  # [B, F, moments, dim]
        x = self.narrow(fn.dropout(fn.gelu(x), self.config.transformation_dropout, self.training))
        return x.flatten(1, 2)[:, :num_code_frames]

    def predict(self, x: Tensor) -> Tensor:
        """Hidden states [B, T, width] -> logits [B, K, T, V]."""
        return self.heads(x).unflatten(-1, (self.config.num_codebooks, -1)).transpose(1, 2)


class GVMGen(nn.Module):
    """The whole network: features of a video's frames and the codes so far -> logits of the codes."""

    _no_split_modules = ("TransformationLayer", "DecoderLayer")  # FSDP's units, as Accelerate looks them up

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transformation = FeatureTransformation(config)
        self.decoder = TemporalDecoder(config)
        self.frame_codes = FrameCodes(config) if config.frame_codes else None
        if not self.decoder.heads.weight.is_meta:  # drawing on the meta device imports sympy: seconds
            initialise(self)

    def conditions(self, features: Tensor, before: Tensor | None = None) -> Tensor:
        """Patch features [B, F, P, D], any float dtype -> [B, F, dim], or [B, F * Q, dim] (`preserve`).

        before: [B, 1, P, D], the frame before the first of a stretch; only `frame_changes` looks at it.
        """
        return self.transformation(features, before)

    def forward(
        self,
        features: Tensor,
        codes: Tensor,
        *,
        drop_condition: Tensor | None = None,
        anchored: Tensor | None = None,
        num_frames: Tensor | None = None,
        num_code_frames: Tensor | None = None,
        by_frames: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Teacher-forced logits of every code that the delay pattern lets the decoder predict.

        features: [B, F, P, D]; codes: int64 [B, K, T]. drop_condition: bool [B], rows that see no video
        (classifier-free guidance). anchored: bool [B], rows whose first `anchor_s` seconds are an anchor.
        num_frames, num_code_frames: int [B], real lengths of padded rows.
        by_frames: what `frame_codes` say of the same codes, without the decoder.
        Returns (logits [B, K, T, V] aligned to codes, zero where masked out; mask bool [B, K, T]).
        """
        if by_frames:
            logits = self.logits_by_frames(features, codes.shape[2], drop_condition, num_frames)
            return logits, predicted(codes, num_code_frames)
        conditions = self.conditions(features)
        if drop_condition is not None:
            conditions = conditions.masked_fill(drop_condition[:, None, None], 0.0)
        if anchored is not None:
            conditions = mark_anchor(self.config, conditions, anchored)
        seen = condition_mask(self.config, conditions.shape[1], num_frames)
        logits = self.decode(conditions, decoder_inputs(codes, self.config.pad_id), seen)
        return align_logits(logits, num_code_frames)

    def decode(self, conditions: Tensor, inputs: Tensor, seen: Tensor | None = None) -> Tensor:
        """Logits [B, K, S, V] of delayed steps 0 … S - 1, from decoder inputs int64 [B, K, S].

        conditions: [B, M, dim]; zeros where a row sees no video. seen: bool [B, M], None: all of them.
        """
        decoder, num_steps = self.decoder, inputs.shape[2]
        bias = decoder.position_bias(0, num_steps, conditions.shape[1], conditions.device)
        bias = masked_bias(bias, seen, conditions.dtype)
        x = decoder.embed(inputs, summary=self.summary(conditions, seen))
        memory = conditions if self.config.temporal_cross_attention else None
        return decoder.predict(decoder(x, [memory] * len(decoder.layers), bias))

    def logits_by_frames(
        self, features: Tensor, num_code_frames: int, drop: Tensor | None, num_frames: Tensor | None
    ) -> Tensor:
        """What `frame_codes` say of features [B, F, P, D]: logits [B, K, T, V]. Arguments as `forward`."""
        assert self.frame_codes is not None
        glimpses = self.frame_codes.glimpses(features)
        if drop is not None:
            glimpses = glimpses.masked_fill(drop[:, None, None], 0.0)
        return self.frame_codes.predict(self.frame_codes(glimpses, num_code_frames, num_frames))

    def summary(self, conditions: Tensor, seen: Tensor | None = None) -> Tensor | None:
        """[B, M, dim] -> [B, 1, dim], averaged; None where temporal cross-attention reads the conditions."""
        if self.config.temporal_cross_attention:
            return None
        if seen is None:
            return conditions.mean(dim=1, keepdim=True)
        weights = seen.to(conditions.dtype)[..., None]
        return (conditions * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)


def mark_anchor(config: ModelConfig, conditions: Tensor, anchored: Tensor) -> Tensor:
    """Conditions [B, M, dim], of the anchor's last frame zero in the rows that begin with an anchor.

    So the decoder knows where the anchor ends: what follows goes on from something else. anchored: bool [B].
    """
    frames = torch.arange(conditions.shape[1], device=conditions.device) // config.conditions_per_frame
    is_last = frames == config.anchor_s * config.frame_rate - 1
    return conditions.masked_fill((anchored[:, None] & is_last)[..., None], 0.0)


def condition_mask(config: ModelConfig, num_conditions: int, num_frames: Tensor | None) -> Tensor | None:
    """bool [B, M]: which conditions are of a row's own frames. num_frames: int [B]; None: all."""
    if num_frames is None:
        return None
    frames = torch.arange(num_conditions, device=num_frames.device) // config.conditions_per_frame
    return frames < num_frames[:, None]


def masked_bias(bias: Tensor | None, seen: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Join the positions' bias and the frames that a row has into one bias on the scores."""
    if seen is not None:
        hidden = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -math.inf)[:, None, None]
        bias = hidden if bias is None else bias + hidden
    return None if bias is None else bias.to(dtype)


def code_losses(logits: Tensor, codes: Tensor, mask: Tensor) -> Tensor:
    """float32 [K]: each codebook's cross entropy in nats, summed over its codes. Arguments as `code_loss`."""
    rows = logits.float().flatten(0, 2)  # [B, K, T, V] -> [B * K * T, V]
    losses = fn.cross_entropy(rows, codes.flatten(), reduction="none").view_as(codes)
    return (losses * mask).sum(dim=(0, 2))


def code_loss(logits: Tensor, codes: Tensor, mask: Tensor) -> Tensor:
    """Mean over the codebooks of their mean cross entropy (eq. 7), in nats.

    logits: [B, K, T, V]; codes: int64 [B, K, T]; mask: bool [B, K, T].
    """
    return (code_losses(logits, codes, mask) / mask.sum(dim=(0, 2)).clamp(min=1)).mean()


@torch.no_grad()
def initialise(model: GVMGen) -> None:
    """Random weights: normal with the deviation that keeps a layer's output at its input's size.

    What the decoder's layer i adds to its residual stream is scaled by 1 / sqrt(2 (i + 1)), as MusicGen's.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if model.config.spatial_cross_attention_every:
        nn.init.normal_(model.transformation.queries, std=0.02)  # as Q-Former
    if model.transformation.changes is not None:
        nn.init.zeros_(model.transformation.changes.down.weight)  # they come in as they are learned
    if model.frame_codes is not None:
        nn.init.zeros_(model.frame_codes.heads.weight)
        nn.init.zeros_(model.frame_codes.moment.weight)
    nn.init.normal_(model.decoder.embedding.weight, std=model.config.dim**-0.5)
    for index, layer in enumerate(model.decoder.layers):
        for linear in residual_outputs(layer):
            linear.weight.mul_((2 * (index + 1)) ** -0.5)


def residual_outputs(layer: DecoderLayer) -> list[nn.Linear]:
    """The projections whose outputs are added to the residual stream."""
    outputs: list[nn.Linear] = [layer.self_attention.out, layer.down]
    if layer.config.temporal_cross_attention:
        outputs.append(layer.cross_attention.out)
    return outputs
