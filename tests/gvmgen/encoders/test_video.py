"""The picture encoder against open_clip's own preprocessing and forward, on small towers."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip.transformer import VisionTransformer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from gvmgen.encoders import hub, video
from gvmgen.encoders.presets import ENCODER_PRESETS, EncoderConfig, MissingWeightsError
from gvmgen.encoders.tower import OPENAI_MEAN, OPENAI_STD, Tower
from gvmgen.encoders.video import VideoEncoder
from tools.pocket.init_untrained import CLIP_CONFIG

CPU = torch.device("cpu")


def small_settings(quick_gelu: bool = False) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(CLIP_CONFIG["model_cfg"]))
    settings["quick_gelu"] = quick_gelu
    settings["vision_cfg"] |= {"layers": 3, "width": 64, "head_width": 16}
    return settings


def small_clip(quick_gelu: bool = False) -> open_clip.CLIP:
    torch.manual_seed(0)
    return open_clip.CLIP(**small_settings(quick_gelu)).eval()


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Three pictures with edges and noise, uint8 [H, W, 3], of one size."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (6, 8, 3), np.uint8).repeat(60, 0).repeat(60, 1) for _ in range(3)]


def own_features(tower: VisionTransformer, pixels: Tensor) -> Tensor:
    """What open_clip's own forward has after its last block, [F, P, D]."""
    caught: list[Tensor] = []
    hook = tower.transformer.resblocks[-1].register_forward_hook(lambda _, __, output: caught.append(output))
    with torch.no_grad():  # not inference mode, and one path for all: the plain, unfused attention
        tower(pixels)
    hook.remove()
    return caught[0]


@pytest.mark.parametrize(
    ("height", "width"), [(480, 854), (854, 480), (336, 336), (337, 335), (97, 201), (720, 1280), (338, 1001)]
)
def test_preprocessing_is_clips_own_to_the_last_bit(height: int, width: int) -> None:
    frame = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    clips = open_clip.image_transform(336, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    ours = VideoEncoder(small_clip().visual, CPU, torch.float32).preprocess(frame)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours.float() / 255, clips(Image.fromarray(frame)))


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_features_equal_open_clips_own_forward(frames: list[np.ndarray], quick_gelu: bool) -> None:
    encoder = VideoEncoder(small_clip(quick_gelu).visual, CPU, torch.float32)
    clips = open_clip.image_transform(336, is_train=False)
    wanted = own_features(
        small_clip(quick_gelu).visual, torch.stack([clips(Image.fromarray(frame)) for frame in frames])
    )
    features = encoder.encode(torch.stack([encoder.preprocess(frame) for frame in frames]))
    assert features.shape == (3, 577, 64)
    assert features.dtype == torch.float16
    assert torch.allclose(features.float(), wanted, rtol=1e-3, atol=1e-4)
    assert encoder.feature_dim == 64


def test_a_batch_equals_its_frames(frames: list[np.ndarray]) -> None:
    encoder = VideoEncoder(small_clip().visual, CPU, torch.float32)
    pixels = torch.stack([encoder.preprocess(frame) for frame in frames])
    singly = torch.cat([encoder.encode(one[None]) for one in pixels])
    assert torch.allclose(encoder.encode(pixels).float(), singly.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_bfloat16_stays_as_near_as_open_clips_own(frames: list[np.ndarray], quick_gelu: bool) -> None:
    encoder = VideoEncoder(small_clip(quick_gelu).visual, CPU, torch.bfloat16)
    pixels = torch.stack([encoder.preprocess(frame) for frame in frames])
    clips = open_clip.image_transform(336, is_train=False)
    floats = torch.stack([clips(Image.fromarray(frame)) for frame in frames])
    exact = own_features(small_clip(quick_gelu).visual, floats)
    plain = own_features(small_clip(quick_gelu).visual.bfloat16(), floats.bfloat16()).float()

    def error(features: Tensor) -> float:
        return float((features - exact).norm() / exact.norm())

    assert error(encoder.encode(pixels).float()) < 1.2 * error(plain)
    assert error(plain) < 0.02


@pytest.mark.skipif(not video.can_pack(CPU, torch.bfloat16), reason="this processor does not multiply bf16")
def test_packed_blocks_and_plain_ones_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(0, 256, (3, 3, 336, 336), dtype=torch.uint8)
    packed = VideoEncoder(small_clip(quick_gelu=True).visual, CPU, torch.bfloat16)
    monkeypatch.setattr(video, "can_pack", lambda *_: False)
    plain = VideoEncoder(small_clip(quick_gelu=True).visual, CPU, torch.bfloat16)
    a, b = packed.encode(pixels).float(), plain.encode(pixels).float()
    assert (a - b).norm() / b.norm() < 0.02
    assert packed.fingerprint == plain.fingerprint
    assert packed.fingerprint["dtype"] == "bfloat16"


def test_the_full_size_tower_is_the_publications() -> None:
    tower = video._empty_tower(ENCODER_PRESETS["small"].clip_model)
    assert sum(p.numel() for p in tower.parameters()) == 304_293_888
    assert tower.positional_embedding.shape == (577, 1024)
    assert len(tower.transformer.resblocks) == 24
    assert type(tower.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def write_folder(folder: Path, name: str) -> EncoderConfig:
    """A folder in open_clip's own form."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": small_settings()}))
    tensors = {n: t.contiguous() for n, t in small_clip().state_dict().items()}
    save_file(tensors, folder / name) if name.endswith("safetensors") else torch.save(tensors, folder / name)
    return EncoderConfig(clip_model=f"local-dir:{folder}", clip_weights=None, codec="")


def test_the_same_weights_in_two_formats_have_one_fingerprint(tmp_path: Path) -> None:
    one = VideoEncoder.load(write_folder(tmp_path / "one", "open_clip_model.safetensors"))
    two = VideoEncoder.load(write_folder(tmp_path / "two", "open_clip_pytorch_model.bin"))
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint["dtype"] == "float32"


def test_the_archive_that_openai_published_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = small_clip()
    archive = tmp_path / "ViT-L-14-336px.pt"
    inputs = (torch.zeros(1, 3, 336, 336), torch.zeros(1, 8, dtype=torch.long))
    torch.jit.trace(clip, inputs, check_trace=False).save(str(archive))
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: small_settings())
    loaded = VideoEncoder.load(
        EncoderConfig(clip_model="ViT-L-14-336-quickgelu", clip_weights=str(archive), codec="")
    )
    assert loaded.fingerprint == VideoEncoder(clip.visual, CPU, torch.float32).fingerprint


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    config = write_folder(tmp_path / "one", "open_clip_model.safetensors")
    tensors = {n: t.contiguous() for n, t in small_clip().state_dict().items() if n != "visual.ln_pre.bias"}
    save_file(tensors, tmp_path / "one/open_clip_model.safetensors")
    with pytest.raises(ValueError, match=r"ln_pre\.bias"):
        VideoEncoder.load(config)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_weights_that_are_cut_short_are_named(tmp_path: Path, name: str, share: float) -> None:
    config = write_folder(tmp_path / "one", name)
    path = tmp_path / "one" / name
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: is cut short.*copy it anew$"):
        VideoEncoder.load(config)


def test_a_damaged_archive_of_openais_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "clip.pt"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("clip/code/__torch__.py", "")
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: small_settings())
    with pytest.raises(ValueError, match=r"clip\.pt: is cut short"):
        VideoEncoder.load(EncoderConfig(clip_model="small", clip_weights=str(archive), codec=""))


def test_a_description_that_lacks_the_pictures_part_is_named(tmp_path: Path) -> None:
    config = write_folder(tmp_path / "one", "open_clip_model.safetensors")
    (tmp_path / "one/open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 64}}))
    with pytest.raises(ValueError, match=r"one: the description lacks vision_cfg; it takes"):
        VideoEncoder.load(config)


@pytest.mark.parametrize(
    ("settings", "part"),
    [({"ls_init_value": 0.1}, "ls_1"), ({"scale_fc": True}, "mlp.ln"), ({"qk_norm": True}, "attn.")],
)
def test_layers_that_our_forward_would_skip_a_part_of_are_refused(
    settings: dict[str, Any], part: str
) -> None:
    model = small_settings()
    model["vision_cfg"] |= settings
    with pytest.raises(ValueError, match=rf"differ from CLIP's in.*{part}"):
        VideoEncoder(open_clip.CLIP(**model).visual, CPU, torch.float32)


@pytest.mark.parametrize(
    "settings", [{"norm_kwargs": {"eps": 1e-6}}, {"timm_model_name": "vit_base"}, {"no_ln_pre": True}]
)
def test_settings_that_our_forward_would_ignore_are_refused(settings: dict[str, Any]) -> None:
    model = small_settings()
    model["vision_cfg"] |= settings
    with pytest.raises(ValueError, match=f"differ from CLIP's in {next(iter(settings))}"):
        Tower.described(model)


def test_the_input_of_the_first_block_is_open_clips_to_the_last_bit() -> None:
    pixels = torch.randn(2, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    theirs = small_clip().visual
    with torch.inference_mode():
        assert torch.equal(Tower.of(theirs).embed(pixels), theirs._embeds(pixels))
    assert (OPENAI_MEAN, OPENAI_STD) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def test_the_name_without_quickgelu_is_refused() -> None:
    with pytest.raises(ValueError, match="use ViT-L-14-336-quickgelu"):
        VideoEncoder.load(EncoderConfig(clip_model="ViT-L-14-336", clip_weights="openai", codec=""))


def test_unreachable_weights_name_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_is_reachable", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingWeightsError, match=r"openai.*--preset pocket"):
        VideoEncoder.load(ENCODER_PRESETS["small"])
    assert constants.HF_HUB_OFFLINE is False


def test_a_folder_without_weights_is_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"open_clip_model\.safetensors"):
        VideoEncoder.load(EncoderConfig(clip_model=f"local-dir:{tmp_path}", clip_weights=None, codec=""))
