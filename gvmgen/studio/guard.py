"""Who may ask: known hosts, pages of our own. What an answer may load: nothing from elsewhere. No torch."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_READING = ("GET", "HEAD")
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Refuses requests that name a host we are not, and changes that another site's page asks for.

    A name that we do not know may be another's, made to point here (DNS rebinding). An address cannot be, so
    where we are bound to more than loopback, every address is ours.
    """

    def __init__(self, app: ASGIApp, bound: str, allowed: Iterable[str]) -> None:
        self.app = app
        self.is_open = bound not in LOOPBACK
        own = (bound, socket.gethostname()) if self.is_open else ()
        self.names = {name.lower() for name in (*LOOPBACK, *own, *allowed)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.knows(host):
            name = _name(host) or "NAME"
            reason = f"unknown host {host!r}. If it is this machine: gvm-studio --allow-host {name}"
            return await _refuse(400, reason)(scope, receive, send)
        if scope["method"] not in _READING and origin is not None and urlsplit(origin).netloc != host:
            return await _refuse(403, f"a page of {origin} may change nothing here")(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        return await self.app(scope, receive, with_headers)

    def knows(self, host: str) -> bool:
        name = _name(host)
        return name in self.names or (self.is_open and _is_address(name))


def _refuse(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status)


def _name(host: str) -> str:
    """The name in a Host header, without its port; empty where there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
