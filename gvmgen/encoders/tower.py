"""CLIP's vision transformer, as a plain network; open_clip describes it and trains it.

Importing open_clip takes longer than scoring a short video: torchvision, timm and transformers come along.
Modules and weights have open_clip's names; tests/gvmgen/encoders/test_video.py compares the two.
Shapes: F frames, P patches (577: 24 x 24 and the class token), D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of red, green, blue in CLIP's training pictures
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

_DEFAULTS: dict[str, Any] = {
    "layers": 12,
    "width": 768,
    "head_width": 64,
    "mlp_ratio": 4.0,
    "patch_size": 16,
    "image_size": 224,
}
_AFTER_THE_BLOCKS = {"pool_type", "final_ln_after_pool", "output_tokens"}  # change nothing that is read here
_ADVICE = "which this program does not compute; use a plain CLIP such as ViT-L-14-336-quickgelu"


class QuickGELU(nn.Module):
    """The activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """The weights of one layer; `VideoEncoder` computes with them."""

    def __init__(self, width: int, num_heads: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp: Any = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, hidden))
        self.mlp.add_module("gelu", QuickGELU() if quick_gelu else nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(hidden, width))


class Tower(nn.Module):
    """Pixels to the input of the first block, and the blocks."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        num_layers: int,
        num_heads: int,
        hidden: int,
        out_dim: int,
        quick_gelu: bool,
    ) -> None:
        super().__init__()
        self.image_size, self.patch_size = image_size, patch_size
        num_patches = (image_size // patch_size) ** 2 + 1
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(num_patches, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer: Any = nn.Module()
        self.transformer.resblocks = nn.ModuleList(
            Block(width, num_heads, hidden, quick_gelu) for _ in range(num_layers)
        )
        self.ln_post = nn.LayerNorm(
            width
        )  # this and `proj` belong to the weights, though not to what is read
        self.proj = nn.Parameter(torch.empty(width, out_dim))

    @classmethod
    def described(cls, model: Mapping[str, Any]) -> Self:
        """Without memory, as open_clip's JSON describes it. Raises ValueError for what is no plain CLIP."""
        if lacking := {"vision_cfg", "embed_dim"} - model.keys():
            raise ValueError(
                f"the description lacks {', '.join(sorted(lacking))}; it takes an open_clip_config.json as "
                "open_clip writes it"
            )
        vision = dict(model["vision_cfg"])
        others = {name for name, value in vision.items() if value and name not in _DEFAULTS}
        others -= _AFTER_THE_BLOCKS
        vision = _DEFAULTS | vision
        if others or not isinstance(vision["layers"], int):
            unknown = ", ".join(sorted(others or ["layers"]))
            raise ValueError(f"the picture encoder's settings differ from CLIP's in {unknown}, {_ADVICE}")
        with torch.device("meta"):
            return cls(
                image_size=vision["image_size"],
                patch_size=vision["patch_size"],
                width=vision["width"],
                num_layers=vision["layers"],
                num_heads=vision["width"] // vision["head_width"],
                hidden=int(vision["width"] * vision["mlp_ratio"]),
                out_dim=model["embed_dim"],
                quick_gelu=bool(model.get("quick_gelu")),
            )

    @classmethod
    def of(cls, theirs: nn.Module) -> Self:
        """The same as open_clip's `VisionTransformer`, whose weights it takes over."""
        visual: Any = theirs
        block = visual.transformer.resblocks[0]
        with torch.device("meta"):
            tower = cls(
                image_size=visual.image_size[0],
                patch_size=visual.patch_size[0],
                width=visual.conv1.out_channels,
                num_layers=len(visual.transformer.resblocks),
                num_heads=block.attn.num_heads,
                hidden=block.mlp.c_fc.out_features,
                out_dim=visual.proj.shape[1],
                quick_gelu=type(block.mlp.gelu).__name__ == "QuickGELU",
            )
        return tower.take(visual.state_dict())

    def take(self, tensors: Mapping[str, Tensor]) -> Self:
        """Make the tensors its weights. Raises ValueError that names those that do not fit."""
        wanted, found = ({n: t.shape for n, t in part.items()} for part in (self.state_dict(), tensors))
        differ = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        if differ:
            more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
            raise ValueError(
                f"the picture encoder's weights differ from CLIP's in {', '.join(differ[:5])}{more}, "
                + _ADVICE
            )
        self.load_state_dict(tensors, assign=True)
        return self

    def embed(self, pixels: Tensor) -> Tensor:
        """[F, 3, 336, 336] -> [F, P, D]"""
        patches = self.conv1(pixels).flatten(2).mT  # [F, D, 24, 24] -> [F, 576, D]
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        return self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding.to(patches.dtype))
