"""What `gvm-prep` says and with which exit code it ends, for the commands from plan to verify."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gvmgen.console import ExitCode
from pipeline.cli import main
from pipeline.folder import DataFolder
from pipeline.manifest import write_manifest
from shards.record import ShardRecord
from shards.spec import Sample
from shards.writer import write_shard
from tests.pipeline.made_segments import segment

FINGERPRINT = {"video": {"model": "none"}, "audio": {"model": "none"}}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    """Three planned shards of a segment each; 0 and 1 are complete, 1 without its segment, which failed."""
    monkeypatch.chdir(tmp_path)
    data = DataFolder(Path("data"))
    segments = {s.key: s for s in map(segment, range(3))}
    write_manifest(data.manifest, segments.values())
    plan = data.freeze_plan(segments.values())
    for shard in (0, 1):
        (planned,) = plan[shard].segments
        features = np.ones((2, 577, 4), np.float16)
        sample = Sample(planned["key"], features, np.ones((4, 100), np.int16), dict(planned))
        failed = {"key": planned["key"], "kind": "permanent", "stage": "frames"}
        write_shard(
            data.shards,
            shard,
            [] if shard else [sample],
            plan_hash=plan[shard].plan_hash,
            fingerprint=FINGERPRINT,
            left_out=[failed] if shard else [],
        )
    row = '{"kind": "permanent", "stage": "frames", "message": "/some/1.mp4: is cut short"}\n'
    (data.shards / "000001.failures.jsonl").write_text(row)
    return data


def gvm_prep(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """(exit code, all output) of a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gvm-prep", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out + captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["crawl-manifest"], ["data/videos", "gvm-prep crawl-manifest FOLDER"]),
        (["crawl-manifest", "nowhere"], ["nowhere", "no such file or folder"]),
        (["plan"], ["data/manifest.jsonl", "gvm-prep crawl-manifest"]),
        (["encode"], ["data/manifest.jsonl", "gvm-prep crawl-manifest"]),
        (["encode", "--dry-run"], ["data/manifest.jsonl", "gvm-prep crawl-manifest"]),
        (["status"], ["data/plan.jsonl", "gvm-prep encode"]),
        (["verify"], ["data/shards", "gvm-prep encode"]),
    ],
)
def test_without_its_input_a_command_says_where_it_looked_and_what_makes_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = gvm_prep(capsys, *arguments)
    assert code == ExitCode.INPUT
    assert len(output.splitlines()) == 1
    assert all(word in output for word in words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--shards", "9-1"], "9-1 runs backwards"), (["--preset", "giant"], "known: pocket, small, large")],
)
def test_settings_that_are_none_are_refused_in_one_line(
    data: DataFolder, capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    code, output = gvm_prep(capsys, "encode", "--dry-run", *arguments)
    assert (code, len(output.splitlines())) == (ExitCode.INPUT, 1)
    assert word in output


def test_status_counts_what_is_complete_missing_and_failed_and_why(
    data: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(data.manifest, map(segment, range(4)))
    code, output = gvm_prep(capsys, "status")
    assert code == ExitCode.OK
    for line in (
        "2 of 3 planned shards are complete",
        "missing     1 shards",
        "unplanned   1 segments",
        "failed      1 segments (1 permanent)",
        "1 x frames: is cut short",
    ):
        assert line in output


def test_status_names_a_shard_that_is_not_as_planned(
    data: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data.shards / "000000.json"
    path.write_bytes(replace(ShardRecord.load(path), plan_hash="another").to_bytes())
    assert "000000.tar: plan_hash: found 'another'" in gvm_prep(capsys, "status")[1]


def test_status_says_what_a_crawl_contradicts_and_the_command_that_mends_it(
    data: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "refused" not in gvm_prep(capsys, "status")[1]
    write_manifest(data.manifest, map(segment, range(1, 4)))  # of the complete shard 0, the segment is gone
    code, output = gvm_prep(capsys, "status")
    assert code == ExitCode.OK
    assert "refused     shard 0 is finished, and the manifest now says otherwise" in output
    assert "gvm-prep encode --shards 0 --force" in output
    assert "unplanned   1 segments" in output


def test_a_dry_run_tells_shards_segments_hours_and_bytes(
    data: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = gvm_prep(capsys, "encode", "--dry-run", "--preset", "pocket", "--shards", "1-99")
    assert code == ExitCode.OK
    assert "chosen     2 shards, 2 segments" in output
    assert "to encode  1 shards, 1 segments" in output
    assert "disk       0.00 GB" in output


def test_verify_passes_sound_shards_and_names_the_sample_of_a_flipped_bit(
    data: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gvm_prep(capsys, "verify", "--deep")[0] == ExitCode.OK
    tar = data.shards / "000000.tar"
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    code, output = gvm_prep(capsys, "verify", "--deep")
    assert code == ExitCode.FAILED
    assert f"sample {segment(0).key}" in output
    assert gvm_prep(capsys, "verify")[0] == ExitCode.OK  # sizes and headers are as they were


def test_verify_needs_no_manifest(data: DataFolder, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move(data.shards, "elsewhere/shards")
    assert gvm_prep(capsys, "verify", "--data", "elsewhere")[0] == ExitCode.OK


def test_planning_twice_says_the_same(data: DataFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = data.plan.read_bytes()
    assert "3 shards, 3 segments" in gvm_prep(capsys, "plan")[1]
    assert data.plan.read_bytes() == before
