"""Single files on the web, and videos, playlists and channels of platforms through yt-dlp (an extra)."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pipeline.addresses import check_url
from pipeline.download import Access, DeferredError, FailedError, shown
from pipeline.offers.candidate import DEFERRED, FAILED, Candidate, Offer, Problem
from pipeline.sources import VIDEO_SUFFIXES

MUSIC_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus")
HOW_TO_INSTALL = "pip install 'gvmgen[platforms]'"
LISTING_S = 600.0


def is_file_url(url: str) -> bool:
    """Whether the URL's path ends like a media file; anything else is a page."""
    return PurePosixPath(urlsplit(url).path).suffix.lower() in (*VIDEO_SUFFIXES, *MUSIC_SUFFIXES)


def is_installed() -> bool:
    return importlib.util.find_spec("yt_dlp") is not None


def read_url(url: str, access: Access) -> Iterator[Offer]:
    """The file behind a URL, or every video of a platform's page, playlist or channel."""
    check_url(url, access.limits.allow_private)
    if is_file_url(url) or not is_installed():
        yield Candidate(location=url, origin=url, source_name=urlsplit(url).hostname or url)
        return
    try:
        rows = ask_child({"action": "list", "url": url}, access, LISTING_S)
    except (DeferredError, FailedError) as error:
        status = DEFERRED if isinstance(error, DeferredError) else FAILED
        yield Problem(location=url, origin=url, reason=str(error), status=status)
        return
    for row in rows:
        if row.get("url"):
            site = str(row.get("site") or urlsplit(url).hostname)
            yield Candidate(
                location=row["url"], origin=url, source_name=site, groups=(f"video:{site}:{row['id']}",)
            )


def fetch_page(url: str, folder: Path, access: Access) -> tuple[list[Path], dict[str, Any]]:
    """Fetch a platform's video into `folder`: (its files: whole, or picture and sound, its metadata).

    Raises DeferredError where the platform wants us to wait, FailedError where there is no such video.
    """
    if not is_installed():
        raise FailedError(f"{shown(url)}: a platform's page; needs yt-dlp. Run: {HOW_TO_INSTALL}")
    rows = ask_child({"action": "fetch", "url": url, "folder": str(folder)}, access, access.limits.deadline_s)
    files = [Path(name) for row in rows for name in row.get("files", ())]
    if not files:
        raise FailedError(f"{shown(url)}: no video there that fits the limits (length, size, not live)")
    return files, rows[-1]["metadata"]


def ask_child(request: Mapping[str, Any], access: Access, timeout_s: float) -> list[dict[str, Any]]:
    """Run yt-dlp in a process of its own, which may only connect where `addresses` allows. Returns its
    rows."""
    with tempfile.TemporaryDirectory(prefix="gvm-prep-") as scratch:
        limits = access.limits
        limit_row = {
            "allow_private": limits.allow_private,
            "max_bytes": limits.max_bytes,
            "max_duration_s": limits.max_duration_s,
            "timeout_s": limits.timeout_s,
            "cookies": _own_copy(access.cookies, Path(scratch)),
        }
        command = [sys.executable, "-m", "pipeline.offers.platform_child"]
        try:
            child = subprocess.run(
                command,
                input=json.dumps({**request, **limit_row}),
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DeferredError(f"{shown(request['url'])}: no answer in {timeout_s:g} s") from error
    return _rows(child, request["url"])


def _own_copy(cookies: Path | None, scratch: Path) -> str | None:
    """yt-dlp writes its cookies file back, so it gets a copy; the user's stays as it is."""
    if cookies is None:
        return None
    copy = scratch / "cookies.txt"
    shutil.copyfile(cookies, copy)
    copy.chmod(0o600)
    return str(copy)


def _rows(child: subprocess.CompletedProcess[str], url: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    problem = next((row for row in rows if "problem" in row), None)
    if problem:
        error = DeferredError if problem["deferred"] else FailedError
        raise error(f"{shown(url)}: {problem['problem']}")
    if child.returncode:
        raise FailedError(
            f"{shown(url)}: yt-dlp ended with {child.returncode}: {child.stderr[-500:].strip()}"
        )
    return rows
