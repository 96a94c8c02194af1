"""How much arithmetic a step is.

F video frames, P patches, Q queries, D width, H heads, T code frames, M length of the visual memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from gvmgen.config import ModelConfig
from gvmgen.data import Window
from gvmgen.model import GVMGen


def forward_flops(config: ModelConfig, num_frames: int, num_patches: int, num_code_frames: int) -> float:
    """Floating point operations of one segment through the network, a multiplication with addition is two."""
    memory = num_frames * config.conditions_per_frame
    return 2.0 * (
        num_frames * _frame_products(config, num_patches)
        + config.num_layers * _layer_products(config, num_code_frames, memory)
        + num_code_frames * config.dim * config.num_codebooks * config.codebook_size
    )


def step_flops(network: GVMGen, windows: Sequence[Window], num_patches: int) -> float:
    """Of a step that shows these windows: all weights pass gradients on, those that learn get some."""
    if network.frame_codes is not None and network.frame_codes.heads.weight.requires_grad:
        return sum(frame_codes_flops(network.config, window) for window in windows)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    learning = sum(size for size, learns in sizes if learns) / sum(size for size, _ in sizes)
    forward = sum(
        forward_flops(network.config, window.num_frames, num_patches, window.num_code_frames)
        for window in windows
    )
    return (2 + learning) * forward


def frame_codes_flops(config: ModelConfig, window: Window) -> float:
    """Of a step in which `frame_codes` learn; it runs nothing else."""
    width, dim = config.dim // 4, config.dim
    heads = window.num_code_frames * width * (dim + config.num_codebooks * config.codebook_size)
    return 6.0 * (heads + window.num_frames * 6 * config.feature_dim * dim)


def _frame_products(config: ModelConfig, num_patches: int) -> int:
    """Multiplications of the feature transformation for one frame."""
    width, queries, every = config.feature_dim, config.num_queries, config.spatial_cross_attention_every
    out = config.conditions_per_frame * config.projection_dim * (width + config.dim)
    if not every:
        return out

    def attention(num_seen: int) -> int:
        looks = 2 * config.transformation_num_heads * queries * num_seen * width
        return 5 * queries * width**2 + looks

    num_layers, num_cross = config.transformation_num_layers, -(-config.transformation_num_layers // every)
    own = num_layers * (attention(queries) + 4 * queries * width**2)
    return own + num_cross * attention(num_patches) + out


def _layer_products(config: ModelConfig, num_steps: int, memory: int) -> int:
    """Multiplications of one decoder layer. A step attends to half of the steps on average."""
    width = config.dim
    linear = (4 + 2 * config.feed_forward_scale) * num_steps * width**2
    products = linear + num_steps**2 * width
    if config.temporal_cross_attention:
        products += 2 * (num_steps + memory) * width**2 + 2 * num_steps * memory * width
    return products
