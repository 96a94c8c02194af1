"""A source from an object store is fetched again where the machine that encodes lacks it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.crawl import CrawlConfig, crawl
from pipeline.failures import SegmentError
from pipeline.manifest import Segment, read_manifest, source_path
from pipeline.remote_sources import bring_back
from shards.remote import RemotePath, located
from tests.made_store import BUCKET, Store, serving_s3
from tests.pipeline.made_videos import make_video


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serving_s3() as store:
        yield store


@pytest.fixture
def film(store: Store, tmp_path: Path) -> RemotePath:
    """A video in the store."""
    film = located(f"s3://{BUCKET}/{tmp_path.name}/film.mp4")
    assert isinstance(film, RemotePath)
    film.upload(make_video(tmp_path / "film.mp4", 2))
    return film


@pytest.fixture
def crawled(film: RemotePath, tmp_path: Path) -> tuple[Segment, Path]:
    """Its segment and where it was fetched to; the file itself is gone, as on another machine."""
    manifest = tmp_path / "data" / "manifest.jsonl"
    crawl([str(film)], manifest, CrawlConfig(segment_s=2, min_s=1.0))
    (segment,) = read_manifest(manifest)
    path = source_path(manifest, segment)
    shutil.rmtree(tmp_path / "data" / "fetched")
    return segment, path


def test_the_source_is_there_again_as_it_was_crawled(crawled: tuple[Segment, Path], film: RemotePath) -> None:
    segment, path = crawled
    bring_back(segment, path)
    assert path.read_bytes() == film.read_bytes()
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (segment.source_size, segment.source_mtime_ns)
    film.unlink()
    bring_back(segment, path)  # it is here: nobody asks the store
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_source_that_changed_in_the_store_is_refused(
    crawled: tuple[Segment, Path], film: RemotePath
) -> None:
    film.write_bytes(film.read_bytes() + b"more")
    with pytest.raises(SegmentError, match=r"s3://.*film\.mp4: it changed since the crawl") as caught:
        bring_back(*crawled)
    assert caught.value.kind == "permanent"
    assert not list(crawled[1].parent.iterdir())


def test_a_store_that_does_not_answer_may_do_so_later(
    crawled: tuple[Segment, Path], film: RemotePath
) -> None:
    film.unlink()
    with pytest.raises(SegmentError, match=r"s3://.*film\.mp4: cannot be fetched") as caught:
        bring_back(*crawled)
    assert caught.value.kind == "transient"
