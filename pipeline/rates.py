"""One token bucket per site, so that a crawl stays polite however many threads it has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass
class _Bucket:
    tokens: float
    filled_at: float
    closed_until: float = 0.0


class SiteRates:
    """`wait(url)` returns when the site may be asked again; `close(url, s)` when it asked to be left
    alone."""

    def __init__(
        self,
        per_minute: float = 20.0,
        burst: int = 2,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._per_s, self._burst = per_minute / 60, burst
        self._clock, self._sleep = clock, sleep
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def wait(self, url: str) -> None:
        """Take one token of the site's bucket, waiting for it."""
        while (delay_s := self._take(site_of(url))) > 0:
            self._sleep(delay_s)

    def close(self, url: str, seconds: float) -> None:
        """Leave the site alone for so long."""
        with self._lock:
            bucket = self._bucket(site_of(url))
            bucket.closed_until = max(bucket.closed_until, self._clock() + seconds)

    def is_closed(self, url: str) -> bool:
        with self._lock:
            return self._bucket(site_of(url)).closed_until > self._clock()

    def _take(self, site: str) -> float:
        """0 when a token was taken, else the seconds until there is one."""
        with self._lock:
            bucket, now = self._bucket(site), self._clock()
            bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.filled_at) * self._per_s)
            bucket.filled_at = now
            if bucket.tokens >= 1:
                bucket.tokens -= 1
                return 0.0
            return (1 - bucket.tokens) / self._per_s

    def _bucket(self, site: str) -> _Bucket:
        return self._buckets.setdefault(site, _Bucket(self._burst, self._clock()))


def site_of(url: str) -> str:
    """The last two labels of the host: the videos of one platform come from many hosts of it."""
    parts = urlsplit(url)
    host = (parts.hostname or parts.scheme).lower()
    return host if host.replace(".", "").isdigit() else ".".join(host.split(".")[-2:])
