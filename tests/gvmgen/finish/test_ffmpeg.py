"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from gvmgen.finish.ffmpeg import whole_file


def test_what_a_killed_process_of_the_same_id_left_does_not_hinder(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    (tmp_path / f".out.wav.{os.getpid()}.tmp").write_text("half")  # in a container, ids come again
    with whole_file(path) as aside:
        aside.write_text("whole")
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]
