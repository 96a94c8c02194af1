"""From folders of files to the manifest's rows."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.crawl import crawl, left_out_path
from pipeline.cutting import CrawlConfig, Piece, cut
from pipeline.manifest import Source, read_manifest, source_path, split_of
from pipeline.sources import LeftOut
from tests.pipeline.made_videos import make_video

CONFIG = CrawlConfig()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good videos, one of them twice, and one of each kind that is left out."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "a.mp4", 6, 440)
    make_video(folder / "deep" / "b.mkv", 7, 550)
    shutil.copy(folder / "a.mp4", folder / "copy of a.mp4")
    make_video(folder / "mute.mp4", sound=False)
    make_video(folder / "radio.mp4", picture=False)
    make_video(folder / "short.mp4", 2)
    (folder / "empty.mp4").touch()
    (folder / "notes.mp4").write_text("no video at all")
    (folder / "README.md").write_text("no video by its name")
    (folder / ".hidden.mp4").write_text("never looked at")
    return folder


def source(duration_s: float) -> Source:
    return Source(
        source="a.mp4",
        source_size=1,
        source_mtime_ns=1,
        source_sha256="ab" * 32,
        source_duration_s=duration_s,
    )


def spans(duration_s: float, config: CrawlConfig = CONFIG) -> list[tuple[int, float]]:
    return [(s.start_s, s.duration_s) for s in cut(source(duration_s), config) if isinstance(s, Piece)]


def test_every_file_gives_segments_or_a_reason(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "manifest.jsonl"
    crawl([videos], out, CONFIG)
    kept = {Path(s.source).name: s.duration_s for s in read_manifest(out)}
    assert {name: round(duration_s) for name, duration_s in kept.items()} == {"a.mp4": 6, "b.mkv": 7}
    reasons = {Path(r["source"]).name: r["reason"] for r in map(json.loads, left_out_path(out).open())}
    assert reasons == {
        "copy of a.mp4": "duplicate",
        "mute.mp4": "no sound",
        "radio.mp4": "no picture",
        "short.mp4": "too short",
        "empty.mp4": "unreadable",
        "notes.mp4": "unreadable",
        "README.md": "no video by its name",
    }


def test_keys_splits_and_shards_depend_on_content_alone(videos: Path, tmp_path: Path) -> None:
    shutil.copytree(videos, tmp_path / "data" / "renamed")
    crawl([videos], tmp_path / "manifest.jsonl", CONFIG)
    crawl([tmp_path / "data" / "renamed"], tmp_path / "data" / "manifest.jsonl", CONFIG)
    here = [(s.identity, s.shard) for s in read_manifest(tmp_path / "manifest.jsonl")]
    assert here == [(s.identity, s.shard) for s in read_manifest(tmp_path / "data" / "manifest.jsonl")]


def test_sources_inside_the_manifests_folder_are_named_relative_to_it(videos: Path, tmp_path: Path) -> None:
    shutil.copytree(videos, tmp_path / "data" / "videos")
    out = tmp_path / "data" / "manifest.jsonl"
    crawl([tmp_path / "data" / "videos" / "a.mp4"], out, CONFIG)
    (segment,) = read_manifest(out)
    assert segment.source == "videos/a.mp4"
    moved = (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert source_path(moved / "manifest.jsonl", segment).is_file()


def test_a_second_crawl_reads_only_what_changed(videos: Path, tmp_path: Path) -> None:
    folder, out = shutil.copytree(videos, tmp_path / "videos"), tmp_path / "manifest.jsonl"
    first = crawl([folder], out, CONFIG)
    before = out.read_bytes()
    again = crawl([folder], out, CONFIG)
    assert first.num_read == 8
    assert again.num_read == 2  # the unreadable ones: what cannot be read today may be tomorrow
    assert out.read_bytes() == before
    make_video(folder / "a.mp4", 8, 660)
    make_video(folder / "new.mp4", 8, 770)
    assert crawl([folder], out, CONFIG).num_read == again.num_read + 2


def test_a_killed_crawl_goes_on_where_it_was(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "manifest.jsonl"
    monkeypatch.setattr("pipeline.crawl._write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        crawl([videos], out, CONFIG)
    monkeypatch.undo()
    assert not out.exists()
    assert crawl([videos], out, CONFIG).num_read == 2  # the unreadable ones


def test_append_keeps_the_sources_of_before_and_a_plain_crawl_does_not(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "manifest.jsonl"
    crawl([videos / "a.mp4"], out, CONFIG)
    crawl([videos / "deep"], out, CONFIG, append=True)
    assert len(list(read_manifest(out))) == 2
    crawl([videos / "deep"], out, CONFIG)
    assert len(list(read_manifest(out))) == 1


def test_patterns_files_and_folders_mix_and_a_file_counts_once(videos: Path, tmp_path: Path) -> None:
    result = crawl([videos / "**" / "*.mkv", videos / "deep", videos / "a.mp4"], tmp_path / "m.jsonl", CONFIG)
    assert result.num_files == 2


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        crawl([tmp_path / "nowhere"], tmp_path / "manifest.jsonl", CONFIG)


def test_a_folder_without_videos_is_refused_with_the_names_that_count(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    with pytest.raises(
        ValueError, match=r"no video there; 1 problems, the first: a video's name ends in .*\.mp4"
    ):
        crawl([tmp_path], tmp_path / "manifest.jsonl", CONFIG)


def test_where_nothing_is_kept_the_old_manifest_stays(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "manifest.jsonl"
    crawl([videos / "a.mp4"], out, CONFIG)
    before = out.read_bytes(), left_out_path(out).read_bytes()
    with pytest.raises(ValueError, match=r"gives a segment: .*no sound.*stays as it was"):
        crawl([videos / "mute.mp4"], out, CONFIG)
    assert (out.read_bytes(), left_out_path(out).read_bytes()) == before


def test_a_long_source_is_cut_and_its_short_rest_left_out() -> None:
    assert spans(64.5) == [(0, 30), (30, 30)]
    rest = list(cut(source(64.5), CONFIG))[-1]
    assert isinstance(rest, LeftOut)
    assert (rest.reason, rest.start_s, rest.duration_s) == ("too short", 60, 4.5)


def test_a_rest_that_is_long_enough_is_kept_shorter() -> None:
    assert spans(45.25) == [(0, 30), (30, 15.25)]


def test_segments_may_overlap_and_none_repeats_the_end_of_another() -> None:
    assert spans(50, CrawlConfig(stride_s=10)) == [(0, 30), (10, 30), (20, 30)]


def test_a_fifteen_second_video_is_kept_whole() -> None:
    assert spans(15.05) == [(0, 15.05)]


def test_the_split_is_near_its_share_and_stays_when_sources_are_added() -> None:
    splits = [split_of(str(group), 0.15, seed=0) for group in range(4000)]
    assert 0.13 < splits.count("test") / len(splits) < 0.17
    assert splits != [split_of(str(group), 0.15, seed=1) for group in range(4000)]


def test_file_names_that_are_no_text_survive(videos: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n\xff.mp4")
    shutil.copy(videos / "a.mp4", tmp_path / name)
    out = tmp_path / "manifest.jsonl"
    crawl([tmp_path], out, CONFIG)
    (segment,) = read_manifest(out)
    assert source_path(out, segment).is_file()


@pytest.mark.parametrize(
    "wrong", [{"segment_s": 0}, {"stride_s": 0}, {"min_s": 31.0}, {"num_shards": 0}, {"test_share": 1.5}]
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CrawlConfig(**wrong)  # type: ignore[arg-type]
