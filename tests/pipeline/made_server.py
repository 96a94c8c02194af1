"""A real HTTP server on loopback that behaves well, slowly, falsely or not at all, and notes who asked for
what."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server holds and what it was asked. Paths choose how it behaves: /good/…, /slow/… and so
    on."""

    files: dict[str, bytes] = field(default_factory=dict)  # by last part of the path
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range header)
    redirect_to: str = ""
    broken_after: int = 1000  # bytes, under /broken/ on the first request of each path
    etag: str = '"one"'
    url: str = ""


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            site.requests.append((self.path, wanted))
            mode, name = self.path.strip("/").split("/")[0], self.path.rsplit("/", 1)[-1].split("?")[0]
            getattr(self, f"_{mode.replace('-', '_')}", self._missing)(site.files.get(name, b""), wanted)

        def _good(self, body: bytes, wanted: str | None) -> None:
            begin = 0
            if wanted and self.headers.get("If-Range") == site.etag:
                begin = int(wanted.removeprefix("bytes=").split("-")[0])
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            self._send(body[begin:], len(body) - begin)

        def _send(self, body: bytes, length: int) -> None:
            self.send_header("Content-Length", str(length))
            self.send_header("ETag", site.etag)
            self.end_headers()
            self.wfile.write(body)

        def _broken(self, body: bytes, wanted: str | None) -> None:
            if wanted:
                return self._good(body, wanted)
            self.send_response(200)
            self._send(body[: site.broken_after], len(body))
            self.close_connection = True
            return None

        def _lying_longer(self, body: bytes, wanted: str | None) -> None:
            self.send_response(200)
            self._send(body, len(body) + 500)
            self.close_connection = True

        def _endless(self, body: bytes, wanted: str | None) -> None:
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                for _ in range(10_000):
                    self.wfile.write(body or b"x" * 10_000)
            except OSError:
                pass  # the other side had enough
            self.close_connection = True

        def _slow(self, body: bytes, wanted: str | None) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                for i in range(0, len(body), 200):
                    self.wfile.write(body[i : i + 200])
                    time.sleep(0.2)
            except OSError:
                pass

        def _stuck(self, body: bytes, wanted: str | None) -> None:
            time.sleep(3)
            self.close_connection = True

        def _wrong_range(self, body: bytes, wanted: str | None) -> None:
            if not wanted:
                return self._broken(body, wanted)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes 0-{len(body) - 1}/{len(body)}")
            self._send(body, len(body))
            return None

        def _redirect(self, body: bytes, wanted: str | None) -> None:
            self.send_response(302)
            self.send_header("Location", site.redirect_to)
            self._send(b"", 0)

        def _busy(self, body: bytes, wanted: str | None) -> None:
            self.send_response(429)
            self.send_header("Retry-After", "1234")
            self._send(b"", 0)

        def _missing(self, body: bytes, wanted: str | None) -> None:
            self.send_response(404)
            self._send(b"", 0)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
