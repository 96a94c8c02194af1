"""What is done of a long piece, on disk beside its output: a killed run's work is taken up by the next one.

out.wav.part/about.json            what the work is of: video, settings, weights, program
out.wav.part/frames_000064.done    what `Kept.once` was given to keep, one file each, whole or absent
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from gvmgen.finish.ffmpeg import whole_file
from shards.spec import fingerprint_differences

ABOUT = "about.json"
SUFFIX = ".done"
_DIGEST_BYTES = hashlib.sha256().digest_size

Tensors = dict[str, Tensor]
Say = Callable[[str], None]


class Unkept:
    """Keeps nothing: all work is done anew."""

    def once(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        return make()

    def tensor(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """`once` for a single tensor."""
        return self.once(name, lambda: {"tensor": make()})["tensor"]


class Kept(Unkept):
    """A folder with what is done of one piece."""

    def __init__(self, folder: Path, say: Say) -> None:
        self.folder, self.say = folder, say

    @property
    def num_done(self) -> int:
        return len(list(self.folder.glob(f"*{SUFFIX}")))

    def once(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """What `make` gives, made at most once: kept tensors come back bit for bit, on the CPU."""
        path = self.folder / f"{name}{SUFFIX}"
        found = self._read(path)
        if found is None:
            found = make()
            self._write(path, found)
        return found

    def _read(self, path: Path) -> Tensors | None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() == digest:
            return load(body)
        self.say(f"{path}: is damaged and made again")
        return None

    def _write(self, path: Path, tensors: Tensors) -> None:
        body = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        self.folder.mkdir(exist_ok=True)  # another process at the same output may have ended and tidied up
        with whole_file(path) as aside:
            aside.write_bytes(hashlib.sha256(body).digest() + body)


@contextmanager
def kept_beside(output: Path, about: Mapping[str, Any], say: Say, *, fresh: bool = False) -> Iterator[Kept]:
    """What an earlier run with the same `about` left beside `output`, and a place for more.

    The folder goes when the block ends well; where it is interrupted, the user is told how to go on.
    fresh: begin anew. Raises ValueError where a folder of that name is not ours.
    """
    kept = Kept(output.with_name(f"{output.name}.part"), say)
    _settle(kept, about, fresh)
    try:
        yield kept
    except BaseException as error:
        if not kept.num_done:
            _remove(kept.folder)
        elif isinstance(error, KeyboardInterrupt):
            say(f"what is done lies in {kept.folder}; the same command goes on from there")
        raise
    _remove(kept.folder)


def _settle(kept: Kept, about: Mapping[str, Any], fresh: bool) -> None:
    """Make the folder, empty but for what was done of the same piece."""
    folder, record = kept.folder, kept.folder / ABOUT
    differences = _differences(folder, about)
    if differences and not fresh:
        kept.say(f"{folder} is of another piece ({', '.join(differences)}): beginning anew")
    if differences or fresh:
        _remove(folder)
    elif kept.num_done:
        kept.say(f"going on from {folder}; --fresh begins anew")
    folder.mkdir(exist_ok=True)
    if not record.exists():
        with whole_file(record) as aside:
            aside.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _differences(folder: Path, about: Mapping[str, Any]) -> list[str]:
    """In what a folder's piece differs from the wanted one; nothing for an empty folder, or none at all."""
    if not folder.exists() or not any(folder.iterdir()):
        return []
    try:
        found = dict(json.loads((folder / ABOUT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        if _is_ours(folder):
            return [f"no {ABOUT}"]
        raise ValueError(f"{folder}: is in the way; move it, or give another output") from error
    differences = fingerprint_differences(found, json.loads(json.dumps(about)))
    return [difference.partition(":")[0] for difference in differences]


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and all(
        path.name == ABOUT or path.suffix in (SUFFIX, ".tmp") for path in folder.iterdir()
    )


def _remove(folder: Path) -> None:
    """Delete what we wrote, and the folder where nothing else lies in it."""
    for path in (*folder.glob(f"*{SUFFIX}"), *folder.glob(".*.tmp"), folder / ABOUT):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
