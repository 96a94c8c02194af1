"""What is done of a long piece, on disk beside its output: a killed run's work is taken up by the next one.

out.wav.part/about.json            what the work is of: video, settings, weights, program
out.wav.part/frames_000064.done    what `Kept.once` was given to keep, one file each, whole or absent
out.wav.part/.lock                 held by the process that composes this output
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from safetensors.torch import load, save
from torch import Tensor

from gvmgen.finish.ffmpeg import forget_asides, whole_file
from gvmgen.runs import LOCK, hold
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
        self.folder.mkdir(exist_ok=True)  # a user may have tidied up
        with whole_file(path) as aside:
            aside.write_bytes(hashlib.sha256(body).digest() + body)


@contextmanager
def kept_beside(output: Path, about: Mapping[str, Any], say: Say, *, fresh: bool = False) -> Iterator[Kept]:
    """What an earlier run with the same `about` left beside `output`, and a place for more.

    The folder goes when the block ends well; where it does not, the user is told how to go on.
    fresh: begin anew. Raises ValueError where what has the folder's name is not ours, or where another
    process is at work in it.
    """
    check_place(output)
    kept = Kept(_place(output), say)
    with closing(_claim(kept.folder)):
        _settle(kept, about, fresh)
        forget_asides(output)
        try:
            yield kept
        except BaseException:
            if not kept.num_done:
                _remove(kept.folder)
            else:
                say(f"what is done lies in {kept.folder}; the same command goes on from there")
            raise
        _remove(kept.folder)


def check_place(output: Path) -> None:
    """Raise ValueError where something that is not ours has the name of the folder beside `output`."""
    folder = _place(output)
    if folder.exists() and _recorded(folder) is None and not _is_ours(folder):
        raise ValueError(f"{folder}: is in the way; move it, or give another output")


def _place(output: Path) -> Path:
    return output.with_name(f"{output.name}.part")


def _claim(folder: Path) -> TextIO:
    """Make the folder and hold it till what is returned is closed."""
    refusal = f"{folder}: another gvm-gen composes this output; wait for it, or give another -o"
    while True:
        folder.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # who held it has just ended, and taken the folder away
            lock = hold(folder / LOCK, refusal)
            if _is_at(lock, folder / LOCK):
                return lock
            lock.close()


def _is_at(lock: TextIO, path: Path) -> bool:
    """Whether an open file still has its name."""
    return path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat())


def _settle(kept: Kept, about: Mapping[str, Any], fresh: bool) -> None:
    """Empty the folder but for what was done of the same piece."""
    folder, record = kept.folder, kept.folder / ABOUT
    differences = _differences(folder, about)
    if differences and not fresh:
        kept.say(f"{folder} is of another piece ({', '.join(differences)}): beginning anew")
    if differences or fresh:
        _empty(folder)
    elif kept.num_done:
        kept.say(f"going on from {folder}; --fresh begins anew")
    if not record.exists():
        with whole_file(record) as aside:
            aside.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _differences(folder: Path, about: Mapping[str, Any]) -> list[str]:
    """In what a folder's piece differs from the wanted one; nothing for an empty folder."""
    found = _recorded(folder)
    if found is None:
        is_empty = all(path.name == LOCK for path in folder.iterdir())
        return [] if is_empty else [f"no {ABOUT}"]
    differences = fingerprint_differences(found, json.loads(json.dumps(about)))
    return [difference.partition(":")[0] for difference in differences]


def _recorded(folder: Path) -> dict[str, Any] | None:
    """What a folder's piece is of; None where no record can be read."""
    try:
        return dict(json.loads((folder / ABOUT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and all(
        path.name in (ABOUT, LOCK) or path.suffix in (SUFFIX, ".tmp") for path in folder.iterdir()
    )


def _empty(folder: Path) -> None:
    """Delete what we wrote but for the lock."""
    for path in (*folder.glob(f"*{SUFFIX}"), *folder.glob(".*.tmp"), folder / ABOUT):
        path.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Delete what we wrote, and the folder if it is empty then. No error here is worth losing the music."""
    with suppress(OSError):
        _empty(folder)
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
