"""Runs of ffmpeg over a filter graph: into a file that appears whole, or into nothing, for what it says."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gvmgen.encoders.process import FfmpegOutput, local_file, run_ffmpeg

_DEADLINE_S = 3600.0
# No random ids, dates or versions: the same music gives the same bytes.
_SAME_BYTES = ["-fflags", "+bitexact", "-flags:a", "+bitexact"]


def encode(inputs: list[str], filters: str, outputs: list[str], path: Path) -> None:
    """Write a file from the graph's end, `[out]`. The name appears when the file is whole."""
    with whole_file(path) as aside:
        _encode(inputs, filters, outputs, aside, path)


def try_encode(inputs: list[str], filters: str, outputs: list[str], path: Path) -> None:
    """Write the same, and throw it away. Raises MediaError where ffmpeg cannot."""
    with tempfile.NamedTemporaryFile(suffix=path.suffix) as file:
        _encode(inputs, filters, outputs, Path(file.name), path)


def _encode(inputs: list[str], filters: str, outputs: list[str], aside: Path, path: Path) -> None:
    graph = ["-filter_complex", filters + "[out]"]
    arguments = ["-nostdin", "-hide_banner", "-v", "error", *inputs, *graph, *outputs, *_SAME_BYTES]
    run_ffmpeg([*arguments, "-y", local_file(aside)], path, deadline_s=_DEADLINE_S)


def last_words(inputs: list[str], filters: str) -> str:
    """The tail of what ffmpeg says when it runs a graph over the inputs and throws the result away."""
    loud = ["-nostdin", "-hide_banner", "-nostats", "-v", "info"]
    arguments = [*loud, *inputs, "-filter_complex", filters + "[out]", "-map", "[out]", "-f", "null", "-"]
    with FfmpegOutput(arguments, Path(inputs[-1]), _DEADLINE_S) as output:
        return output.complaints()


def forget_asides(path: Path) -> None:
    """Delete what killed runs left beside a file that nobody else is writing."""
    for aside in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        aside.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name aside to write to; what lies there gets its own name when all went well."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.touch()  # an unwritable folder is an OSError that says so, not ffmpeg's complaint
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
