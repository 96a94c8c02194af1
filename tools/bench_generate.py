"""What `gvm-gen` takes, start to finished file: time, time per minute of video, highest memory.

    python tools/bench_generate.py                       # 15 s, one take and four
    python tools/bench_generate.py --seconds 60 3600     # is memory flat, is time linear?
    python tools/bench_generate.py --video holiday.mp4 --takes 1 --json figures.json
    python tools/bench_generate.py --film 3600           # what an hour of 1080p takes when its music is there

Each run is a process of its own. Without --video one is made: moving shapes, a cut every five seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gvmgen.encoders.probe import probe
from gvmgen.encoders.process import ffmpeg_path
from gvmgen.finish.sound import Sound
from gvmgen.runs import MODEL_IN_THE_BOX
from shards.spec import SAMPLE_RATE

COMMAND = "from gvmgen.generate_cli import generate_main; generate_main()"


def main() -> None:
    options = read_options()
    if options.film:
        bench_film(options.film)
    else:
        bench_runs(options)


def bench_runs(options: argparse.Namespace) -> None:
    """Print what whole runs of `gvm-gen` take."""
    rows = []
    print(f"{'seconds':>8} {'takes':>6} {'first bar s':>12} {'wall s':>8} {'s a minute':>11} {'peak MB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        made = (make_video(Path(folder) / f"{seconds}.mp4", seconds) for seconds in options.seconds)
        for video in [options.video] if options.video else made:
            seconds = probe(video).duration_s
            for takes in options.takes:
                arguments = ["--takes", str(takes), "--model", options.model]
                row = measure(video, Path(folder) / "out.wav", arguments)
                rows.append({"seconds": seconds, "takes": takes} | row)
                print(
                    f"{seconds:8.0f} {takes:6} {row['first_bar_s']:12.1f} {row['wall_s']:8.1f} "
                    f"{row['wall_s'] * 60 / seconds:11.1f} {row['peak_rss_mb']:8.0f}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, nargs="+", default=[15], help="lengths of the videos")
    parser.add_argument("--video", type=Path, help="score this one instead of made ones")
    parser.add_argument("--takes", type=int, nargs="+", default=[1, 4], help="how many pieces at once")
    parser.add_argument("--model", default=str(MODEL_IN_THE_BOX), help="what composes")
    parser.add_argument("--film", type=int, help="only put music into a film of so many seconds")
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args()


def bench_film(seconds: int) -> None:
    """Print what copying a 1080p film of 5 Mbit/s takes, and putting music of its length into it."""
    from gvmgen.finish.film import write_film
    from gvmgen.finish.mastering import Mastering

    with tempfile.TemporaryDirectory() as folder:
        video, copy, film = (Path(folder) / name for name in ("video.mp4", "copy.mp4", "film.mp4"))
        looped = ["-stream_loop", "-1", "-i", str(make_film(Path(folder) / "part.mp4")), "-t", str(seconds)]
        quiet = [ffmpeg_path(), "-v", "error"]
        subprocess.run([*quiet, *looped, "-c", "copy", str(video)], check=True)
        music = plucked(seconds)
        started = time.perf_counter()
        subprocess.run([*quiet, "-i", str(video), "-c", "copy", str(copy)], check=True)
        copied = time.perf_counter()
        write_film(video, music, film, Mastering(), tags={})
        written = time.perf_counter()
        print(
            f"{seconds} s of 1080p, {video.stat().st_size / 1e6:.0f} MB: picture alone copied in "
            f"{copied - started:.1f} s; film with its music leveled, limited and coded in "
            f"{written - copied:.1f} s"
        )


def make_film(path: Path) -> Path:
    """15 s at 1080p."""
    picture = "testsrc2=size=1920x1080:rate=25:duration=15,noise=alls=12:allf=t,format=yuv420p"
    coder = ["-c:v", "libx264", "-preset", "ultrafast", "-b:v", "5M"]
    subprocess.run(
        [ffmpeg_path(), "-v", "error", "-f", "lavfi", "-i", picture, *coder, str(path)], check=True
    )
    return path


def plucked(seconds: int) -> Sound:
    """Notes with peaks that the limiter has to hold, as it does with most music."""
    times = np.arange(60 * SAMPLE_RATE) / SAMPLE_RATE
    pitches = 220 * 2 ** (np.random.default_rng(0).integers(0, 24, 240) / 12)
    notes = np.sin(2 * np.pi * np.repeat(pitches, SAMPLE_RATE // 4) * times) * np.exp(-8 * (times % 0.25))
    sound = Sound(SAMPLE_RATE)
    for first in range(0, seconds, 60):
        sound.append(0.5 * notes[: (seconds - first) * SAMPLE_RATE])
    return sound


def make_video(path: Path, seconds: int) -> Path:
    picture = f"testsrc2=size=320x240:rate=25:duration={seconds},hue=H='floor(t/5)*1.3'"
    quiet = [ffmpeg_path(), "-v", "error", "-y", "-f", "lavfi", "-i", picture]
    subprocess.run([*quiet, "-preset", "ultrafast", "-pix_fmt", "yuv420p", str(path)], check=True)
    return path


def measure(video: Path, output: Path, arguments: list[str]) -> dict[str, float]:
    """Seconds to the first progress bar and to the end, and the process's highest memory in MB.

    Only of a caller that is small itself: Linux counts what a process was forked from as its own memory.
    """
    started = time.perf_counter()
    command = [sys.executable, "-c", COMMAND, str(video), "-o", str(output), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    first = process.stderr.read(1)
    bar_s = time.perf_counter() - started
    said = first + process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(said.decode())
    wall_s = time.perf_counter() - started
    return {"first_bar_s": bar_s, "wall_s": wall_s, "peak_rss_mb": usage.ru_maxrss / 1024}


if __name__ == "__main__":
    main()
