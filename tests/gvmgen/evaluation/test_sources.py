"""`gvm-eval train` from a folder of videos and one of music: paired, split, read once, trained, refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gvmgen.encoders.media import read_waveform, write_waveform
from gvmgen.evaluation import load_evaluator, measuring
from gvmgen.evaluation.seconds import Pair
from gvmgen.evaluation.senses import Senses
from gvmgen.evaluation.sources import FolderPairs, for_testing, pieces
from tests.gvmgen.evaluation.made_pairs import chords, make_film
from tests.media import join

NUM_VIDEOS = 14
SMALL = ["--preset=pocket", "--dim=16", "--num-layers=1", "--steps=4", "--batch-size=4", "--workers=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """videos/ and music/: a film without music, and music that is none."""
    path = tmp_path_factory.mktemp("folder")
    for name in ("videos", "music"):
        (path / name).mkdir()
    for number in range(NUM_VIDEOS):
        make_film(path / f"videos/v{number}.mp4", (1.0 + 0.2 * number,), 5.0)
        write_waveform(path / f"music/v{number}.wav", chords_of(number))
    (path / "music/v3.wav").unlink()
    (path / "music/v4.wav").write_bytes(b"no sound at all")
    write_waveform(path / "music/of-no-video.wav", chords((300.0,), each_s=1.0))
    return path


def source_of(videos: Path, music: Path | None, cache: Path) -> FolderPairs:
    return FolderPairs(videos, music, "pocket", cache, workers=1)


def chords_of(number: int) -> np.ndarray:
    return chords((200.0 + 30 * number,), each_s=7.0)


def gvm_eval(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = "from gvmgen.evaluation.cli import eval_main; eval_main()"
    command = [sys.executable, "-c", script, "train", *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def test_videos_and_music_become_an_evaluator_that_reads_them_alike(folder: Path) -> None:
    arguments = ("--videos", "videos", "--music", "music", "--run", "run", *SMALL)
    first = gvm_eval(folder, *arguments)
    assert first.returncode == 1, first.stderr  # one file is broken; the rest is trained on
    assert "Left out: v3: no music for this video" in first.stderr
    assert "Left out: of-no-video.wav: no video for this music" in first.stderr
    assert "Left out: music/v4.wav: is no media file" in first.stderr
    assert "run: trained, 4 steps" in first.stderr
    assert "2 pairs, batches of 2" in first.stdout  # 15 % of 13
    assert json.loads((folder / "run/figures.json").read_text())["num_pairs"] == 2
    score = load_evaluator(folder / "run").score(folder / "videos/v0.mp4", folder / "music/v0.wav")
    assert score.alignment.shape == (5, 5)
    kept = {path: path.stat().st_mtime_ns for path in (folder / "run/training/seconds").iterdir()}
    again = gvm_eval(folder, *arguments)
    assert again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in (folder / "run/training/seconds").iterdir()} == kept
    os.utime(folder / "music/v5.wav", ns=(1, 1))
    changed = gvm_eval(folder, *arguments)
    assert changed.returncode == 3
    assert "run/training was made with other settings: files: found" in changed.stderr


def test_a_pair_holds_what_its_files_hold_and_no_more_than_both(folder: Path, tmp_path: Path) -> None:
    source = source_of(folder / "videos", folder / "music", tmp_path)
    train, test = source.pairs("train"), source.pairs("test")
    names = {f"v{number}@0" for number in range(NUM_VIDEOS)} - {"v3@0", "v4@0"}
    assert {pair.key for pair in (*train, *test)} == names
    assert not {pair.key for pair in train} & {pair.key for pair in test}
    assert [job.path.name for job in source.failures] == ["v4.wav"]
    senses, name = Senses("pocket", source.encoders), train[0].key.removesuffix("@0")
    heard = read_waveform(folder / f"music/{name}.wav", duration_s=5.0)
    torch.testing.assert_close(train[0].video, senses.watch(folder / f"videos/{name}.mp4"))
    torch.testing.assert_close(train[0].music, senses.hear(heard))


def test_without_a_folder_of_music_the_videos_own_sound_is_theirs(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "sound").mkdir()
    for name in ("v0", "v1"):
        sound, video = folder / f"music/{name}.wav", folder / f"videos/{name}.mp4"
        join(video, sound, tmp_path / f"films/{name}.mkv", codec="flac")
        (tmp_path / f"sound/{name}.wav").write_bytes(sound.read_bytes())
    films, cache = tmp_path / "films", tmp_path / "cache"
    own = source_of(films, None, cache).pairs("train")
    named = source_of(films, tmp_path / "sound", cache).pairs("train")
    for a, b in zip(own, named, strict=True):
        torch.testing.assert_close(a.music, b.music)


def test_a_killed_reading_goes_on_with_what_is_not_read_yet(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[str] = []
    watch = measuring.MEASURES["watched"]

    def interrupted(job: measuring.Job, measurer: measuring.Measurer) -> dict[str, object]:
        if len(watched) == 3:
            watched.append("killed")
            raise KeyboardInterrupt
        watched.append(job.path.name)
        return watch(job, measurer)

    monkeypatch.setitem(measuring.MEASURES, "watched", interrupted)
    source = source_of(folder / "videos", folder / "music", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        source.pairs("train")
    source.pairs("train")
    assert len(watched) == len(set(watched)) == 1 + NUM_VIDEOS - 1  # without v3, which has no music


def test_a_seventh_of_the_videos_is_for_testing_and_others_beside_them_change_little() -> None:
    names = [f"film {number}" for number in range(200)]
    held_out = for_testing(names)
    assert len(held_out) == 30
    assert held_out == for_testing(reversed(names))
    more = for_testing(names + [f"other {number}" for number in range(20)])
    assert len(held_out & more) >= 25


def test_long_films_are_cut_as_shards_are_and_a_short_rest_is_left_out() -> None:
    seconds = torch.arange(63.0)[:, None]
    cut = list(pieces(Pair("a", seconds, seconds)))
    assert [(pair.key, pair.num_seconds) for pair in cut] == [("a@0", 30), ("a@30", 30)]
    assert cut[1].video[0] == cut[1].music[0] == 30
    (rest,) = pieces(Pair("b", seconds[:5], seconds[:5]))
    assert rest.num_seconds == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--music music", "--music and --soundfont go with --videos FOLDER"),
        ("--data data --videos videos", "--data data and --videos videos: name one of them"),
        ("--videos nowhere", "--videos nowhere: no such folder"),
        ("--videos music", "--videos music: holds no video"),
        ("--videos videos --music run", "--music run: no music for any of the 14 videos"),
        ("--videos videos --music midi", "is MIDI, and needs instruments: name a soundfont"),
        ("--videos videos --music few", "1 pairs to train on last 4 s or more, fewer than a batch of 4"),
    ],
)
def test_what_cannot_be_paired_is_said_in_one_line(
    folder: Path,
    arguments: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from gvmgen.evaluation.cli import eval_main

    for name in ("run", "midi", "few"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "midi/v0.mid").write_bytes(b"MThd")
    write_waveform(folder / "few/v0.wav", chords_of(0))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["gvm-eval", "train", *arguments.split(), "--run", "refused", *SMALL])
    with pytest.raises(SystemExit) as stopped:
        eval_main()
    assert stopped.value.code == 3
    assert message in capsys.readouterr().err
