"""Fetching from a real HTTP server on loopback, and never from where a crawl must not go."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from gvmgen.encoders.media import probe, write_waveform
from pipeline import addresses
from pipeline.addresses import RefusedAddressError, check_address, check_url
from pipeline.download import Access, DeferredError, FailedError, Limits, download
from pipeline.fetch import Fetched, Fetcher
from pipeline.offers.candidate import Candidate, Problem
from pipeline.rates import SiteRates, site_of
from tests.pipeline.made_server import Site, serving
from tests.pipeline.made_videos import make_video

LIMITS = Limits(allow_private=True, timeout_s=2, deadline_s=20)
OPEN = Access(limits=LIMITS)
QUICK = SiteRates(per_minute=60_000, burst=100)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_video(tmp_path_factory.mktemp("video") / "a.mp4", 2).read_bytes()


@pytest.fixture
def site(video: bytes) -> Iterator[Site]:
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    page = b"<!DOCTYPE html><html>hello</html>"
    with serving(
        Site({"a.mp4": video, "b.mp4": video[::-1], "list.mp4": playlist, "page.mp4": page})
    ) as site:
        yield site


def offer(url: str, music: str | None = None) -> Candidate:
    return Candidate(location=url, origin="a test", source_name="test", music=music)


def fetched(fetcher: Fetcher, url: str) -> Fetched:
    result = fetcher.fetch(offer(url))
    assert isinstance(result, Fetched), result
    return result


def problem(fetcher: Fetcher, url: str) -> Problem:
    result = fetcher.fetch(offer(url))
    assert isinstance(result, Problem), result
    return result


def test_a_file_is_fetched_whole_and_named_by_its_content(site: Site, tmp_path: Path, video: bytes) -> None:
    result = fetched(Fetcher(tmp_path, OPEN, QUICK), f"{site.url}/good/a.mp4")
    assert result.path.read_bytes() == video
    assert result.path.suffix == ".mp4"
    assert len(result.path.stem) == 64
    assert not list((tmp_path / "partial").iterdir())


def test_what_was_fetched_is_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    url = f"{site.url}/good/a.mp4"
    first = fetched(Fetcher(tmp_path, OPEN, QUICK), url)
    second = fetched(Fetcher(tmp_path, OPEN, QUICK), url)
    assert first.path == second.path
    assert len(site.requests) == 1


def test_the_same_content_from_two_addresses_is_kept_once(site: Site, tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path, OPEN, QUICK)
    urls = [f"{site.url}/good/a.mp4", f"{site.url}/good/sub/a.mp4"]
    assert len({fetched(fetcher, url).path for url in urls}) == 1


def test_two_rows_with_one_address_make_one_request(site: Site, tmp_path: Path) -> None:
    results = Fetcher(tmp_path, OPEN, QUICK).fetch_all([offer(f"{site.url}/good/a.mp4")] * 6)
    assert all(isinstance(result, Fetched) for result in results)
    assert len(site.requests) == 1


def test_a_broken_download_goes_on_where_it_broke(site: Site, tmp_path: Path, video: bytes) -> None:
    url = f"{site.url}/broken/a.mp4"
    assert problem(Fetcher(tmp_path, OPEN, QUICK), url).status == "deferred"
    assert fetched(Fetcher(tmp_path, OPEN, QUICK), url).path.read_bytes() == video
    assert site.requests == [("/broken/a.mp4", None), ("/broken/a.mp4", "bytes=1000-")]


def test_a_file_that_changed_in_between_is_fetched_anew(site: Site, tmp_path: Path, video: bytes) -> None:
    part = tmp_path / "part"
    with pytest.raises(DeferredError, match="broken off after 1000"):
        download(f"{site.url}/broken/a.mp4", part, LIMITS)
    site.etag, site.files["a.mp4"] = '"two"', video[:500] + b"changed" + video[507:]
    download(f"{site.url}/good/a.mp4", part, LIMITS)
    assert part.read_bytes() == site.files["a.mp4"]


def test_without_a_validator_nothing_is_continued(site: Site, tmp_path: Path, video: bytes) -> None:
    site.etag = 'W/"weak"'
    part = tmp_path / "part"
    with pytest.raises(DeferredError):
        download(f"{site.url}/broken/a.mp4", part, LIMITS)
    download(f"{site.url}/good/a.mp4", part, LIMITS)
    assert part.read_bytes() == video
    assert site.requests[-1] == ("/good/a.mp4", None)


def test_a_server_that_continues_elsewhere_is_not_believed(site: Site, tmp_path: Path, video: bytes) -> None:
    part = tmp_path / "part"
    for _ in range(2):
        with pytest.raises(DeferredError):
            download(f"{site.url}/wrong-range/a.mp4", part, LIMITS)
    assert not part.exists()


def test_a_length_that_lies_is_noticed(site: Site, tmp_path: Path) -> None:
    found = problem(Fetcher(tmp_path, OPEN, QUICK), f"{site.url}/lying-longer/a.mp4")
    assert found.status == "deferred"
    assert "broken off" in found.reason or "IncompleteRead" in found.reason


def test_an_endless_body_stops_at_the_size_limit(site: Site, tmp_path: Path) -> None:
    access = Access(limits=replace(LIMITS, max_bytes=100_000))
    found = problem(Fetcher(tmp_path, access, QUICK), f"{site.url}/endless/a.mp4")
    assert "more than the limit of 100000 bytes" in found.reason
    assert not list((tmp_path / "partial").iterdir())


def test_a_file_too_large_by_its_length_is_not_received(site: Site, tmp_path: Path) -> None:
    access = Access(limits=replace(LIMITS, max_bytes=100))
    assert "the limit is 100" in problem(Fetcher(tmp_path, access, QUICK), f"{site.url}/good/a.mp4").reason


def test_a_slow_body_stops_at_the_deadline_and_keeps_what_came(site: Site, tmp_path: Path) -> None:
    part = tmp_path / "part"
    with pytest.raises(DeferredError, match="not complete after"):
        download(f"{site.url}/slow/a.mp4", part, replace(LIMITS, deadline_s=0.5))
    assert part.stat().st_size > 0


def test_a_server_that_says_nothing_is_deferred(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DeferredError, match="imed out"):
        download(f"{site.url}/stuck/a.mp4", tmp_path / "part", replace(LIMITS, timeout_s=0.3))


def test_a_missing_file_fails_and_is_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    url = f"{site.url}/missing/a.mp4"
    for _ in range(2):
        found = problem(Fetcher(tmp_path, OPEN, QUICK), url)
        assert (found.status, found.reason[-13:]) == ("failed", "404 Not Found")
    assert len(site.requests) == 1


def test_a_site_that_asks_to_wait_is_left_alone_for_the_run(site: Site, tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path, OPEN, SiteRates(per_minute=60_000, burst=100))
    assert problem(fetcher, f"{site.url}/busy/a.mp4").status == "deferred"
    assert problem(fetcher, f"{site.url}/good/a.mp4").status == "deferred"
    assert len(site.requests) == 1
    assert isinstance(Fetcher(tmp_path, OPEN, QUICK).fetch(offer(f"{site.url}/good/a.mp4")), Fetched)


def test_an_unreachable_site_is_deferred_with_words(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    found = problem(Fetcher(tmp_path, OPEN, QUICK), f"http://127.0.0.1:{port}/a.mp4")
    assert found.status == "deferred"
    assert "refused" in found.reason


def test_redirects_are_followed_a_few_times(site: Site, tmp_path: Path, video: bytes) -> None:
    site.redirect_to = "/good/a.mp4"
    download(f"{site.url}/redirect/a.mp4", tmp_path / "part", LIMITS)
    assert (tmp_path / "part").read_bytes() == video
    site.redirect_to = "/redirect/a.mp4"
    with pytest.raises(FailedError, match="more than 5 redirects"):
        download(f"{site.url}/redirect/a.mp4", tmp_path / "other", LIMITS)


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x.mp4", "//", "data:video/mp4,x", ""]
)
def test_a_redirect_to_another_protocol_is_refused(site: Site, tmp_path: Path, target: str) -> None:
    site.redirect_to = target
    with pytest.raises((RefusedAddressError, FailedError)):
        download(f"{site.url}/redirect/a.mp4", tmp_path / "part", LIMITS)
    assert not (tmp_path / "part").exists()


def test_loopback_is_refused_and_gets_no_request(site: Site, tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path, Access(limits=replace(LIMITS, allow_private=False)), QUICK)
    port = site.url.rsplit(":", 1)[1]
    for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "127.1", "[::ffff:127.0.0.1]"):
        assert problem(fetcher, f"http://{host}:{port}/good/a.mp4").status == "failed"
    assert site.requests == []


def test_a_redirect_to_a_private_address_is_refused_after_the_name_is_resolved(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first host counts as public; the one it points to resolves to loopback and is refused
    there."""

    def check(address: str, allow_private: bool = False) -> None:
        if address != "127.0.0.1":
            check_address(address, allow_private)

    monkeypatch.setattr(addresses, "check_address", check)
    monkeypatch.setattr(addresses, "check_url", lambda url, allow_private=False: None)
    monkeypatch.setattr("pipeline.download.check_url", lambda url, allow_private=False: None)
    port = site.url.rsplit(":", 1)[1]
    site.redirect_to = f"http://127.0.0.2:{port}/good/a.mp4"
    with pytest.raises(RefusedAddressError, match=r"127\.0\.0\.2: a private address"):
        download(f"{site.url}/redirect/a.mp4", tmp_path / "part", replace(LIMITS, allow_private=False))
    assert [path for path, _ in site.requests] == ["/redirect/a.mp4"]


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "192.168.1.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "::1",
        "fe80::1%eth0",
        "fd00::1",
        "224.0.0.1",
        "0.0.0.0",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
    ],
)
def test_addresses_outside_the_open_internet_are_refused(address: str) -> None:
    with pytest.raises(RefusedAddressError):
        check_address(address)


def test_public_addresses_are_allowed() -> None:
    check_address("93.184.215.14")
    check_address("2606:2800:21f:cb07:6820:80da:af6b:8b2c")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/x",
        "file:///x",
        "http://",
        "http://u:p@a.example/x",
        "//a",
        "http://a.example:22/",
        "http://[::",
        "http://a.example:99999/",
    ],
)
def test_urls_that_are_no_plain_web_address_are_refused(url: str) -> None:
    with pytest.raises(RefusedAddressError):
        check_url(url)


def test_a_refusal_is_not_remembered_when_the_user_allows_it_later(site: Site, tmp_path: Path) -> None:
    closed = Access(limits=replace(LIMITS, allow_private=False))
    assert problem(Fetcher(tmp_path, closed, QUICK), f"{site.url}/good/a.mp4").status == "failed"
    fetched(Fetcher(tmp_path, OPEN, QUICK), f"{site.url}/good/a.mp4")


def test_playlists_and_pages_in_place_of_media_are_refused(site: Site, tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path, OPEN, QUICK)
    assert "a playlist" in problem(fetcher, f"{site.url}/good/list.mp4").reason
    assert "a web page" in problem(fetcher, f"{site.url}/good/page.mp4").reason
    assert "no media file" in problem(fetcher, f"{site.url}/good/b.mp4").reason


def test_addresses_with_spaces_and_letters_of_any_script_are_asked_for(site: Site, tmp_path: Path) -> None:
    fetched(Fetcher(tmp_path, OPEN, QUICK), f"{site.url}/good/a film é 中/a.mp4")
    assert site.requests[0][0] == "/good/a%20film%20%C3%A9%20%E4%B8%AD/a.mp4"


@pytest.mark.parametrize("host", ["a..b", "x" * 300, "a b"])
def test_hosts_that_cannot_be_are_a_problem(tmp_path: Path, host: str) -> None:
    assert isinstance(Fetcher(tmp_path, OPEN, QUICK).fetch(offer(f"http://{host}/a.mp4")), Problem)


def test_queries_with_tokens_do_not_reach_messages(site: Site, tmp_path: Path) -> None:
    found = problem(Fetcher(tmp_path, OPEN, QUICK), f"{site.url}/missing/a.mp4?token=secret")
    assert "secret" not in found.reason


def test_a_file_of_a_store_is_fetched_within_the_limit(tmp_path: Path, video: bytes) -> None:
    fsspec.filesystem("memory").pipe_file("/fetch-here/a.mp4", video)
    assert fetched(Fetcher(tmp_path, OPEN), "memory://fetch-here/a.mp4").path.read_bytes() == video
    small = Access(limits=replace(LIMITS, max_bytes=10))
    assert "the limit is 10" in problem(Fetcher(tmp_path / "b", small), "memory://fetch-here/a.mp4").reason
    assert "no such file" in problem(Fetcher(tmp_path, OPEN), "memory://fetch-here/b.mp4").reason


def test_picture_and_music_of_two_files_become_one(tmp_path: Path, video: bytes) -> None:
    """OSSL-v2's form: the video's own sound is replaced by the music."""
    (tmp_path / "a.mp4").write_bytes(video)
    write_waveform(tmp_path / "a.wav", np.sin(np.arange(32_000 * 2) / 20).astype(np.float32))
    both = offer(str(tmp_path / "a.mp4"), music=str(tmp_path / "a.wav"))
    first, again = (Fetcher(tmp_path / "fetched", OPEN).fetch(both) for _ in range(2))
    assert isinstance(first, Fetched)
    assert isinstance(again, Fetched)
    info = probe(first.path)
    assert info.has_video
    assert info.has_audio
    assert first.path == again.path


def test_music_that_is_missing_is_a_problem(tmp_path: Path, video: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(video)
    both = offer(str(tmp_path / "a.mp4"), music=str(tmp_path / "none.wav"))
    assert isinstance(Fetcher(tmp_path / "fetched", OPEN).fetch(both), Problem)


def test_a_killed_crawl_goes_on_without_asking_for_the_bytes_it_has(
    site: Site, tmp_path: Path, video: bytes
) -> None:
    site.files["a.mp4"] = video * 20
    program = (
        "from pathlib import Path; from pipeline.download import *; import sys\n"
        "download(sys.argv[1], Path(sys.argv[2]), Limits(allow_private=True))"
    )
    part = tmp_path / "part"
    child = subprocess.Popen([sys.executable, "-c", program, f"{site.url}/slow/a.mp4", str(part)])
    while not part.is_file() or part.stat().st_size == 0:
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (tmp_path / "part.validator").write_text(site.etag)  # /slow/ gives none
    have = part.stat().st_size
    download(f"{site.url}/good/a.mp4", part, LIMITS)
    assert part.read_bytes() == site.files["a.mp4"]
    assert site.requests[-1] == ("/good/a.mp4", f"bytes={have}-")


def test_a_ledger_that_a_kill_cut_off_is_mended(site: Site, tmp_path: Path) -> None:
    fetched(Fetcher(tmp_path, OPEN, QUICK), f"{site.url}/good/a.mp4")
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text(ledger.read_text() + '{"location": "http')
    fetched(Fetcher(tmp_path, OPEN, QUICK), f"{site.url}/good/sub/a.mp4")
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [row["status"] for row in rows] == ["fetched", "fetched"]


def test_a_bucket_lets_so_many_through_a_minute() -> None:
    now = [0.0]
    rates = SiteRates(
        per_minute=60, burst=2, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s)
    )
    for _ in range(5):
        rates.wait("https://www.video.example/a")
    assert now[0] == pytest.approx(3.0)
    rates.wait("https://other.test/a")  # a bucket of its own
    assert now[0] == pytest.approx(3.0)


def test_hosts_of_one_platform_share_a_bucket() -> None:
    assert (
        site_of("https://r4.cdn.video.example/x") == site_of("https://www.video.example/y") == "video.example"
    )
    assert site_of("http://10.1.2.3/x") == "10.1.2.3"


def test_a_full_disk_stops_the_run_instead_of_failing_rows(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Fetcher(tmp_path, OPEN, QUICK).fetch(offer(f"{site.url}/good/a.mp4"))
