"""What `gvm-gen` takes, start to finished file: time, time per minute of video, highest memory.

    python tools/bench_generate.py                       # 15 s, one take and four
    python tools/bench_generate.py --seconds 60 3600     # is memory flat, is time linear?

Each run is a process of its own. The video is made: moving shapes, a cut every five seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gvmgen.encoders.process import ffmpeg_path
from gvmgen.runs import MODEL_IN_THE_BOX

COMMAND = "from gvmgen.generate_cli import generate_main; generate_main()"


def main() -> None:
    options = read_options()
    print(f"{'seconds':>8} {'takes':>6} {'first bar s':>12} {'wall s':>8} {'s a minute':>11} {'peak MB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for seconds in options.seconds:
            video = make_video(Path(folder) / f"{seconds}.mp4", seconds)
            for takes in options.takes:
                arguments = ["--takes", str(takes), "--model", options.model]
                bar_s, wall_s, peak_mb = measure(video, Path(folder) / "out.wav", arguments)
                print(
                    f"{seconds:8} {takes:6} {bar_s:12.1f} {wall_s:8.1f} {wall_s * 60 / seconds:11.1f} "
                    f"{peak_mb:8.0f}",
                    flush=True,
                )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, nargs="+", default=[15], help="lengths of the videos")
    parser.add_argument("--takes", type=int, nargs="+", default=[1, 4], help="how many pieces at once")
    parser.add_argument("--model", default=str(MODEL_IN_THE_BOX), help="what composes")
    return parser.parse_args()


def make_video(path: Path, seconds: int) -> Path:
    picture = f"testsrc2=size=320x240:rate=25:duration={seconds},hue=H='floor(t/5)*1.3'"
    quiet = [ffmpeg_path(), "-v", "error", "-y", "-f", "lavfi", "-i", picture]
    subprocess.run([*quiet, "-preset", "ultrafast", "-pix_fmt", "yuv420p", str(path)], check=True)
    return path


def measure(video: Path, output: Path, arguments: list[str]) -> tuple[float, float, float]:
    """Seconds to the first progress bar and to the end, and the process's highest memory in MB."""
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
    return bar_s, time.perf_counter() - started, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
