"""Which files are media by their first bytes. A playlist, a list for ffmpeg or a page is none.

ffmpeg opens what a playlist names, so a file is told by its content before any decoder sees it.
"""

from __future__ import annotations

from pathlib import Path

HEAD = 400  # bytes; two packets of MPEG-TS
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"pnot")


def media_suffix(path: Path) -> str | None:
    """The suffix that fits the file's content (`.mp4`, `.mkv` …), or None for what is no media file."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head[4:8] in MP4_BOXES:
        return ".mp4"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return ".webm" if b"webm" in head[:64] else ".mkv"
    if head[:4] == b"RIFF":
        return {b"AVI ": ".avi", b"WAVE": ".wav"}.get(head[8:12])
    if head[:1] == b"\x47" and head[188:189] == b"\x47":
        return ".ts"
    if head[4:5] == b"\x47" and head[196:197] == b"\x47":
        return ".m2ts"
    return next((suffix for magic, suffix in _MAGICS.items() if head.startswith(magic)), None)


_MAGICS = {
    b"\x00\x00\x01\xba": ".mpg",
    b"\x00\x00\x01\xb3": ".mpg",
    b"FLV\x01": ".flv",
    b"OggS": ".ogv",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": ".wmv",
    b"fLaC": ".flac",
    b"ID3": ".mp3",
}


def is_text(path: Path) -> bool:
    """Whether the file begins with text, as every playlist does and no media file."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    return bool(head) and not any(byte < 9 or 13 < byte < 32 for byte in head)


def what_it_is(path: Path) -> str:
    """A few words for a file that is no media file."""
    with path.open("rb") as file:
        head = file.read(HEAD).lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if not head:
        return "an empty file"
    if head.startswith((b"#extm3u", b"ffconcat", b"[playlist]", b"<?xml", b"<mpd", b"v=0")):
        return "a playlist, not a media file"
    if head.startswith((b"<!doctype", b"<html")):
        return "a web page, not a media file"
    return "no media file by its content"
