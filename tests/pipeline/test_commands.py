"""What a person types to gather, filter and look at a set."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from tests.pipeline.made_videos import make_video


def test_the_commands_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_video(tmp_path / "data" / "videos" / "MV" / "a.mp4", 6)
    (tmp_path / "data" / "sources.txt").write_text("ftp://a.example/b.mp4\n")
    monkeypatch.chdir(tmp_path)
    outputs = []
    for arguments in (
        ["crawl-manifest"],
        ["filter", "--score", "silence,loudness", "--keep", "silence < 0.5"],
        ["crawl-manifest"],
        ["report", "--samples", "1"],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (arguments, result.output, result.exception)
        outputs.append(result.output)
    assert "1 segments of 1 videos" in outputs[0]
    assert "left out, failed" in outputs[0]
    assert "kept                           1 segments" in outputs[1]
    assert "keep: silence < 0.5" in outputs[2]  # still in force
    assert (tmp_path / "data" / "report.html").is_file()
    assert "MV" in (tmp_path / "data" / "report.json").read_text()
