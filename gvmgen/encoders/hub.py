"""Where the weights' hub cannot be reached, its client should say so at once; alone it retries a minute."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

_ANSWER_S = 5.0


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Within, the hub's client uses the network only if the hub answers, else its cache alone."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _is_reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _is_reachable() -> bool:
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT)
    if hub.scheme in getproxies():
        return True  # the proxy knows; we cannot ask the hub itself
    try:
        port = hub.port or (443 if hub.scheme == "https" else 80)
        socket.create_connection((hub.hostname or "", port), timeout=_ANSWER_S).close()
    except OSError:
        return False
    return True
