"""Write pocket's encoders with untrained weights: right classes and shapes, same bytes every time.

Run: python tools/pocket/init_untrained.py [FOLDER]
Writes FOLDER/clip and FOLDER/codec; the default is gvmgen/pocket.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import EncodecConfig, EncodecModel

from gvmgen.checkpoint import ModelInfo, save_model
from gvmgen.config import model_config
from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.fingerprint import encoder_fingerprint
from gvmgen.encoders.presets import POCKET_DIR, EncoderConfig
from gvmgen.encoders.video import VideoEncoder
from gvmgen.model import GVMGen
from shards.spec import CODE_RATE, CODEBOOK_SIZE, NUM_CODEBOOKS, SAMPLE_RATE

# A ViT at 336/14, so 577 tokens like the full-size encoder; the text tower is as small as open_clip allows.
CLIP_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 192,
        "quick_gelu": False,
        "vision_cfg": {"image_size": 336, "patch_size": 14, "layers": 6, "width": 192, "head_width": 64},
        "text_cfg": {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}


def codec_config(num_filters: int = 16, pad_mode: str = "reflect") -> EncodecConfig:
    """EnCodec 32 kHz as MusicGen uses it: stride 8·5·4·4 = 640, 4 codebooks; full size has 64 filters."""
    bits_per_frame = NUM_CODEBOOKS * (CODEBOOK_SIZE - 1).bit_length()
    return EncodecConfig(
        sampling_rate=SAMPLE_RATE,
        upsampling_ratios=[8, 5, 4, 4],
        target_bandwidths=[bits_per_frame * CODE_RATE / 1000],  # kbit/s
        codebook_size=CODEBOOK_SIZE,
        num_filters=num_filters,
        use_causal_conv=False,
        use_conv_shortcut=False,
        pad_mode=pad_mode,
    )


def random_music(seconds: int, generator: torch.Generator) -> Tensor:
    """float32 [1, 1, N]: a new chord of decaying partials four times a second, so few frames are alike."""
    num_notes, note = 4 * seconds, SAMPLE_RATE // 4
    time = torch.arange(note) / SAMPLE_RATE  # [note]
    frequency = 55 * 2 ** (6 * torch.rand(num_notes, 6, 1, generator=generator))  # Hz, [notes, partials, 1]
    level = torch.rand(num_notes, 6, 1, generator=generator) / 6
    partials = level * torch.sin(2 * torch.pi * frequency * time) * torch.exp(-6 * time)
    noise = torch.randn(num_notes, note, generator=generator) * torch.rand(num_notes, 1, generator=generator)
    return (partials.sum(dim=1) + 0.05 * noise).reshape(1, 1, -1)


@torch.inference_mode()
def draw_codebooks(codec: EncodecModel, generator: torch.Generator) -> None:
    """Fill each codebook with residuals of the encoder's own output, so that many codes are in use.

    Random normal codebooks would quantise everything to a handful of codes.
    """
    music = random_music(180, generator).to(codec.device)  # 9000 frames: 2048 for each codebook, none twice
    residual = codec.encoder(music)[0].T  # [1, D, T] -> [T, D]
    for layer in codec.quantizer.layers:
        book: Any = layer.codebook
        order = torch.randperm(len(residual), generator=generator)
        drawn, rest = residual[order[: book.codebook_size]], residual[order[book.codebook_size :]]
        book.embed.copy_(drawn)
        book.embed_avg.copy_(drawn)
        book.cluster_size.fill_(1)
        residual = rest - book.decode(book.encode(rest))


def write_clip(folder: Path) -> None:
    """An open_clip folder: configuration and fp16 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "open_clip_config.json"
    config.write_text(json.dumps(CLIP_CONFIG, indent=2) + "\n")
    weights = folder / "open_clip_model.safetensors"
    weights.unlink(missing_ok=True)  # else open_clip would load it
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, weights)


def write_codec(folder: Path) -> None:
    """A transformers folder: configuration and fp16 weights."""
    torch.manual_seed(0)
    codec = EncodecModel(codec_config()).eval()
    draw_codebooks(codec, torch.Generator().manual_seed(0))
    codec.half().save_pretrained(folder)


def write_model(folder: Path, clip: Path, codec: Path) -> None:
    """A model folder that says it is untrained and reads the encoders beside it."""
    encoders = EncoderConfig(clip_model=f"local-dir:{clip}", clip_weights=None, codec=str(codec))
    fingerprint = encoder_fingerprint(VideoEncoder.load(encoders), AudioCodec.load(encoders))
    torch.manual_seed(0)
    info = ModelInfo(preset="pocket", encoder_fingerprint=fingerprint, licence="Apache-2.0")
    save_model(folder, GVMGen(model_config("pocket")).half(), info)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=POCKET_DIR)
    folder = parser.parse_args().folder
    write_clip(folder / "clip")
    write_codec(folder / "codec")
    write_model(folder / "model", folder / "clip", folder / "codec")
    print(f"wrote untrained {folder / 'clip'}, {folder / 'codec'} and {folder / 'model'}")


if __name__ == "__main__":
    main()
