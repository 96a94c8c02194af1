"""Measure the encoders against their plain peers and against this machine's limits, side by side in one run.

Run: python tools/bench_encode.py [--json FILE] [--videos FOLDER] [clip] [frames] [encodec]
Weights are random, of the real shapes. Needs opencv-python-headless for the official way to read frames.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from pocket.init_untrained import codec_config, draw_codebooks, random_music
from transformers import EncodecModel

from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.media import ffmpeg_path, read_frames
from gvmgen.encoders.presets import ENCODER_PRESETS
from gvmgen.encoders.video import VideoEncoder
from shards.spec import SAMPLE_RATE

CPU = torch.device("cpu")
CLIP_FLOP = 382e9  # of ViT-L/14@336 for one frame, two for each multiplication with addition
SIDE = 4096  # of the matrices whose product is the machine's limit

Figures = dict[str, float]


def seconds(work: Callable[[], Any], rounds: int = 2) -> float:
    """Median wall time of some runs, after one to warm up."""
    work()
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return median(taken)


@torch.inference_mode()
def bench_clip(videos: Sequence[Path]) -> Figures:
    """ViT-L/14@336 in bfloat16: ours, open_clip's own forward at its best batch, and the matrix rate."""
    torch.manual_seed(0)
    plain = open_clip.CLIP(**open_clip.get_model_config(ENCODER_PRESETS["small"].clip_model)).visual.eval()
    pixels = torch.randint(0, 256, (8, 3, 336, 336), dtype=torch.uint8)
    exact = VideoEncoder(deepcopy(plain), CPU, torch.float32).encode(pixels[:1]).float()
    ours = VideoEncoder(deepcopy(plain), CPU, torch.bfloat16)
    error = float((ours.encode(pixels[:1]).float() - exact).norm() / exact.norm())
    plain.to(torch.bfloat16)
    floats = pixels.to(torch.bfloat16) / 255
    a, b = (torch.randn(SIDE, SIDE, dtype=torch.bfloat16) for _ in range(2))
    peak = 2 * SIDE**3 / seconds(lambda: a @ b)
    rate = max(batch / seconds(lambda batch=batch: ours.encode(pixels[:batch])) for batch in (2, 8))
    peer = max(batch / seconds(lambda batch=batch: plain(floats[:batch])) for batch in (1, 2, 4, 8))
    return {
        "machine.bf16.gflop_per_s": peak / 1e9,
        "open_clip.bf16.frames_per_s": peer,
        "clip.bf16.frames_per_s": rate,
        "clip.bf16.limit_fraction": rate * CLIP_FLOP / peak,
        "clip.bf16.vs_open_clip": rate / peer,
        "clip.bf16.relative_error": error,
    }


def bench_frames(videos: Sequence[Path]) -> Figures:
    """Frames at one a second, ready for CLIP: ours, the official way, and ffmpeg's bare decoding."""
    encoder = VideoEncoder(open_clip.CLIP(**_tiny_clip()).visual, CPU, torch.float32)

    def ours() -> None:
        for video in videos:
            torch.stack([encoder.preprocess(frame) for frame in read_frames(video)])

    def bare() -> None:
        for video in videos:
            subprocess.run(
                [ffmpeg_path(), "-v", "error", "-i", str(video), "-map", "0:v", "-f", "null", "-"], check=True
            )

    taken = seconds(ours)
    return {
        "frames.videos_per_s": len(videos) / taken,
        "frames.vs_official": seconds(lambda: [_official_frames(video) for video in videos]) / taken,
        "frames.vs_ffmpeg": seconds(bare) / taken,
    }


def _official_frames(video: Path) -> list[Any]:
    """As the official implementation reads a video: each frame by OpenCV, every fps-th kept, as lists."""
    import cv2

    transform = open_clip.image_transform(336, is_train=False)
    capture = cv2.VideoCapture(str(video))
    step, index, kept = int(capture.get(cv2.CAP_PROP_FPS)), 0, []
    while True:
        is_read, frame = capture.read()
        if not is_read:
            break
        if index % step == 0:
            image = Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            kept.append(np.asarray(transform(image)).tolist())
        index += 1
    capture.release()
    return kept


def _tiny_clip() -> dict[str, Any]:
    tower = {"image_size": 336, "patch_size": 14, "layers": 1, "width": 64, "head_width": 64}
    text = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    return {"embed_dim": 64, "vision_cfg": tower, "text_cfg": text}


@torch.inference_mode()
def bench_encodec(videos: Sequence[Path]) -> Figures:
    """Ten seconds of music through the full-size codec: ours and transformers' own."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    peer = EncodecModel(codec_config(num_filters=64)).eval()
    draw_codebooks(peer, generator)
    music = random_music(10, generator)[0]  # [1, N]
    plain_codes = peer.encode(music[:, None]).audio_codes[0]
    plain_encode = seconds(lambda: peer.encode(music[:, None]))
    plain_decode = seconds(lambda: peer.decode(plain_codes[None], [None]))
    codec = AudioCodec(peer)
    codes = codec.encode(music)
    encode, decode = seconds(lambda: codec.encode(music)), seconds(lambda: codec.decode(codes))
    duration_s = music.shape[-1] / SAMPLE_RATE
    return {
        "encodec.encode_x_real_time": duration_s / encode,
        "encodec.decode_x_real_time": duration_s / decode,
        "encodec.vs_transformers": plain_encode / encode,
        "encodec.decode_vs_transformers": plain_decode / decode,
        "encodec.token_agreement": float((codes == plain_codes).float().mean()),
    }


BENCHES = {"clip": bench_clip, "frames": bench_frames, "encodec": bench_encodec}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"{', '.join(BENCHES)}; all by default")
    parser.add_argument("--videos", type=Path, default=Path("data/videos"), help="folder of videos to read")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    videos = sorted(options.videos.glob("*.mp4"))[:4]
    figures: Figures = {}
    for name in options.what or BENCHES:
        if name == "frames" and not videos:
            parser.error(f"no .mp4 in {options.videos}; name a folder of videos with --videos")
        figures |= BENCHES[name](videos)
    for name, value in figures.items():
        print(f"{name:34} {value:10.3f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
