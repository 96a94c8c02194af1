"""Crawling and filtering, killed by SIGKILL in the middle: what was learnt is not learnt again."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.crawl import crawl
from pipeline.cutting import CrawlConfig
from pipeline.filtering import FilterConfig, filter_manifest
from pipeline.folder import DataFolder
from pipeline.sourcebook import source_book
from tests.pipeline.made_videos import make_many, make_video

NUM_FILES = 200
CONFIG = CrawlConfig()


def kill_when(is_time: Callable[[], bool], *arguments: str) -> None:
    """Start `gvm-prep` with these arguments and end it with SIGKILL at the given moment."""
    program = f"import sys; sys.argv = {['gvm-prep', *arguments]}; from pipeline.cli import main; main()"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    while not is_time():
        assert child.poll() is None, "it was done before the kill"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


def num_noted(book: Path, scratch: Path) -> int:
    """Files that a killed crawl had read, from a copy of its book."""
    for path in book.parent.glob(f"{book.name}*"):
        shutil.copy(path, scratch / path.name)
    with sqlite3.connect(scratch / book.name) as database:
        return int(database.execute("SELECT COUNT(*) FROM looks").fetchone()[0])


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_a_crawl_killed_while_it_reads_files_reads_only_the_others(tmp_path: Path) -> None:
    videos, out = make_many(tmp_path / "videos", NUM_FILES), tmp_path / "data" / "manifest.jsonl"
    book = out.with_name(".manifest.jsonl.crawl")
    log = book.with_name(f"{book.name}-wal")
    kill_when(lambda: size(log) > 300_000, "crawl-manifest", str(videos), "--out", str(out))
    assert not out.exists()
    noted = num_noted(book, tmp_path)
    assert 0 < noted < NUM_FILES
    assert crawl([videos], out, CONFIG).num_read == NUM_FILES - noted
    assert not book.exists()
    whole = tmp_path / "whole" / "manifest.jsonl"
    crawl([videos], whole, CONFIG)
    assert out.read_bytes() == whole.read_bytes()


def test_a_filter_killed_while_it_measures_measures_only_the_others(tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "data")
    crawl([make_many(tmp_path / "videos", 40)], data.manifest, CONFIG)
    scores = data.root / "scores.jsonl"
    kill_when(
        lambda: size(scores) > 1000,
        "filter",
        "--data",
        str(data.root),
        "--score",
        "silence,loudness,fingerprint",
    )
    noted = scores.read_bytes().count(b"\n")
    assert 0 < noted < 40
    summary = filter_manifest(data, FilterConfig(score="silence,loudness,fingerprint")).summary()
    assert f"{40 - noted} segments measured" in summary
    keys = [json.loads(line)["key"] for line in scores.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 40


def test_two_crawls_of_one_manifest_do_not_run_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "manifest.jsonl"
    make_video(tmp_path / "a.mp4")
    with sqlite3.connect(out.with_name(".manifest.jsonl.crawl")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ValueError, match="another crawl is at work"):
            crawl([tmp_path / "a.mp4"], out, CONFIG)
    assert crawl([tmp_path / "a.mp4"], out, CONFIG).num_read == 1


def test_a_damaged_book_is_named_with_what_to_do(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4")
    (tmp_path / ".manifest.jsonl.crawl").write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match=r"\.crawl: damaged\. Remove it"):
        crawl([tmp_path / "a.mp4"], tmp_path / "manifest.jsonl", CONFIG)


def fill_small_disk(manifest: Path) -> None:
    with source_book(manifest) as book:
        book._database.execute("PRAGMA max_page_count = 12")  # the database's own way to be on a small disk
        for number in range(10_000):
            book.want(f"{number}.mp4", {})


def test_a_disk_that_is_full_while_a_crawl_takes_notes_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left.*\.crawl"):
        fill_small_disk(tmp_path / "manifest.jsonl")
