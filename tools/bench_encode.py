"""Measure the encoders against their plain peers and against this machine's limits, side by side in one run.

Run: python tools/bench_encode.py [--json FILE] [--videos FOLDER] [clip] [frames] [encodec] [encode]
Weights are random, of the real shapes; videos are made where no folder is named. The official way to read
frames needs opencv-python-headless. `encode` writes its shards and its cache under --scratch: that disk is
measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
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
from pipeline.crawl import crawl
from pipeline.cutting import CrawlConfig
from pipeline.encode import CPU_BATCH, Encoders
from pipeline.engines import Work, encode_shards
from pipeline.folder import DataFolder, planned_frames
from pipeline.selection import EncodeConfig
from shards.spec import SAMPLE_RATE

CPU = torch.device("cpu")
CLIP_FLOP = 382e9  # of ViT-L/14@336 for one frame, two for each multiplication with addition

Figures = dict[str, float]


@dataclass(frozen=True)
class Sizes:
    """How large all that is measured is."""

    clip: dict[str, Any]  # open_clip's description of the towers
    num_filters: int  # of EnCodec's first layer
    side: int  # of the matrices whose product is the machine's limit
    music_s: float
    num_videos: int
    video_s: int
    height: int  # of a video's picture

    def tower(self) -> open_clip.transformer.VisionTransformer:
        torch.manual_seed(0)
        return open_clip.CLIP(**deepcopy(self.clip)).visual.eval()

    def codec(self) -> EncodecModel:
        torch.manual_seed(0)
        codec = EncodecModel(codec_config(num_filters=self.num_filters)).eval()
        draw_codebooks(codec, torch.Generator().manual_seed(0))
        return codec


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
def bench_clip(sizes: Sizes, videos: Sequence[Path], scratch: Path) -> Figures:
    """ViT-L/14@336 in bfloat16: ours, open_clip's own forward at its best batch, and the matrix rate."""
    plain = sizes.tower()
    pixels = torch.randint(0, 256, (8, 3, 336, 336), dtype=torch.uint8)
    exact = VideoEncoder(deepcopy(plain), CPU, torch.float32).encode(pixels[:1]).float()
    ours = VideoEncoder(deepcopy(plain), CPU, torch.bfloat16)
    error = float((ours.encode(pixels[:1]).float() - exact).norm() / exact.norm())
    plain.to(torch.bfloat16)
    floats = pixels.to(torch.bfloat16) / 255
    a, b = (torch.randn(sizes.side, sizes.side, dtype=torch.bfloat16) for _ in range(2))
    peak = 2 * sizes.side**3 / seconds(lambda: a @ b)
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


def bench_frames(sizes: Sizes, videos: Sequence[Path], scratch: Path) -> Figures:
    """Frames at one a second, ready for CLIP: ours, the official way, and ffmpeg's bare decoding."""
    encoder = VideoEncoder(TINY.tower(), CPU, torch.float32)  # only its resizing is measured

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


@torch.inference_mode()
def bench_encodec(sizes: Sizes, videos: Sequence[Path], scratch: Path) -> Figures:
    """Music through the codec: ours and transformers' own."""
    peer = sizes.codec()
    music = random_music(sizes.music_s, torch.Generator().manual_seed(0))[0]  # [1, N]
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


def bench_encode(sizes: Sizes, videos: Sequence[Path], scratch: Path) -> Figures:
    """`encode` from videos to shards beside CLIP alone, then shards packed again beside a plain write."""
    data = DataFolder(scratch / "data")
    crawl(videos, data.manifest, CrawlConfig(num_shards=1, test_share=0.0))
    rows = data.read_segments()
    shards = list(data.freeze_plan(rows.values()).values())
    encoders = Encoders(VideoEncoder(sizes.tower(), CPU, torch.bfloat16), AudioCodec(sizes.codec()))
    pixels = torch.randint(0, 256, (CPU_BATCH, 3, 336, 336), dtype=torch.uint8)
    clip_rate = CPU_BATCH / seconds(lambda: encoders.video.encode(pixels))
    config = EncodeConfig(preset="small", device="cpu", cache="keep", feature_codec="fp16", force=True)

    def encode() -> None:
        list(encode_shards(shards, Work.of(data, rows, encoders, config)))

    begin = time.perf_counter()
    encode()
    rate = planned_frames(shards) / (time.perf_counter() - begin)
    packing = seconds(encode, rounds=5)  # all comes from the cache now
    tars = list(data.shards.glob("*.tar"))
    plain = seconds(lambda: [_write_plainly(tar, scratch / "plain") for tar in tars], rounds=5)
    num_bytes = sum(tar.stat().st_size for tar in tars)
    return {
        "encode.frames_per_s": rate,
        "encode.clip_only.frames_per_s": clip_rate,
        "encode.vs_clip_only": rate / clip_rate,
        "pack.mb_per_s": num_bytes / packing / 1e6,
        "disk.mb_per_s": num_bytes / plain / 1e6,
        "pack.vs_disk": plain / packing,
    }


def _write_plainly(source: Path, path: Path) -> None:
    """The same bytes from memory to the disk, in order, as fast as it takes them."""
    content = np.fromfile(source, np.uint8).data
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def make_videos(folder: Path, sizes: Sizes) -> list[Path]:
    """Moving test pictures with a tone, H.264 and AAC at 25 frames a second."""
    folder.mkdir()
    paths = [folder / f"{number}.mp4" for number in range(sizes.num_videos)]
    for number, path in enumerate(paths):
        size = f"{sizes.height * 16 // 9}x{sizes.height}"
        picture = f"testsrc2=size={size}:rate=25:duration={sizes.video_s}"
        sound = f"sine=frequency={220 + 55 * number}:duration={sizes.video_s}"
        inputs = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound]
        codecs = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-c:a", "aac"]
        subprocess.run([ffmpeg_path(), "-nostdin", "-v", "error", *inputs, *codecs, str(path)], check=True)
    return paths


TINY_CLIP = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 336, "patch_size": 14, "layers": 1, "width": 64, "head_width": 64},
    "text_cfg": {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1},
}
FULL = Sizes(
    clip=open_clip.get_model_config(ENCODER_PRESETS["small"].clip_model),
    num_filters=64,
    side=4096,
    music_s=10,
    num_videos=2,
    video_s=60,
    height=720,
)
TINY = replace(FULL, clip=TINY_CLIP, num_filters=4, side=128, music_s=1, num_videos=1, video_s=6, height=180)
BENCHES = {"clip": bench_clip, "frames": bench_frames, "encodec": bench_encodec, "encode": bench_encode}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"{', '.join(BENCHES)}; all by default")
    parser.add_argument("--videos", type=Path, help="folder of .mp4 to read; made where none is named")
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure")
    parser.add_argument(
        "--tiny", action="store_true", help="all small: shows that it runs, figures mean nothing"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    sizes = TINY if options.tiny else FULL
    figures: Figures = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        videos = (
            sorted(options.videos.glob("*.mp4"))[:4]
            if options.videos
            else make_videos(scratch / "videos", sizes)
        )
        if not videos:
            parser.error(f"no .mp4 in {options.videos}")
        for name in options.what or BENCHES:
            found = BENCHES[name](sizes, videos, scratch)
            for key, value in found.items():  # each as soon as it is known
                print(f"{key:34} {value:10.3f}", flush=True)
            figures |= found
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
