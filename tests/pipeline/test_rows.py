"""The manifest's rows by key, read from the disk when they are asked for."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.manifest import Segment, write_manifest
from pipeline.rows import ManifestRows
from tests.pipeline.made_segments import segment


def made(count: int) -> list[Segment]:
    return [replace(segment(number), source=f"été/{number}.mp4") for number in range(1, count + 1)]


def manifest(folder: Path, segments: list[Segment]) -> Path:
    path = folder / "manifest.jsonl"
    write_manifest(path, segments)
    return path


def test_rows_are_the_manifests_by_key_and_in_order(tmp_path: Path) -> None:
    segments = made(50)
    rows = ManifestRows(manifest(tmp_path, segments))
    assert list(rows.in_order()) == segments
    assert dict(rows) == {one.key: one for one in segments}
    assert "not there" not in rows
    assert rows.get("not there") is None


def test_dropped_rows_are_not_there(tmp_path: Path) -> None:
    kept, dropped = made(2)
    rows = ManifestRows(manifest(tmp_path, [replace(dropped, dropped="silence"), kept]))
    assert list(rows) == [kept.key]


def test_rows_whose_hashes_collide_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.rows.hash", lambda key: len(key), raising=False)
    segments = made(20)
    rows = ManifestRows(manifest(tmp_path, segments))
    assert [rows[one.key] for one in reversed(segments)] == segments[::-1]
    assert segments[0].key[:-1] + "x" not in rows


def test_rows_stay_what_they_were_when_the_manifest_is_replaced(tmp_path: Path) -> None:
    segments = made(20)
    path = manifest(tmp_path, segments)
    rows = ManifestRows(path)
    write_manifest(path, [replace(one, group="another") for one in segments[5:]])
    assert [rows[one.key] for one in segments] == segments


def test_a_damaged_row_is_named_when_the_manifest_is_opened(tmp_path: Path) -> None:
    path = manifest(tmp_path, made(2))
    path.write_text(path.read_text() + '{"key": 1\n')
    with pytest.raises(ValueError, match=r"manifest\.jsonl: line 3 is no JSON"):
        ManifestRows(path)


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    segments = made(5)
    twin = replace(segments[2], group="another")
    with pytest.raises(ValueError, match=rf"the key {twin.key} is there twice\. Leave one"):
        ManifestRows(manifest(tmp_path, [*segments, twin]))
    rows = ManifestRows(manifest(tmp_path, [*segments, replace(twin, dropped="silence")]))
    assert rows[twin.key] == segments[2]


def test_the_manifests_file_is_closed(tmp_path: Path) -> None:
    with ManifestRows(manifest(tmp_path, made(2))) as rows:
        assert len(list(rows)) == 2
    with pytest.raises(ValueError, match="closed"):
        list(rows)


def test_an_empty_manifest_has_no_rows(tmp_path: Path) -> None:
    rows = ManifestRows(manifest(tmp_path, []))
    assert (len(rows), list(rows.in_order())) == (0, [])
    assert "a" not in rows


def test_many_rows_take_little_memory(tmp_path: Path) -> None:
    path = manifest(tmp_path, made(5000))
    tracemalloc.start()
    rows = ManifestRows(path)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 5000
    assert held < 5000 * 64
