"""sources.txt, folders and object stores."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from pipeline.download import Access
from pipeline.offers.candidate import Candidate, Problem
from pipeline.offers.read import read_offers, read_sources_file


def test_a_folder_below_the_named_one_is_the_kind(tmp_path: Path) -> None:
    for name in ("MV/a.mp4", "movie/deep/b.mkv", "c.mp4", "MV/notes.txt", ".hidden/d.mp4"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    offers = list(read_offers([str(tmp_path / "set")], Access()))
    found = {Path(o.location).name: o.kind for o in offers if isinstance(o, Candidate)}
    assert found == {"a.mp4": "MV", "b.mkv": "movie", "c.mp4": None}
    assert [Path(o.location).name for o in offers if isinstance(o, Problem)] == ["notes.txt"]


def test_a_named_source_that_is_not_there_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        list(read_offers([str(tmp_path / "nowhere")], Access()))


def test_sources_of_a_file_carry_its_labels_and_bad_lines_are_named(tmp_path: Path) -> None:
    (tmp_path / "my films").mkdir()
    (tmp_path / "my films" / "a.mp4").touch()
    (tmp_path / "sources.txt").write_text(
        "# what we train on\n\n"
        "'my films' kind=movie style=ensemble licence=CC-BY-4.0\n"
        "nowhere\n"
        "'my films' colour=red\n"
        "'unclosed\n"
        "file:///etc/passwd\n"
    )
    first, *problems = read_sources_file(tmp_path / "sources.txt", Access())
    assert isinstance(first, Candidate)
    assert (first.kind, first.style, first.licence) == ("movie", "ensemble", "CC-BY-4.0")
    assert [type(p) for p in problems] == [Problem] * 4
    reasons = [p.reason for p in problems if isinstance(p, Problem)]
    assert "sources.txt line 4" in reasons[0]
    assert "'colour'" in reasons[1]


def test_videos_of_a_store_are_offered_with_their_addresses() -> None:
    store = fsspec.filesystem("memory")
    for name in ("a.mp4", "deep/b.MKV", "notes.txt"):
        store.pipe_file(f"/films-here/{name}", b"x")
    offers = list(read_offers(["memory://films-here"], Access()))
    assert [o.location for o in offers] == ["memory:///films-here/a.mp4", "memory:///films-here/deep/b.MKV"]


def test_a_store_without_videos_is_a_problem() -> None:
    fsspec.filesystem("memory").pipe_file("/empty-here/a.txt", b"x")
    (problem,) = read_offers(["memory://empty-here"], Access())
    assert isinstance(problem, Problem)
