"""The picture encoder begins with tokens that hold how rough a patch is, whatever the sign of its waves."""

from __future__ import annotations

import pytest
import torch

cv2 = pytest.importorskip("cv2", reason="making pocket needs opencv-python-headless")

from train_clip import SharedPatchDropout, Teller, start_from_waves  # noqa: E402


def roughness_told(clip: torch.nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """[B, D]: the mean of a picture's patches as the first block leaves them."""
    kept = []
    block = clip.visual.transformer.resblocks[0]
    handle = block.register_forward_hook(lambda _, __, out: kept.append(out))
    clip.visual(pictures)
    handle.remove()
    return kept[0][:, 1:].mean(dim=1)


@torch.inference_mode()
def test_a_blurred_picture_differs_from_a_sharp_one_more_than_its_negative_does() -> None:
    torch.manual_seed(0)
    sharp = torch.randn(4, 3, 336, 336)
    blurred = torch.nn.functional.avg_pool2d(sharp, (1, 9), stride=1, padding=(0, 4))
    teller = Teller(0.0).eval()
    start_from_waves(teller.clip.visual, torch.cat([sharp, blurred]))
    told, told_blurred, told_negative = (
        roughness_told(teller.clip, pictures) for pictures in (sharp, blurred, -sharp)
    )
    assert (told - told_blurred).norm() > 3 * (told - told_negative).norm()


def test_the_same_patches_of_all_frames_stay() -> None:
    tokens = torch.arange(1 + 576.0)[None, :, None].expand(3, -1, 2)
    kept = SharedPatchDropout(0.75).train()(tokens)
    assert kept.shape == (3, 1 + 144, 2)
    assert torch.equal(kept, kept[:1].expand(3, -1, -1))
    assert torch.equal(SharedPatchDropout(0.75).eval()(tokens), tokens)
