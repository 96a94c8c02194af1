"""Folders in object stores, through fsspec."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from pipeline.offers.candidate import DEFERRED, FAILED, Candidate, Offer, Problem
from pipeline.sources import VIDEO_SUFFIXES

STORES = ("s3", "gs", "gcs", "az", "abfs", "hf", "memory")  # never file: or ftp:, never a chain of protocols


def is_remote(spec: str) -> bool:
    return "://" in spec and spec.split("://")[0].lower() in STORES


def open_store(url: str):  # type: ignore[no-untyped-def]  # fsspec has no types
    """(file system, path) of a URL in an object store. ValueError says what is missing or not allowed."""
    import fsspec

    protocol = url.split("://")[0].lower()
    if protocol not in STORES or "::" in url:
        raise ValueError(f"{url}: not an object store; known: {', '.join(STORES)}")
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{url}: {error}") from error


def read_remote(spec: str) -> Iterator[Offer]:
    """Candidates of the videos below a remote folder, or of one remote file."""
    try:
        store, root = open_store(spec)
        paths = [root] if store.isfile(root) else sorted(store.find(root))
    except (OSError, ValueError) as error:
        yield Problem(
            location=spec,
            origin="the command line",
            reason=f"{spec}: cannot be listed: {error}",
            status=DEFERRED if isinstance(error, OSError) else FAILED,
        )
        return
    videos = [path for path in paths if PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES]
    if not videos:
        yield Problem(location=spec, origin="the command line", reason=f"{spec}: no videos in it")
    for path in videos:
        yield Candidate(
            location=store.unstrip_protocol(path), origin=spec, source_name=PurePosixPath(root).name or spec
        )
