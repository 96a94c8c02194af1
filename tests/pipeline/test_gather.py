"""Sources of every kind in one crawl: files, lists, addresses; what fails is a row, what is labelled stays
labelled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.crawl import crawl, left_out_path
from pipeline.cutting import CrawlConfig
from pipeline.download import Access, Limits
from pipeline.jsonl import read_rows
from tests.pipeline.made_server import Site, serving
from tests.pipeline.made_videos import make_video

OPEN = Access(limits=Limits(allow_private=True, timeout_s=2))
CONFIG = CrawlConfig()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(("MV/a.mp4", "b.mp4", "c.mp4")):
        make_video(folder / name, 6, 300 + 100 * number)
    return folder


@pytest.fixture
def site(videos: Path) -> Iterator[Site]:
    with serving(Site({"c.mp4": (videos / "c.mp4").read_bytes()})) as site:
        yield site


def rows(out: Path) -> list[dict[str, Any]]:
    return list(read_rows(out))


def test_local_files_lists_and_addresses_mix(site: Site, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text(
        "video,kind,style,licence,song_id\n"
        f"{videos / 'b.mp4'},movie,Western,CC0,s1\n"
        f"{site.url}/good/c.mp4,vlog,Chinese,CC-BY-4.0,s1\n"
        f"{site.url}/missing/d.mp4,vlog,,,\n"
        f"{site.url}/busy/e.mp4,vlog,,,\n"
        "file:///etc/passwd,vlog,,,\n"
    )
    out = tmp_path / "data" / "manifest.jsonl"
    crawl([str(videos / "MV"), str(tmp_path / "set.csv")], out, CONFIG, access=OPEN)
    about = {row["about"].get("kind"): row["about"] for row in rows(out)}
    assert set(about) == {None, "movie", "vlog"}
    assert about["vlog"]["location"] == f"{site.url}/good/c.mp4"
    assert (about["vlog"]["style"], about["vlog"]["licence"]) == ("Chinese", "CC-BY-4.0")
    reasons = {row["source"][-6:]: row["reason"] for row in read_rows(left_out_path(out))}
    assert reasons == {"/d.mp4": "failed", "/e.mp4": "deferred", "passwd": "failed"}


def test_videos_of_one_song_share_group_and_split(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text(f"video,song_id\n{videos / 'b.mp4'},s1\n{videos / 'c.mp4'},s1\n")
    out = tmp_path / "manifest.jsonl"
    crawl([str(tmp_path / "set.csv")], out, CONFIG, access=OPEN)
    assert {row["group"] for row in rows(out)} == {"song:set:s1"}


def test_published_splits_are_used_when_asked_for(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text(f"video,split\n{videos / 'b.mp4'},test\n{videos / 'c.mp4'},train\n")
    out = tmp_path / "manifest.jsonl"
    crawl([str(tmp_path / "set.csv")], out, CrawlConfig(published_splits=True), access=OPEN)
    assert {Path(row["source"]).name: row["split"] for row in rows(out)} == {
        "b.mp4": "test",
        "c.mp4": "train",
    }


def test_excerpts_of_a_list_are_all_that_is_cut(videos: Path, tmp_path: Path) -> None:
    config = CrawlConfig(segment_s=2, stride_s=2, min_s=1)
    (tmp_path / "set.csv").write_text(f"video,start,end\n{videos / 'b.mp4'},1,4\n{videos / 'b.mp4'},4.5,6\n")
    out = tmp_path / "manifest.jsonl"
    crawl([str(tmp_path / "set.csv")], out, config, access=OPEN)
    assert sorted((row["start_s"], row["duration_s"]) for row in rows(out)) == [(1, 2.0), (3, 1.0), (5, 1.0)]


def test_a_row_that_wants_the_whole_video_wins_over_excerpts(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text(f"video,start\n{videos / 'b.mp4'},3\n{videos / 'b.mp4'},\n")
    out = tmp_path / "manifest.jsonl"
    crawl([str(tmp_path / "set.csv")], out, CrawlConfig(min_s=1), access=OPEN)
    assert [(row["start_s"], row["duration_s"]) for row in rows(out)] == [(0, 6.0)]


def test_sources_beside_the_manifest_are_read_without_being_named(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "sources.txt").write_text(f"{videos / 'b.mp4'} kind=documentary\n")
    out = tmp_path / "manifest.jsonl"
    crawl([], out, CONFIG, access=OPEN)
    assert [row["about"]["kind"] for row in rows(out)] == ["documentary"]


def test_a_second_crawl_fetches_and_reads_nothing(site: Site, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "manifest.jsonl"
    specs = [str(videos), f"{site.url}/good/c.mp4"]
    crawl(specs, out, CONFIG, access=OPEN)
    before = out.read_bytes()
    again = crawl(specs, out, CONFIG, access=OPEN)
    assert again.num_read == 0
    assert len(site.requests) == 1
    assert out.read_bytes() == before


def test_a_deferred_row_is_tried_again_and_joins_the_set(site: Site, videos: Path, tmp_path: Path) -> None:
    site.broken_after = 10
    out = tmp_path / "manifest.jsonl"
    specs = [str(videos / "b.mp4"), f"{site.url}/broken/c.mp4"]
    assert crawl(specs, out, CONFIG, access=OPEN).num_segments.total() == 1
    assert crawl(specs, out, CONFIG, access=OPEN).num_segments.total() == 2


def test_a_playlist_among_the_files_is_named_and_never_opened(
    site: Site, videos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    shutil.copy(videos / "b.mp4", folder)
    (folder / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:6,\n{site.url}/good/c.mp4\n")
    (folder / "concat.mkv").write_text(f"ffconcat version 1.0\nfile '{videos / 'c.mp4'}'\n")
    out = tmp_path / "manifest.jsonl"
    crawl([str(folder)], out, CONFIG, access=OPEN)
    messages = [row["message"] for row in read_rows(left_out_path(out))]
    assert len(messages) == 2
    assert all("a playlist, not a media file" in message for message in messages)
    assert site.requests == []


def test_where_nothing_can_be_used_the_first_problem_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"1 problems, the first: ftp://a.example/x.mp4: ftp: is not allowed"
    ):
        crawl(["ftp://a.example/x.mp4"], tmp_path / "manifest.jsonl", CONFIG, access=OPEN)


def test_a_crawl_notes_no_personal_data(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "manifest.jsonl"
    (tmp_path / "set.jsonl").write_text(
        json.dumps({"video": str(videos / "b.mp4"), "uploader": "Ann Other", "email": "ann@a.example"}) + "\n"
    )
    crawl([str(tmp_path / "set.jsonl")], out, CONFIG, access=OPEN)
    assert "ann" not in out.read_text().lower()
