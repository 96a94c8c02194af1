"""What a network in training composes and looks at: codes for a codec, and pictures of its attention.

B batch, F video frames, P patches, Q queries, D width, H heads, K codebooks, T code frames, S delayed steps,
M length of the visual memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gvmgen.decoding import SamplingConfig, generate_codes
from gvmgen.model import GVMGen, SpatialAttention, TemporalCrossAttention, split_heads
from shards.spec import Sample

COMPOSED_S = 10  # seconds of music a sample has
PIXELS = 6  # a patch of a picture is so wide


@torch.no_grad()
def compose(network: GVMGen, sample: Sample) -> np.ndarray:
    """int16 [K, T]: music for the first seconds of a segment's video, always from the same draws."""
    num_frames = min(len(sample.features), COMPOSED_S * network.config.frame_rate)
    conditions = network.conditions(as_batch(network, sample.features[:num_frames]))
    num_code_frames = num_frames * network.config.code_rate // network.config.frame_rate
    codes = generate_codes(network, conditions, num_code_frames, SamplingConfig(), seeds=[0])
    return codes[0].cpu().numpy().astype(np.int16)


@torch.no_grad()
def attention_pictures(network: GVMGen, sample: Sample) -> dict[str, np.ndarray]:
    """uint8 [height, width, 3] by name: the queries over a frame, and the steps over the frames."""
    features = as_batch(network, sample.features)
    codes = torch.from_numpy(sample.codes.astype(np.int64))[None].to(features.device)
    with watched(network) as (spatial, temporal):
        network(features, codes)
    pictures = {}
    if spatial:
        queries = spatial_weights(*spatial[-1]).mean(dim=1)  # [F, H, Q, P] -> [F, Q, P]
        pictures["attention of the queries over the middle frame"] = tiled(queries[len(queries) // 2])
    if temporal:
        steps = torch.stack([temporal_weights(*seen).mean(dim=1)[0] for seen in temporal]).mean(dim=0)
        pictures["attention of the music (right) over the frames (down)"] = picture(steps.T)  # [M, S]
    return pictures


def as_batch(network: GVMGen, features: np.ndarray) -> Tensor:
    """[F, P, D] -> [1, F, P, D], where the network is."""
    weight = network.decoder.heads.weight
    return torch.from_numpy(features)[None].to(weight.device, weight.dtype)


Seen = tuple[Any, ...]  # an attention module, and what it was called with


@contextmanager
def watched(network: GVMGen) -> Iterator[tuple[list[Seen], list[Seen]]]:
    """Inside, spatial and temporal cross-attention note what they are called with."""
    spatial: list[Seen] = []
    temporal: list[Seen] = []
    is_cross = {id(layer.cross_attention) for layer in getattr(network.transformation, "layers", ())}
    hooks = []
    for module in network.modules():
        if isinstance(module, SpatialAttention) and id(module) in is_cross:
            hooks.append(module.register_forward_pre_hook(lambda m, seen: spatial.append((m, *seen))))
        elif isinstance(module, TemporalCrossAttention):
            hooks.append(module.register_forward_pre_hook(lambda m, seen: temporal.append((m, *seen))))
    try:
        yield spatial, temporal
    finally:
        for hook in hooks:
            hook.remove()


def spatial_weights(attention: SpatialAttention, queries: Tensor, source: Tensor) -> Tensor:
    """queries: [F, Q, D]; source: [F, P, D] -> [F, H, Q, P]: how much each query looks at each patch."""
    query = split_heads(attention.query(queries), attention.num_heads)
    key = split_heads(attention.key_value(source).chunk(2, dim=-1)[0], attention.num_heads)
    return (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)


def temporal_weights(
    attention: TemporalCrossAttention, x: Tensor, memory: Any, bias: Tensor | None
) -> Tensor:
    """x: [B, S, D]; bias as in the forward pass -> [B, H, S, M]: how much each step looks at each frame."""
    query = split_heads(attention.query(x), attention.num_heads)
    scores = query @ memory.key.mT * query.shape[-1] ** -0.5
    return (scores if bias is None else scores + bias).softmax(dim=-1)


def tiled(weights: Tensor) -> np.ndarray:
    """[Q, P] -> one square a query, its patches as they lie in the frame; the class token is left out."""
    side = math.isqrt(weights.shape[1] - 1)
    squares = weights[:, 1 : 1 + side * side].unflatten(1, (side, side))
    columns = math.isqrt(len(squares) - 1) + 1
    squares = nn.functional.pad(squares / squares.amax(dim=(1, 2), keepdim=True), (0, 1, 0, 1))
    missing = -len(squares) % columns
    squares = nn.functional.pad(squares, (0, 0, 0, 0, 0, missing))
    rows = squares.unflatten(0, (-1, columns)).transpose(1, 2)  # [rows, side, columns, side]
    return picture(rows.flatten(2).flatten(0, 1))


def picture(values: Tensor) -> np.ndarray:
    """[height, width], 0 … any -> uint8 [height, width, 3], the largest value white."""
    levels = (values.float() / values.max().clamp(min=1e-9) * 255).byte().cpu().numpy()
    return np.repeat(np.kron(levels, np.ones((PIXELS, PIXELS), np.uint8))[..., None], 3, axis=2)
