"""yt-dlp in a process of its own: a request as JSON on stdin, rows as JSON lines on stdout.

The process guards itself before yt-dlp is loaded: every connection is checked at the address it goes to, and
no
program is started but a JavaScript runtime (yt-dlp needs one for YouTube). ffmpeg is not among them: what was
fetched is joined by the parent, under its own rules.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.addresses import RefusedAddressError, check_address, check_url

RUNTIMES = ("deno", "node", "bun", "qjs", "quickjs")
METADATA = (
    "id",
    "extractor_key",
    "webpage_url",
    "duration",
    "license",
    "categories",
    "language",
    "width",
    "height",
)
WAIT_SIGNS = (
    "not a bot",
    "captcha",
    "http error 429",
    "too many requests",
    "rate-limit",
    "rate limit",
    "try again later",
    "timed out",
    "temporary failure",
    "connection refused",
    "connection reset",
    "unable to download webpage: http error 5",
    "name or service not known",
    "network is unreachable",
)
HTTP_ONLY = "[protocol~='^(https?|m3u8_native|http_dash_segments)$']"
FORMATS = f"b{HTTP_ONLY}/(bv*{HTTP_ONLY},ba{HTTP_ONLY})"  # whole, else picture and sound as two files


def guard(allow_private: bool) -> None:
    """From here on this process connects only to allowed addresses and starts only JavaScript runtimes.

    A program is refused with PermissionError: a library that asks ldconfig does without the answer.
    """

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.sendto"):
            address = arguments[1]
            if not isinstance(address, tuple):
                raise RefusedAddressError(f"{address}: not an internet address")
            check_address(str(address[0]), allow_private)
        elif event == "subprocess.Popen" and Path(str(arguments[0] or arguments[1][0])).name not in RUNTIMES:
            raise PermissionError(f"{arguments[0]}: no program may be started here")
        elif event in ("os.system", "os.exec", "os.posix_spawn"):
            raise PermissionError(f"{event}: no program may be started here")

    sys.modules["curl_cffi"] = None  # type: ignore[assignment]  # it connects outside Python's sockets
    sys.addaudithook(watch)


def main() -> None:
    request = json.load(sys.stdin)
    try:
        check_url(request["url"], request["allow_private"])
        guard(request["allow_private"])
        for row in list_videos(request) if request["action"] == "list" else fetch(request):
            print(json.dumps(row), flush=True)
    except Exception as error:
        message = " ".join(str(error).replace("ERROR: ", "").split())[:500]
        deferred = any(sign in message.lower() for sign in WAIT_SIGNS) and "private address" not in message
        print(json.dumps({"problem": message, "deferred": deferred}), flush=True)


def options(request: dict[str, Any]) -> dict[str, Any]:
    from yt_dlp.utils import match_filter_func

    return {
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "logger": _Silent(),
        "cookiefile": request["cookies"],
        "socket_timeout": request["timeout_s"],
        "max_filesize": request["max_bytes"],
        "match_filter": match_filter_func(f"!is_live & duration<?{request['max_duration_s']:.0f}"),
        "format": FORMATS,
        "format_sort": ["res:480"],  # the encoder sees 336 x 336
        "allowed_extractors": ["default"],
        "cachedir": False,
        "ffmpeg_location": "/nonexistent",
        "fixup": "never",
        "hls_prefer_native": True,
        "overwrites": False,
        "continuedl": True,
        "playlistend": 100_000,
        "proxy": None if request["allow_private"] else "",
    }


def list_videos(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row a video of the page, playlist or channel; nothing is downloaded."""
    from yt_dlp import YoutubeDL

    with YoutubeDL({**options(request), "extract_flat": "in_playlist", "lazy_playlist": True}) as ydl:
        info = ydl.extract_info(request["url"], download=False, process=True)
        entries = info.get("entries") if info.get("_type") == "playlist" else [info]
        for entry in entries or ():
            if entry:
                url = entry.get("webpage_url") or entry.get("url")
                yield {
                    "url": url,
                    "id": entry.get("id"),
                    "site": entry.get("extractor_key") or entry.get("ie_key"),
                }


def fetch(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Download one video; a row with its files and the metadata on the whitelist, which names no person."""
    from yt_dlp import YoutubeDL

    template = str(Path(request["folder"]) / "%(format_id)s.%(ext)s")
    settings = {**options(request), "outtmpl": {"default": template}, "noplaylist": True}
    with YoutubeDL(settings) as ydl:
        info = ydl.extract_info(request["url"], download=True)
        files = [part["filepath"] for part in info.get("requested_downloads") or () if part.get("filepath")]
        yield {
            "files": files,
            "metadata": {name: info[name] for name in METADATA if info.get(name) is not None},
        }


class _Silent:
    """yt-dlp's messages can hold tokens of URLs; only the error that ends the run is told."""

    def debug(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...

    def error(self, message: str) -> None: ...


if __name__ == "__main__":
    main()
