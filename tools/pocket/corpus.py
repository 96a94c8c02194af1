"""Make the pocket corpus: pairs of video and music with a known truth, seeded and of any size.

    python tools/pocket/corpus.py --out data/pocket --num-pairs 400 --first-seed 0

Each pair is `pair_000042.mkv` (H.264, and FLAC so that the music is unharmed) and `pair_000042.json` (the
truth of every second). A pair that is already there is left alone, so a killed run goes on where it was.
With `--pieces 3` each picture has three pieces of music, in three keys: `pair_000042`, `pair_000042_1`, `_2`.
`pairs.csv`, a list for `gvm-prep crawl-manifest`, keeps what shares a picture in one split.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import wave
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import cv2
import numpy as np
from compose import compose, mean_pitch, section_keys
from render_music import SAMPLE_RATE, render_music
from render_video import HEIGHT, VIDEO_RATE, WIDTH, video_frames
from scenario import make_scenario, truth_per_second


def make_pair(seed: int, out: Path, duration_s: float, piece: int = 0) -> Path:
    """Write one pair, the truth last; a later piece takes the first one's picture. Returns the video."""
    first = out / f"pair_{seed:06d}.mkv"
    video = first.with_stem(f"{first.stem}_{piece}") if piece else first
    truth = video.with_suffix(".json")
    if truth.exists():
        return video
    cv2.setNumThreads(1)
    scenario = make_scenario(seed, duration_s, piece)
    notes = compose(scenario)
    with tempfile.NamedTemporaryFile(suffix=".wav") as sound:
        write_wav(Path(sound.name), render_music(notes, duration_s))
        if piece:
            _replace_sound(first, Path(sound.name), video)
        else:
            _encode(video_frames(scenario), Path(sound.name), video)
    record = truth_per_second(scenario)
    record["pitch"] = mean_pitch(notes, len(record["motion"]))
    record["keys"] = [
        {"start_s": start, "tonic": tonic, "minor": minor} for start, tonic, minor in section_keys(scenario)
    ]
    aside = truth.with_suffix(".tmp")
    aside.write_text(json.dumps(record, sort_keys=True) + "\n")
    aside.replace(truth)
    return video


def make_pieces(seed: int, num_pieces: int, out: Path, duration_s: float) -> str:
    """All pairs of one picture. Returns the last one's name."""
    return [make_pair(seed, out, duration_s, piece) for piece in range(num_pieces)][-1].name


def write_wav(path: Path, waveform: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(waveform * 32767).astype("<i2").tobytes())


def _encode(frames, sound: Path, video: Path) -> None:
    from gvmgen.encoders.process import ffmpeg_path

    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", str(VIDEO_RATE), "-i", "-"]
    picture = [
        "-c:v",
        "libx264",
        "-preset",
        "superfast",
        "-crf",
        "26",
        "-pix_fmt",
        "yuv420p",
        "-threads",
        "1",
    ]
    aside = video.with_suffix(".tmp.mkv")
    command = [
        str(ffmpeg_path()),
        "-v",
        "error",
        "-y",
        *raw,
        "-i",
        str(sound),
        *picture,
        "-c:a",
        "flac",
        str(aside),
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    for frame in frames:
        process.stdin.write(np.ascontiguousarray(frame).data)
    process.stdin.close()
    if process.wait():
        raise ValueError(f"{video}: ffmpeg failed; its message is above")
    aside.replace(video)


def _replace_sound(picture: Path, sound: Path, video: Path) -> None:
    from gvmgen.encoders.process import ffmpeg_path

    aside = video.with_suffix(".tmp.mkv")
    inputs = ["-i", str(picture), "-i", str(sound), "-map", "0:v", "-map", "1:a"]
    copied = ["-c:v", "copy", "-c:a", "flac", str(aside)]
    subprocess.run([str(ffmpeg_path()), "-v", "error", "-y", *inputs, *copied], check=True)
    aside.replace(video)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("data/pocket"))
    parser.add_argument("--num-pairs", type=int, default=400, help="pictures, each with --pieces of music")
    parser.add_argument("--pieces", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--duration", type=float, default=15.0, help="seconds of each pair")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = range(args.first_seed, args.first_seed + args.num_pairs)
    with Pool(args.processes) as pool:
        make = partial(make_pieces, num_pieces=args.pieces, out=args.out, duration_s=args.duration)
        for done, name in enumerate(pool.imap_unordered(make, seeds), 1):
            print(f"\r{done}/{args.num_pairs} {name}", end="", file=sys.stderr)
    print(file=sys.stderr)
    videos = sorted(path.name for path in args.out.glob("pair_*.mkv") if not path.stem.endswith(".tmp"))
    rows = "".join(f"{name},{name[: len('pair_000042')]}\n" for name in videos)
    (args.out / "pairs.csv").write_text("video,song_id\n" + rows)


if __name__ == "__main__":
    main()
