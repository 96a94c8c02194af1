"""The frozen picture encoder: CLIP's vision transformer, of weights that open_clip knows or wrote.

Shapes: F frames, P patches (577: 24 x 24 and the class token), D width, H attention heads.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.nn.functional as fn
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gvmgen.encoders.fingerprint import weights_sha256
from gvmgen.encoders.packed import CHUNK, PackedBlock, can_pack
from gvmgen.encoders.presets import EncoderConfig, MissingWeightsError
from gvmgen.encoders.tower import OPENAI_MEAN, OPENAI_STD, Block, Tower
from shards.spec import NUM_PATCHES

if TYPE_CHECKING:
    from open_clip.transformer import VisionTransformer

_SAMPLER = "last frame at or before 0 s, 1 s, 2 s …"
_LAYER = "after the last block, before ln_post"  # what the official feature transformation reads
_RESIZE = "PIL bicubic of the shorter side, centre crop"
_LOCAL_DIR = "local-dir:"
_FOLDER_CONFIG = "open_clip_config.json"
_FOLDER_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class VideoEncoder:
    """Frames of any size -> patch features [F, P, D]."""

    def __init__(self, tower: Tower | VisionTransformer, device: torch.device, dtype: torch.dtype) -> None:
        """tower: ours or open_clip's, in float32; it is taken over and changed."""
        tower = tower if isinstance(tower, Tower) else Tower.of(tower)
        self._check(tower)
        self._size = tower.image_size
        self._device, self._dtype = device, dtype
        self.feature_dim: int = tower.conv1.out_channels
        self.fingerprint = _fingerprint(tower, dtype)
        blocks = tower.eval().requires_grad_(False).transformer.resblocks
        self._packed: list[PackedBlock] = []
        if can_pack(device, dtype):
            self._packed = [PackedBlock(block, CHUNK * NUM_PATCHES) for block in blocks]
            tower.transformer = None  # its weights are not needed twice
        self._tower = tower.to(device, dtype)
        shape = (3, 1, 1)
        self._mean = torch.tensor(OPENAI_MEAN, device=device).view(shape)
        self._std = torch.tensor(OPENAI_STD, device=device).view(shape)

    @classmethod
    def load(
        cls, config: EncoderConfig, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> Self:
        """The encoder of a preset. `dtype`: bfloat16 on CUDA and float32 elsewhere if None.

        Raises MissingWeightsError where the weights are neither on disk nor reachable.
        """
        device = torch.device(device)
        if dtype is None:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        return cls(_load_tower(config), device, dtype)

    def preprocess(self, frame: np.ndarray) -> Tensor:
        """CLIP's own resize and crop. uint8 [H, W, 3] -> uint8 [3, 336, 336]."""
        image = Image.fromarray(frame)
        short, long = sorted(image.size)
        scaled = int(self._size * long / short)
        width, height = (self._size, scaled) if image.width <= image.height else (scaled, self._size)
        left, top = (round((side - self._size) / 2) for side in (width, height))
        # As PIL does it: first across, then down; columns that are cut off are not computed down.
        image = image.resize((width, image.height), Image.Resampling.BICUBIC)
        image = image.crop((left, 0, left + self._size, image.height))
        image = image.resize((self._size, height), Image.Resampling.BICUBIC)
        image = image.crop((0, top, self._size, top + self._size))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # [H, W, 3] -> [3, H, W]

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """Patch features with the class token first. uint8 [F, 3, 336, 336] -> float16 [F, P, D]."""
        pixels = frames.to(self._device).float().div_(255).sub_(self._mean).div_(self._std)
        x = self._tower.embed(pixels.to(self._dtype))  # [F, 3, 336, 336] -> [F, P, D]
        return (self._run_packed(x) if self._packed else self._run(x)).half()

    def _run(self, x: Tensor) -> Tensor:
        for block in self._tower.transformer.resblocks:
            x = _forward(block, x)
        return x

    def _run_packed(self, x: Tensor) -> Tensor:
        num_heads = self._packed[0].num_heads
        buffer = x.new_empty(min(CHUNK, len(x)) * num_heads, x.shape[1], x.shape[1])
        done = []
        for chunk in x.split(CHUNK):
            for block in self._packed:
                chunk = block(chunk, buffer[: len(chunk) * num_heads])
            done.append(chunk)
        return torch.cat(done)

    @staticmethod
    def _check(tower: Tower) -> None:
        num_patches = tower.positional_embedding.shape[0]
        if num_patches != NUM_PATCHES:
            raise ValueError(f"the picture encoder gives {num_patches} patches, shards hold {NUM_PATCHES}")


def _fingerprint(tower: Tower, dtype: torch.dtype) -> dict[str, Any]:
    """All that shapes the features; equal for equal weights, wherever they lie."""
    return {
        "model": f"ViT {tower.image_size}/{tower.patch_size}",
        "size": f"{len(tower.transformer.resblocks)} layers of {tower.conv1.out_channels}",
        "activation": type(tower.transformer.resblocks[0].mlp.gelu).__name__,
        "weights_sha256": weights_sha256(tower.state_dict().items()),
        "layer": _LAYER,
        "dtype": str(dtype).removeprefix("torch."),
        "resize": _RESIZE,
        "sampler": _SAMPLER,
    }


def _forward(block: Block, x: Tensor) -> Tensor:
    """One layer, with fused attention, which open_clip's own lacks in inference. [F, P, D] -> [F, P, D]"""
    attention = block.attn
    qkv = fn.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    heads = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(
        2, 0, 3, 1, 4
    )  # [F, P, 3 D] -> [3, F, H, P, .]
    mixed = fn.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)  # [F, H, P, .] -> [F, P, D]
    x = x + attention.out_proj(mixed)
    return x + block.mlp(block.ln_2(x))


def _load_tower(config: EncoderConfig) -> Tower:
    """The vision tower alone; the text tower is neither built nor kept. float32, on the CPU."""
    if config.clip_model == "ViT-L-14-336":
        raise ValueError(
            "ViT-L-14-336 computes plain GELU, but its weights were trained with QuickGELU, so its features "
            "would be wrong; use ViT-L-14-336-quickgelu"
        )
    weights = _find_weights(config)
    tower = _empty_tower(config.clip_model)
    prefix = "visual."
    found = _read_weights(weights)
    tensors = {n.removeprefix(prefix): t.float() for n, t in found.items() if n.startswith(prefix)}
    try:
        return tower.take(tensors)
    except ValueError as error:
        raise ValueError(f"{weights}: does not fit {config.clip_model}: {error}") from error


def _empty_tower(name: str) -> Tower:
    """The architecture without memory: no random numbers for what is loaded next."""
    try:
        return Tower.described(_description(name))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _description(name: str) -> dict[str, Any]:
    """What open_clip, or a folder in its form, says of a model."""
    if name.startswith(_LOCAL_DIR):
        path = Path(name.removeprefix(_LOCAL_DIR)) / _FOLDER_CONFIG
        description = json.loads(path.read_text(encoding="utf-8"))
        return dict(description.get("model_cfg", description))
    import open_clip

    architecture = open_clip.get_model_config(name)
    if architecture is None:
        raise ValueError(f"open_clip knows no such model; it knows {', '.join(open_clip.list_models())}")
    return dict(architecture)


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name. Raises ValueError that names a file that cannot be read."""
    try:
        return _open_weights(path)
    except (RuntimeError, EOFError, SafetensorError, UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: is cut short, damaged, or no file of weights ({reason}); fetch or copy it anew"
        ) from error


def _open_weights(path: Path) -> dict[str, Tensor]:
    """Of safetensors, a plain state dict, or the TorchScript archive that OpenAI published."""
    if zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
        return dict(torch.jit.load(path, map_location="cpu").state_dict())
    if path.suffix == ".safetensors":
        return load_file(path)
    from open_clip.factory import load_state_dict

    return dict(load_state_dict(str(path)))


def _find_weights(config: EncoderConfig) -> Path:
    """The weights' file, fetched if need be."""
    if config.clip_model.startswith(_LOCAL_DIR):
        return _folder_weights(Path(config.clip_model.removeprefix(_LOCAL_DIR)))
    if config.clip_weights is None:
        raise MissingWeightsError(f"{config.clip_model}: name its weights, a tag of open_clip's or a file")
    import open_clip

    from gvmgen.encoders.hub import hub_or_cache

    known = open_clip.get_pretrained_cfg(config.clip_model, config.clip_weights)
    if not known:
        path = Path(config.clip_weights)
        if not path.is_file():
            raise MissingWeightsError(f"{path}: no such weights for {config.clip_model}")
        return path
    try:
        with hub_or_cache():
            return Path(open_clip.download_pretrained(known))
    except Exception as error:
        raise MissingWeightsError(
            f"the weights {config.clip_weights!r} of {config.clip_model} are neither on disk nor reachable "
            f"({type(error).__name__}); go online once, name a local file, or use --preset pocket"
        ) from error


def _folder_weights(folder: Path) -> Path:
    for name in _FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise MissingWeightsError(f"{folder}: no {_FOLDER_WEIGHTS[0]} here")
