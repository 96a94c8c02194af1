"""One HTTP GET into a file: resumed where it broke off, limited in size and time, checked at every
redirect."""

from __future__ import annotations

import email.utils
import http.client
import re
import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

from pipeline.addresses import check_url, connect

REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 5
WAIT_STATUSES = (408, 425, 429, 500, 502, 503, 504)
CHUNK = 1 << 20
URL_SAFE = "/%?&=+:;,@!$'()*~[]#"  # what a target may hold as it is; the rest is escaped
USER_AGENT = "gvm-prep (research crawler, one file at a time)"


class DeferredError(Exception):
    """The site asks to wait or does not answer: a later crawl may have it. `wait_s` where it says how
    long."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class FailedError(Exception):
    """The file cannot be had, and trying again will not help."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one download may cost, and where it may go."""

    max_bytes: int = 8 << 30
    max_duration_s: float = 4 * 3600.0  # of the video
    timeout_s: float = 30.0  # without a byte
    deadline_s: float = 3600.0  # for one file
    allow_private: bool = False


@dataclass(frozen=True, kw_only=True)
class Access:
    """How the web is asked. `cookies` is a file in Netscape's format; it goes to yt-dlp and nowhere else."""

    limits: Limits = field(default_factory=Limits)
    cookies: Path | None = None


class _Connection(http.client.HTTPConnection):
    """HTTP to a checked address, and TLS on top where `context` is given."""

    def __init__(self, host: str, port: int, limits: Limits, context: ssl.SSLContext | None) -> None:
        super().__init__(host, port, timeout=limits.timeout_s)
        self._limits, self._tls = limits, context

    def connect(self) -> None:
        sock = connect(self.host, self.port, self._limits.timeout_s, self._limits.allow_private)
        self.sock = self._tls.wrap_socket(sock, server_hostname=self.host) if self._tls else sock


def download(url: str, part: Path, limits: Limits) -> None:
    """Make `part` the whole file behind `url`, going on where an earlier download of it broke off.

    Raises FailedError, DeferredError or RefusedAddressError; what was received stays in `part`.
    """
    validator_path = part.with_suffix(".validator")
    validator = validator_path.read_text() if validator_path.is_file() else ""
    offset = part.stat().st_size if validator and part.is_file() else 0
    headers = {"Range": f"bytes={offset}-", "If-Range": validator} if offset else {}
    try:
        connection, response = _open(url, headers, limits)
        with closing(connection):
            offset = _accepted_offset(response, offset, part)
            total = _total(response, offset)
            if total is not None and total > limits.max_bytes:
                raise FailedError(f"{shown(url)}: {total} bytes; the limit is {limits.max_bytes}")
            validator_path.write_text(_validator(response))
            _receive(response, part, offset, total, limits, shown(url))
    except (OSError, http.client.HTTPException) as error:
        raise DeferredError(f"{shown(url)}: {type(error).__name__}: {error}") from error
    validator_path.unlink()


def shown(url: str) -> str:
    """The URL as it may stand in a log: a query can hold tokens."""
    return url.split("?")[0][:200]


def _open(
    url: str, headers: Mapping[str, str], limits: Limits
) -> tuple[_Connection, http.client.HTTPResponse]:
    """Follow redirects, each checked like the first URL. The caller closes the connection."""
    for _ in range(MAX_REDIRECTS + 1):
        check_url(url, limits.allow_private)
        connection = _connection(url, limits)
        try:
            response = _request(connection, url, headers)
            if response.status not in REDIRECTS:
                _check_status(response, url)
                return connection, response
            url = urljoin(url, response.getheader("Location", ""))
        except BaseException:
            connection.close()
            raise
        connection.close()
    raise FailedError(f"{shown(url)}: more than {MAX_REDIRECTS} redirects")


def _connection(url: str, limits: Limits) -> _Connection:
    parts = urlsplit(url)
    context = ssl.create_default_context() if parts.scheme.lower() == "https" else None
    return _Connection(parts.hostname or "", parts.port or (443 if context else 80), limits, context)


def _request(connection: _Connection, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET", quote(target, safe=URL_SAFE), headers={"User-Agent": USER_AGENT, **headers})
    except (http.client.InvalidURL, UnicodeError) as error:  # of the host
        raise FailedError(f"{shown(url)}: not a URL: {error}") from error
    return connection.getresponse()


def _check_status(response: http.client.HTTPResponse, url: str) -> None:
    if response.status in WAIT_STATUSES:
        wait_s = _retry_after(response.getheader("Retry-After"))
        raise DeferredError(f"{shown(url)}: {response.status} {response.reason}", wait_s)
    if response.status not in (200, 206, 416):
        raise FailedError(f"{shown(url)}: {response.status} {response.reason}")


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number or a date."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _accepted_offset(response: http.client.HTTPResponse, offset: int, part: Path) -> int:
    """Where the body begins: `offset` where the server continues there, else 0."""
    if response.status == 200:
        return 0
    found = re.fullmatch(r"bytes (\d+)-\d+/(?:\d+|\*)", response.getheader("Content-Range", ""))
    if response.status == 206 and found and int(found[1]) == offset:
        return offset
    part.unlink(missing_ok=True)
    raise DeferredError(
        f"{part.name}: the server does not continue where the download broke off; begins anew"
    )


def _total(response: http.client.HTTPResponse, offset: int) -> int | None:
    length = response.getheader("Content-Length", "")
    return offset + int(length) if length.isdigit() else None


def _validator(response: http.client.HTTPResponse) -> str:
    """What tells this version of the file from another; a weak ETag cannot."""
    etag = response.getheader("ETag", "")
    return etag if etag.startswith('"') else response.getheader("Last-Modified", "")


def _receive(
    response: http.client.HTTPResponse, part: Path, offset: int, total: int | None, limits: Limits, name: str
) -> None:
    deadline = time.monotonic() + limits.deadline_s
    with part.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        received = offset
        while chunk := response.read1(CHUNK):
            received += len(chunk)
            if received > limits.max_bytes:
                raise FailedError(f"{name}: more than the limit of {limits.max_bytes} bytes")
            file.write(chunk)
            if time.monotonic() > deadline:
                raise DeferredError(f"{name}: not complete after {limits.deadline_s:g} s")
    if received == 0:
        raise FailedError(f"{name}: empty")
    if total is not None and received != total:
        raise DeferredError(f"{name}: broken off after {received} of {total} bytes")
