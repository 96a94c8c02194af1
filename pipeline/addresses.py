"""Where a crawl may go: http and https, and no private address unless the user allows it.

The check is made on the address a connection is about to use, after the name was resolved and again at every
redirect, so that no name and no redirect can point into the local network.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit


class RefusedAddressError(ValueError):
    """A URL or an address where a crawl must not go."""


def check_url(url: str, allow_private: bool = False) -> None:
    """Raise RefusedAddressError unless the URL is http(s), has a host, and no password in it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise RefusedAddressError(f"{url[:200]}: not a URL: {error}") from error
    if parts.scheme.lower() not in ("http", "https"):
        raise RefusedAddressError(
            f"{url[:200]}: {parts.scheme or 'no scheme'}: is not allowed; wants http or https"
        )
    if not host:
        raise RefusedAddressError(f"{url[:200]}: no host in it")
    if parts.username or parts.password:
        raise RefusedAddressError(f"{host}: a URL with a password in it; use a cookies file instead")
    if not allow_private and port not in (None, 80, 443, 8080, 8443):
        raise RefusedAddressError(f"{host}:{port}: an unusual port; --allow-private allows it")


def check_address(address: str, allow_private: bool = False) -> None:
    """Raise RefusedAddressError for an address that is not of the open internet."""
    ip = ipaddress.ip_address(address.split("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    if not allow_private and not all(
        a.is_global and not a.is_multicast for a in (ip, inner) if a is not None
    ):
        raise RefusedAddressError(f"{address}: a private address; --allow-private allows it")


def connect(host: str, port: int, timeout_s: float, allow_private: bool) -> socket.socket:
    """A TCP connection to `host`, every address checked before it is used.

    The name is resolved once and the socket goes to the very address that was checked: a name that changes
    between
    two look-ups gains nothing. Raises RefusedAddressError or OSError.
    """
    failure: OSError = OSError(f"{host}: no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        check_address(str(address[0]), allow_private)
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout_s)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure
