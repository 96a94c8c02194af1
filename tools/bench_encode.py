"""The encoders against their plain peers and against this machine's limits, side by side.

    python tools/bench_encode.py [--json FILE] [--only clip,frames,encodec,pack,encode]

Every round runs all contestants one after another, so that a busy machine slows them alike; ratios are
medians over the rounds. Each part takes two to four minutes on two cores; --json adds to what the file holds
already, so parts may run one at a time. Weights are random, of the real shapes; videos are made where none
are named. The official way to read frames needs opencv-python-headless. `pack` and `encode` write under
--scratch: that disk is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
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
from pipeline.plan import ShardPlan
from pipeline.selection import EncodeConfig
from shards.spec import SAMPLE_RATE

CPU = torch.device("cpu")
CLIP_FLOP = 382e9  # of ViT-L/14@336 for one frame, two for each multiplication with addition
PEER_BATCHES = (1, 2, 4, 8)
PRODUCTS = 4  # of matrices in a turn

Figures = dict[str, float]
Seconds = dict[str, list[float]]  # by contestant, a figure a round


@dataclass(frozen=True)
class Sizes:
    """How large all that is measured is."""

    clip: dict[str, Any]  # open_clip's description of the towers
    num_filters: int  # of EnCodec's first layer
    side: int  # of the matrices whose product is the machine's limit
    music_s: int
    num_videos: int
    video_s: int
    height: int  # of a video's picture
    rounds: int

    def tower(self, **vision: Any) -> open_clip.transformer.VisionTransformer:
        """The picture tower. vision: what differs in it."""
        torch.manual_seed(0)
        config = deepcopy(self.clip)
        return open_clip.CLIP(**config | {"vision_cfg": config["vision_cfg"] | vision}).visual.eval()

    def codec(self) -> EncodecModel:
        torch.manual_seed(0)
        return EncodecModel(codec_config(num_filters=self.num_filters)).eval()


def in_turns(contestants: Mapping[str, Callable[[], object]], rounds: int) -> Seconds:
    """Wall time of each in every round, after one to warm up."""
    for work in contestants.values():
        work()
    taken: Seconds = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            taken[name].append(seconds(work))
    return taken


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def ratio(taken: Seconds, of: str, to: str) -> float:
    """How many times as long `of` takes as `to` does: the median over the rounds."""
    return median(a / b for a, b in zip(taken[of], taken[to], strict=True))


@torch.inference_mode()
def bench_clip(sizes: Sizes, videos: Sequence[Path], scratch: Path) -> Figures:
    """ViT-L/14@336 in bfloat16: ours, open_clip's own forward at its best batch, and the matrix rate."""
    plain = sizes.tower()
    pixels = torch.randint(0, 256, (CPU_BATCH, 3, 336, 336), dtype=torch.uint8)
    exact = VideoEncoder(deepcopy(plain), CPU, torch.float32).encode(pixels[:1]).float()
    ours = VideoEncoder(deepcopy(plain), CPU, torch.bfloat16)
    error = float((ours.encode(pixels[:1]).float() - exact).norm() / exact.norm())
    plain.to(torch.bfloat16)
    floats = pixels.to(torch.bfloat16) / 255
    batch = min(
        PEER_BATCHES,
        key=lambda batch: in_turns({"peer": lambda: plain(floats[:batch])}, 1)["peer"][0] / batch,
    )
    a, b = (torch.randn(sizes.side, sizes.side, dtype=torch.bfloat16) for _ in range(2))

    def matrix() -> None:
        for _ in range(PRODUCTS):
            a @ b

    taken = in_turns(
        {
            "before": matrix,  # a machine's rate moves: the limit is that of the moments beside ours
            "ours": lambda: ours.encode(pixels),
            "after": matrix,
            "peer": lambda: plain(floats[:batch]),
        },
        sizes.rounds,
    )
    taken["matrix"] = [mean(pair) for pair in zip(taken["before"], taken["after"], strict=True)]
    flop = PRODUCTS * 2 * sizes.side**3
    frames_a_product = flop / CLIP_FLOP  # as many frames are as much arithmetic
    return {
        "machine.bf16.gflop_per_s": flop / median(taken["matrix"]) / 1e9,
        "open_clip.bf16.batch": batch,
        "open_clip.bf16.frames_per_s": batch / median(taken["peer"]),
        "clip.bf16.frames_per_s": CPU_BATCH / median(taken["ours"]),
        "clip.bf16.limit_fraction": ratio(taken, "matrix", "ours") * CPU_BATCH / frames_a_product,
        "clip.bf16.vs_open_clip": ratio(taken, "peer", "ours") * CPU_BATCH / batch,
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

    def official() -> None:
        for video in videos:
            _official_frames(video)

    taken = in_turns({"ours": ours, "bare": bare, "official": official}, sizes.rounds)
    return {
        "frames.videos_per_s": len(videos) / median(taken["ours"]),
        "frames.vs_official": ratio(taken, "official", "ours"),
        "frames.vs_ffmpeg": ratio(taken, "bare", "ours"),
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
    draw_codebooks(peer, torch.Generator().manual_seed(0))
    music = random_music(sizes.music_s, torch.Generator().manual_seed(0))[0]  # [1, N]
    codec = AudioCodec(peer)
    plain_codes = peer.encode(music[:, None]).audio_codes[0]
    codes = codec.encode(music)
    taken = in_turns(
        {
            "encode": lambda: codec.encode(music),
            "peer.encode": lambda: peer.encode(music[:, None]),
            "decode": lambda: codec.decode(codes),
            "peer.decode": lambda: peer.decode(codes[None], [None]),
        },
        sizes.rounds,
    )
    duration_s = music.shape[-1] / SAMPLE_RATE
    return {
        "encodec.encode_x_real_time": duration_s / median(taken["encode"]),
        "encodec.decode_x_real_time": duration_s / median(taken["decode"]),
        "encodec.vs_transformers": ratio(taken, "peer.encode", "encode"),
        "encodec.decode_vs_transformers": ratio(taken, "peer.decode", "decode"),
        "encodec.token_agreement": float((codes == plain_codes).float().mean()),
    }


def bench_pack(sizes: Sizes, videos: Sequence[Path], scratch: Path) -> Figures:
    """Shards from the cache beside a plain write of their bytes. CLIP has one layer of its real width."""
    encoders = Encoders(VideoEncoder(sizes.tower(layers=1), CPU, torch.bfloat16), AudioCodec(sizes.codec()))
    shards, work = _planned(videos, scratch / "packed", encoders)
    tars = work.shards.glob("*.tar")
    list(encode_shards(shards, work))  # fills the cache
    contents = [np.fromfile(tar, np.uint8).data for tar in tars]
    taken = in_turns(
        {
            "pack": lambda: list(encode_shards(shards, work)),
            "write": lambda: [_write_durably(scratch / "plain", content) for content in contents],
        },
        2 * sizes.rounds,
    )
    num_bytes = sum(content.nbytes for content in contents)
    return {
        "pack.mb_per_s": num_bytes / median(taken["pack"]) / 1e6,
        "disk.mb_per_s": num_bytes / median(taken["write"]) / 1e6,
        "pack.vs_disk": ratio(taken, "write", "pack"),
    }


def bench_encode(sizes: Sizes, videos: Sequence[Path], scratch: Path) -> Figures:
    """`encode` from videos to shards, a video a round, between two turns of CLIP alone."""
    encoders = Encoders(VideoEncoder(sizes.tower(), CPU, torch.bfloat16), AudioCodec(sizes.codec()))
    pixels = torch.randint(0, 256, (CPU_BATCH, 3, 336, 336), dtype=torch.uint8)

    def clip_only() -> float:
        return CPU_BATCH / seconds(lambda: encoders.video.encode(pixels))

    clip_only()
    rates, plain_rates = [], [clip_only()]
    for video in videos:
        shards, work = _planned([video], scratch / video.stem, encoders)
        taken_s = seconds(lambda shards=shards, work=work: list(encode_shards(shards, work)))
        rates.append(planned_frames(shards) / taken_s)
        plain_rates.append(clip_only())
    between = [mean(pair) for pair in pairwise(plain_rates)]
    return {
        "encode.frames_per_s": median(rates),
        "encode.clip_only.frames_per_s": median(plain_rates),
        "encode.vs_clip_only": median(a / b for a, b in zip(rates, between, strict=True)),
    }


def _planned(videos: Sequence[Path], folder: Path, encoders: Encoders) -> tuple[list[ShardPlan], Work]:
    """One shard of all these videos, and what making it needs."""
    data = DataFolder(folder)
    crawl(videos, data.manifest, CrawlConfig(num_shards=1, test_share=0.0))
    rows = data.read_segments()
    config = EncodeConfig(preset="small", device="cpu", cache="keep", feature_codec="fp16", force=True)
    return list(data.freeze_plan(rows.in_order()).values()), Work.of(data, rows, encoders, config)


def _write_durably(path: Path, content: memoryview) -> None:
    """From memory to the disk, in order, as fast as it takes them."""
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
    clip=open_clip.get_model_config(ENCODER_PRESETS["small"].clip_model)
    | {"text_cfg": TINY_CLIP["text_cfg"]},  # which no frame goes through
    num_filters=64,
    side=4096,
    music_s=30,
    num_videos=2,
    video_s=60,
    height=720,
    rounds=3,
)
TINY = replace(FULL, clip=TINY_CLIP, num_filters=4, side=128, music_s=1, video_s=3, height=180, rounds=1)
BENCHES = {
    "clip": bench_clip,
    "frames": bench_frames,
    "encodec": bench_encodec,
    "pack": bench_pack,
    "encode": bench_encode,
}
WITH_VIDEOS = {"frames", "pack", "encode"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(BENCHES), help="parts to run, with commas between them")
    parser.add_argument("--videos", type=Path, help="folder of .mp4 to read; made where none is named")
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure")
    parser.add_argument(
        "--tiny", action="store_true", help="all small: shows that it runs, figures mean nothing"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(BENCHES):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    sizes = TINY if options.tiny else FULL
    if options.scratch:
        options.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        videos = find_videos(options.videos, Path(folder) / "videos", sizes) if WITH_VIDEOS & {*parts} else []
        if not videos and WITH_VIDEOS & {*parts}:
            parser.error(f"no .mp4 in {options.videos}")
        for part in parts:
            figures = BENCHES[part](sizes, videos, Path(folder))
            for key, value in figures.items():  # each as soon as it is known
                print(f"{key:34} {value:10.3f}", flush=True)
            if options.json:
                add_figures(options.json, figures)


def find_videos(named: Path | None, made: Path, sizes: Sizes) -> list[Path]:
    return make_videos(made, sizes) if named is None else sorted(named.glob("*.mp4"))[: sizes.num_videos]


def add_figures(path: Path, figures: Figures) -> None:
    former = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(former | figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
