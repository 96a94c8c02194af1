"""The four commands in a row, as a user types them: videos in, music out."""

from __future__ import annotations

import os
import subprocess
import sys
import wave
from collections.abc import Sequence
from pathlib import Path

import pytest

from gvmgen.encoders.media import probe
from shards.spec import SAMPLE_RATE
from tests.pipeline.made_videos import make_video

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TRAIN = ["--lr", "1e-3", "--warmup-steps", "1", "--steps", "2", "--batch-size", "2", "--crop-s", "2"]


def run(folder: Path, *command: object) -> str:
    """Run one of our commands in a folder, offline, with pocket; returns what it says on both streams."""
    name, *arguments = map(str, command)
    environment = os.environ | {"GVM_PRESET": "pocket", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [BIN / name, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
    return done.stdout + done.stderr


def num_samples(path: Path) -> int:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels()) == (SAMPLE_RATE, 1)
        return file.getnframes()


def score_all(folder: Path, videos: Sequence[Path]) -> None:
    """The README's commands on these videos, and what each of them promises."""
    run(folder, "gvm-prep", "crawl-manifest", *videos, "--test-share", "0")
    run(folder, "gvm-prep", "encode", "--shards", "0-99")
    trained = run(folder, "accelerate", "launch", ROOT / "gvm-train", *TRAIN)
    assert "runs/pocket is complete: 2 steps" in trained
    for video in videos:
        music = folder / f"{video.stem}.wav"
        said = run(folder, "gvm-gen", video, "-o", music, "--duration", min(2.0, probe(video).duration_s))
        assert "runs/pocket/checkpoints/step_00000002" in said
        assert num_samples(music) == round(min(2.0, probe(video).duration_s) * SAMPLE_RATE)


@pytest.fixture
def own_videos(tmp_path: Path) -> list[Path]:
    """Two videos with sound."""
    return [make_video(tmp_path / "a.mp4", 5.2), make_video(tmp_path / "b.mp4", 6.0, pitch=660)]


@pytest.mark.slow
def test_own_videos_become_music_of_their_length(own_videos: list[Path], tmp_path: Path) -> None:
    score_all(tmp_path, own_videos)


@pytest.mark.slow
def test_real_videos_become_music_of_their_length(shared_dir: Path, tmp_path: Path) -> None:
    score_all(tmp_path, sorted((shared_dir / "videos").glob("*.mp4"))[:3])


@pytest.mark.slow
def test_the_same_command_twice_writes_the_same_bytes(own_videos: list[Path], tmp_path: Path) -> None:
    for out in ("one.wav", "two.wav"):
        run(tmp_path, "gvm-gen", own_videos[0], "-o", out, "--seed", 3, "--duration", 1)
    assert (tmp_path / "one.wav").read_bytes() == (tmp_path / "two.wav").read_bytes()
