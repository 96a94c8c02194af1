"""How long a crawl of ten thousand real files takes, and a second one of which a hundred changed.

    python tools/bench_crawl.py --files 10000

Every file is one small film with a number of its own behind it: another content, read and probed in full.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

from gvmgen.encoders.media import ffmpeg_path
from pipeline.crawl import crawl
from pipeline.cutting import CrawlConfig


def make_film(path: Path) -> bytes:
    picture = ["-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=6"]
    sound = ["-f", "lavfi", "-i", "sine=frequency=440:duration=6"]
    command = [ffmpeg_path(), "-v", "error", *picture, *sound, "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, check=True)
    return path.read_bytes()


def make_files(folder: Path, content: bytes, count: int, version: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        box = (24).to_bytes(4, "big") + b"free" + version.to_bytes(8, "big") + number.to_bytes(8, "big")
        (folder / f"{number:06d}.mp4").write_bytes(content + box)


def timed_crawl(folder: Path, what: str) -> None:
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    found = crawl([folder], folder.parent / "data" / "manifest.jsonl", CrawlConfig())
    seconds, cpu_s = time.monotonic() - start_s, time.process_time() - start_cpu_s
    print(f"{what}: {found.num_files} files, {found.num_read} read, {seconds:.1f} s, of CPU {cpu_s:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    num_files = parser.parse_args().files
    with tempfile.TemporaryDirectory() as scratch:
        videos = Path(scratch, "videos")
        film = make_film(Path(scratch, "film.mp4"))
        make_files(videos, film, num_files, version=1)
        timed_crawl(videos, "first crawl")
        timed_crawl(videos, "second crawl")
        make_files(videos, film, num_files // 100, version=2)
        timed_crawl(videos, "after a hundredth changed")


if __name__ == "__main__":
    main()
