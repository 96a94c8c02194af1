"""From a candidate to files on disk: whole, once, named by their content.

    data/fetched/ledger.jsonl            one row an attempt; the last one of a location counts
    data/fetched/3f/3fa1….mp4            what was fetched
    data/fetched/partial/<hash>/         what a download left when it broke off

A site that asks to wait is left alone for the rest of the run, and its rows are `deferred`; a later run
tries them again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.addresses import RefusedAddressError
from pipeline.containers import media_suffix, what_it_is
from pipeline.download import Access, DeferredError, FailedError, Limits, download, shown
from pipeline.jsonl import append_row, mend_journal, read_journal
from pipeline.offers import platforms, remote
from pipeline.offers.candidate import DEFERRED, Candidate, Offer, Problem
from pipeline.parallel import bounded_map
from pipeline.rates import SiteRates

LONG_WAIT_S = 3600.0  # how long a site that asked to wait is left alone, where it does not say
NUM_THREADS = 8


@dataclass(frozen=True)
class Fetched:
    """A candidate with its video on disk."""

    candidate: Candidate
    path: Path
    metadata: dict[str, Any]


class Fetcher:
    """Fetches candidates into a folder; what is there already is not asked for again."""

    def __init__(self, folder: Path, access: Access | None = None, rates: SiteRates | None = None) -> None:
        self._folder, self._access = folder, access or Access()
        self._rates = rates or SiteRates()
        self._ledger = folder / "ledger.jsonl"
        mend_journal(self._ledger)
        self._known = {row["location"]: row for row in read_journal(self._ledger)}
        self._lock = threading.Lock()
        self._holders: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # by location

    def fetch_all(self, offers: Iterable[Offer]) -> Iterator[Fetched | Problem]:
        """Each offer fetched, or why not; in no order, a few at a time, whatever the number of offers."""
        yield from bounded_map(self.fetch, offers, NUM_THREADS, is_quick=_is_here)

    def fetch(self, offer: Offer) -> Fetched | Problem:
        """One offer. A Problem names what is wrong; only a full disk or a bug raises."""
        if isinstance(offer, Problem):
            return offer
        try:
            picture, metadata = self._local(offer.location)
            if offer.music is None:
                return Fetched(offer, picture, metadata)
            music, _ = self._local(offer.music)
            return Fetched(offer, self._joined(picture, music), metadata)
        except DeferredError as error:
            return Problem(location=offer.location, origin=offer.origin, reason=str(error), status=DEFERRED)
        except (FailedError, RefusedAddressError) as error:
            return Problem(location=offer.location, origin=offer.origin, reason=str(error))

    def _local(self, location: str) -> tuple[Path, dict[str, Any]]:
        """The location as a file on disk."""
        if "://" not in location:
            return _existing(Path(location)), {}
        with self._lock:
            holder = self._holders[location]
        with holder:  # two rows may name one location
            known = self._known.get(location, {})
            if known.get("status") == "fetched" and (self._folder / known["path"]).is_file():
                return self._folder / known["path"], known["metadata"]
            if known.get("status") == "failed":
                raise FailedError(known["reason"])
            return self._fetch_new(location)

    def _fetch_new(self, location: str) -> tuple[Path, dict[str, Any]]:
        if self._rates.is_closed(location):
            raise DeferredError(f"{shown(location)}: the site asked to wait")
        part = self._folder / "partial" / hashlib.sha256(location.encode()).hexdigest()[:24]
        part.mkdir(parents=True, exist_ok=True)
        try:
            self._rates.wait(location)
            files, metadata = self._receive(location, part)
            files = [_checked_media(file) for file in files]
            path = self._kept(files[0]) if len(files) == 1 else self._joined(files[0], files[1])
        except DeferredError as error:
            if error.wait_s or _asks_to_wait(str(error)):
                self._rates.close(location, error.wait_s or LONG_WAIT_S)
            self._note(location, "deferred", reason=str(error))
            raise
        except RefusedAddressError:  # not noted: another option may allow it
            shutil.rmtree(part)
            raise
        except FailedError as error:
            shutil.rmtree(part)
            self._note(location, "failed", reason=str(error))
            raise
        shutil.rmtree(part)
        self._note(location, "fetched", path=str(path.relative_to(self._folder)), metadata=metadata)
        return path, metadata

    def _receive(self, location: str, part: Path) -> tuple[list[Path], dict[str, Any]]:
        """Fetch by the kind of location, into the folder `part`."""
        if remote.is_remote(location):
            return [_from_store(location, part / "file", self._access.limits)], {}
        if platforms.is_file_url(location) or not platforms.is_installed():
            download(location, part / "file", self._access.limits)
            return [part / "file"], {}
        return platforms.fetch_page(location, part, self._access)

    def _kept(self, file: Path) -> Path:
        """Move a file to its place by content; the same content is kept once."""
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        place = self._folder / digest[:2] / f"{digest}{media_suffix(file)}"
        place.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())
        file.replace(place)
        return place

    def _joined(self, picture: Path, music: Path) -> Path:
        """One file with the picture of the first and the sound of the second, both copied as they are."""
        name = hashlib.sha256(f"{_identity(picture)} {_identity(music)}".encode()).hexdigest()
        place = self._folder / "joined" / f"{name[:32]}.mkv"
        if not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            aside = place.with_suffix(f".{threading.get_ident()}.tmp.mkv")
            _run_join(picture, music, aside)
            aside.replace(place)
        return place

    def _note(self, location: str, status: Literal["fetched", "deferred", "failed"], **values: Any) -> None:
        row = {"location": location, "status": status, **values}
        with self._lock:
            self._known[location] = row
            append_row(self._ledger, row)


def _is_here(offer: Offer) -> bool:
    """Whether there is nothing to fetch and nothing to join."""
    return isinstance(offer, Problem) or ("://" not in offer.location and offer.music is None)


def _checked_media(path: Path) -> Path:
    """The path, or FailedError where its content is no media: a playlist would make a decoder open what
    it names."""
    if media_suffix(path) is None:
        raise FailedError(f"{path.name}: {what_it_is(path)}")
    return path


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FailedError(f"{path}: no such file")
    return path


def _from_store(location: str, file: Path, limits: Limits) -> Path:
    """A file of an object store, within the size limit."""
    try:
        store, path = remote.open_store(location)
        if (size := store.size(path) or 0) > limits.max_bytes:
            raise FailedError(f"{location}: {size} bytes; the limit is {limits.max_bytes}")
        store.get_file(path, str(file))
    except FileNotFoundError as error:
        raise FailedError(f"{location}: no such file") from error
    except ValueError as error:
        raise FailedError(str(error)) from error
    except OSError as error:
        raise DeferredError(f"{location}: {error}") from error
    return file


def _run_join(picture: Path, music: Path, out: Path) -> None:
    from gvmgen.encoders.media import ffmpeg_path

    guarded = ("-protocol_whitelist", "file,pipe")
    command = [
        ffmpeg_path(),
        "-nostdin",
        "-v",
        "error",
        *guarded,
        "-i",
        f"file:{picture}",
        *guarded,
        "-i",
        f"file:{music}",
    ]
    command += ["-map", "0:v:0", "-map", "1:a:0", "-c", "copy", "-shortest", "-y", f"file:{out}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if result.returncode:
        out.unlink(missing_ok=True)
        raise FailedError(f"{picture.name} and {music.name} cannot be joined: {result.stderr[-300:].strip()}")


def _identity(path: Path) -> str:
    stat = path.stat()
    return f"{path.name} {stat.st_size} {stat.st_mtime_ns}"


def _asks_to_wait(reason: str) -> bool:
    return any(sign in reason.lower() for sign in ("429", "bot", "captcha", "too many requests", "rate"))
