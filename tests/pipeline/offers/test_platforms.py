"""yt-dlp in its guarded process, against a real server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.download import Access, DeferredError, FailedError, Limits
from pipeline.fetch import Fetched, Fetcher
from pipeline.offers.candidate import Candidate, Problem
from pipeline.offers.platform_child import METADATA, WAIT_SIGNS
from pipeline.offers.platforms import fetch_page, is_file_url, read_url
from pipeline.rates import SiteRates
from tests.pipeline.made_server import Site, serving
from tests.pipeline.made_videos import make_video

pytest.importorskip("yt_dlp", reason="yt-dlp reads platforms' pages")
OPEN = Access(limits=Limits(allow_private=True, timeout_s=5, deadline_s=300))
CLOSED = Access(limits=replace(OPEN.limits, allow_private=False))
QUICK = SiteRates(per_minute=60_000, burst=100)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    video = make_video(tmp_path / "a.mp4", 2).read_bytes()
    page = b'<html><head><title>T</title></head><body><video src="/good/a.mp4"></video></body></html>'
    feed = (
        b'<?xml version="1.0"?><rss version="2.0"><channel><title>C</title>'
        b"<item><title>1</title><link>URL/good/one</link></item>"
        b"<item><title>2</title><link>URL/good/two</link></item></channel></rss>"
    )
    with serving(Site({"a.mp4": video, "page": page})) as site:
        site.files["feed"] = feed.replace(b"URL", site.url.encode())
        yield site


def test_a_pages_video_is_fetched_and_kept_by_content(site: Site, tmp_path: Path) -> None:
    candidate = Candidate(location=f"{site.url}/good/page", origin="a test", source_name="test")
    result = Fetcher(tmp_path / "fetched", OPEN, QUICK).fetch(candidate)
    assert isinstance(result, Fetched), result
    assert result.path.read_bytes() == site.files["a.mp4"]
    assert set(result.metadata) <= set(METADATA)


def test_a_playlist_becomes_one_candidate_a_video(site: Site) -> None:
    found = list(read_url(f"{site.url}/good/feed", OPEN))
    assert [c.location for c in found if isinstance(c, Candidate)] == [
        f"{site.url}/good/one",
        f"{site.url}/good/two",
    ]


def test_without_permission_the_child_connects_nowhere_private(site: Site, tmp_path: Path) -> None:
    """The page's address would pass the first check if its name were public; the connection itself is
    refused."""
    url = site.url.replace("http://127.0.0.1", "http://localtest.invalid")
    with pytest.raises((FailedError, DeferredError)):
        fetch_page(url, tmp_path, CLOSED)
    with pytest.raises(FailedError, match=r"private address|unusual port"):
        fetch_page(f"{site.url}/good/page", tmp_path, CLOSED)
    assert site.requests == []


def test_the_guard_stops_connections_and_programs_after_it_is_set() -> None:
    import subprocess
    import sys

    program = (
        "import socket, subprocess\n"
        "from pipeline.offers.platform_child import guard\n"
        "guard(allow_private=False)\n"
        "for attempt in (lambda: socket.create_connection(('127.0.0.1', 9)),\n"
        "                lambda: subprocess.run(['true']),\n"
        "                lambda: __import__('os').system('true'), lambda: __import__('curl_cffi')):\n"
        "    try:\n"
        "        attempt()\n"
        "    except (ValueError, ImportError, PermissionError) as error:\n"
        "        print('stopped', type(error).__name__)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.count("stopped") == 4


def test_a_page_without_a_video_fails_with_words(site: Site, tmp_path: Path) -> None:
    site.files["page"] = b"<html><body>nothing here</body></html>"
    with pytest.raises(FailedError, match=r"nsupported URL|no video"):
        fetch_page(f"{site.url}/good/page", tmp_path, OPEN)


def test_a_site_that_asks_to_wait_defers_the_row(site: Site, tmp_path: Path) -> None:
    candidate = Candidate(location=f"{site.url}/busy/page", origin="a test", source_name="test")
    result = Fetcher(tmp_path / "fetched", OPEN, SiteRates(per_minute=60_000)).fetch(candidate)
    assert isinstance(result, Problem)
    assert result.status == "deferred"


def test_the_users_cookies_stay_as_they_are_and_are_told_nowhere(site: Site, tmp_path: Path) -> None:
    cookies = tmp_path / "cookies.txt"
    text = "# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tsession\tsecret-value\n"
    cookies.write_text(text)
    access = replace(OPEN, cookies=cookies)
    candidate = Candidate(location=f"{site.url}/good/page", origin="a test", source_name="test")
    assert isinstance(Fetcher(tmp_path / "fetched", access, QUICK).fetch(candidate), Fetched)
    assert cookies.read_text() == text
    assert "secret-value" not in (tmp_path / "fetched" / "ledger.jsonl").read_text()


def test_metadata_on_the_whitelist_names_no_person() -> None:
    assert not {"uploader", "channel", "creator", "description", "comments", "title"} & set(METADATA)


def test_a_bot_check_is_a_reason_to_wait() -> None:
    assert any(sign in "sign in to confirm you're not a bot" for sign in WAIT_SIGNS)


@pytest.mark.parametrize(
    ("url", "is_file"),
    [
        ("https://a.example/x.mp4", True),
        ("https://a.example/x.MP4?y=1", True),
        ("https://a.example/x", False),
    ],
)
def test_a_file_is_told_from_a_page_by_its_path(url: str, is_file: bool) -> None:
    assert is_file_url(url) is is_file
