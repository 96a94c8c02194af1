"""How long `gvm-eval score` takes for many pairs, first and with everything measured, and how much memory.

    python tools/bench_score.py --pairs 1000 --seconds 30

Films are moving test pictures with cuts, music is tones and noise: what they cost is what real ones of that
size cost.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gvmgen.encoders.media import ffmpeg_path, write_waveform
from shards.spec import SAMPLE_RATE

SIZE = "640x360"
NUM_FILMS = 4  # really made; the others are copies


def make_pairs(folder: Path, num_pairs: int, seconds: float) -> None:
    """videos/, reference/ and ours/ of so many files."""
    for name in ("videos", "reference", "ours"):
        (folder / name).mkdir()
    for number in range(num_pairs):
        film = folder / "videos" / f"{number:05d}.mp4"
        if number < NUM_FILMS:
            make_film(film, seconds, number)
        else:
            shutil.copyfile(folder / "videos" / f"{number % NUM_FILMS:05d}.mp4", film)
        for seed, name in enumerate(("reference", "ours")):
            write_waveform(folder / name / f"{number:05d}.wav", made_music(seconds, 2 * number + seed))


def make_film(path: Path, seconds: float, number: int) -> None:
    cuts = f"negate=enable='lt(mod(t,{number + 5}),{number + 2})'"
    picture = f"testsrc2=s={SIZE}:rate=25,hue=h={number}*t*20,{cuts}"
    command = [ffmpeg_path(), "-v", "error", "-f", "lavfi", "-i", picture, "-t", str(seconds)]
    subprocess.run([*command, "-pix_fmt", "yuv420p", "-preset", "ultrafast", str(path)], check=True)


def made_music(seconds: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    beats = np.exp(-8 * (time_s % rng.uniform(0.3, 0.8)))
    tone = np.sin(2 * np.pi * rng.uniform(100, 800) * time_s) * beats
    return (0.3 * tone + 0.01 * rng.normal(size=len(time_s))).astype(np.float32)


def timed_score(folder: Path, workers: int) -> tuple[float, float]:
    """Seconds and peak memory in MiB of the main process."""
    arguments = ["score", "--videos", "videos", "--system", "ours=ours", "--reference", "reference"]
    script = "from gvmgen.evaluation.cli import eval_main; eval_main()"
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments, "--examples", "4", "--workers", str(workers)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"gvm-eval score failed with status {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - start, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        make_pairs(Path(name), options.pairs, options.seconds)
        for run in ("first", "measured before"):
            seconds, mebibytes = timed_score(Path(name), options.workers)
            print(f"{run}: {seconds:.1f} s, {mebibytes:.0f} MiB in the main process", flush=True)


if __name__ == "__main__":
    main()
