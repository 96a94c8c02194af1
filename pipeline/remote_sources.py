"""Sources that a crawl fetched from an object store, fetched again where an encoder's machine lacks them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from pipeline.failures import SegmentError
from pipeline.manifest import Source
from pipeline.offers import remote
from pipeline.sources import sha256_of

_one_at_a_time = threading.Lock()  # segments of one film are read by several threads


def bring_back(source: Source, path: Path) -> None:
    """Make sure that a source from an object store is on this machine, with the content that was crawled.

    Any other source is left as it is. Raises SegmentError.
    """
    location = source.about.get("location", "")
    if (
        not remote.is_remote(location) or path.stem != source.source_sha256
    ):  # such a file has its hash for name
        return
    with _one_at_a_time:
        if not path.exists():
            _fetch(location, source, path)


def _fetch(location: str, source: Source, path: Path) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        store, place = remote.open_store(location)
        store.get_file(place, str(aside))
        if sha256_of(aside) != source.source_sha256:
            raise SegmentError(
                "source", "permanent", f"{location}: it changed since the crawl. Run: gvm-prep crawl-manifest"
            )
        os.utime(aside, ns=(source.source_mtime_ns, source.source_mtime_ns))  # known at a glance from now on
        aside.rename(path)
    except SegmentError:
        raise
    except Exception as error:  # every store raises errors of its own
        raise SegmentError(
            "source", "transient", f"{location}: cannot be fetched: {' '.join(str(error).split())}"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
