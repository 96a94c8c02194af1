"""CLIP's blocks in bfloat16 on a CPU, near the rate of the matrix products alone.

The linear layers hold their weights in oneDNN's own layout, with activation and residual addition done inside
the product; the attention scores of all blocks share one buffer. Measured by tools/bench_encode.py.
Shapes: F frames, P patches, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gvmgen.encoders.tower import Block, QuickGELU

CHUNK = 4  # frames at a time: what passes between two products stays in the processor's cache
_QUICK_GELU = (
    1.702  # QuickGELU(x) = x sigmoid(1.702 x) = SiLU(1.702 x) / 1.702; the factors go into the weights
)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has the operators, as torch.compile uses them, and the processor multiplies bf16."""
    return (
        device.type == "cpu"
        and dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class PackedBlock:
    """One block of CLIP's vision transformer. [F, P, D] -> [F, P, D], bfloat16."""

    def __init__(self, block: Block, num_rows: int) -> None:
        """block: in float32, so that factors are folded in before rounding. num_rows: F · P at its best."""
        attention, mlp = block.attn, block.mlp
        self.num_heads: int = attention.num_heads
        self._norm_1, self._norm_2 = block.ln_1.bfloat16(), block.ln_2.bfloat16()
        is_quick = isinstance(mlp.gelu, QuickGELU)
        self._activation = ("swish", "") if is_quick else ("gelu", "none")
        factor = _QUICK_GELU if is_quick else 1.0
        query = torch.ones(3, attention.embed_dim)
        query[0] = attention.head_dim**-0.5  # attention's scale
        query = query.view(-1)
        self._qkv = _pack(attention.in_proj_weight * query[:, None], attention.in_proj_bias * query, num_rows)
        self._out = _pack(attention.out_proj.weight, attention.out_proj.bias, num_rows)
        self._up = _pack(mlp.c_fc.weight * factor, mlp.c_fc.bias * factor, num_rows)
        self._down = _pack(mlp.c_proj.weight / factor, mlp.c_proj.bias, num_rows)

    def __call__(self, x: Tensor, scores: Tensor) -> Tensor:
        """scores: a buffer [F H, P, P] that is overwritten."""
        rows = x.flatten(0, 1)  # [F, P, D] -> [F P, D]
        mixed = self._attend(_linear(self._norm_1(rows), self._qkv).view(*x.shape[:2], -1), scores)
        rows = _linear_add(mixed, rows, self._out)
        hidden = _linear(self._norm_2(rows), self._up, *self._activation)
        return _linear_add(hidden, rows, self._down).view_as(x)

    def _attend(self, qkv: Tensor, scores: Tensor) -> Tensor:
        """[F, P, 3 D] -> [F P, D]"""
        heads = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # -> [3, F, H, P, D / H]
        query, key, value = heads.flatten(1, 2).contiguous()  # [F H, P, D / H] each
        torch.bmm(query, key.mT, out=scores)
        torch.softmax(scores, dim=-1, out=scores)
        mixed = torch.bmm(scores, value).unflatten(0, (-1, self.num_heads))  # [F, H, P, D / H]
        return mixed.transpose(1, 2).flatten(2).flatten(0, 1)


def _pack(weight: Tensor, bias: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16(), num_rows)
    return packed, bias.detach().bfloat16()


def _linear(x: Tensor, layer: tuple[Tensor, Tensor], activation: str = "none", variant: str = "") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, *layer, activation, [], variant)


def _linear_add(x: Tensor, other: Tensor, layer: tuple[Tensor, Tensor]) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, other, *layer, "add")
