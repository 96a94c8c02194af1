"""Shards in an object store, through fsspec: s3://, gs://, hf:// and whatever else it knows.

A store has no rename and no fsync, and needs none: an object is there whole or not at all. What makes a shard
exist is its commit record here, too.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar, cast

POINTER_NAME = "remote.url"  # in a data folder: where its shards are, if not beside it


class StoreError(OSError):
    """An object store does not answer, or refuses. Names the URL; what lies there is as it was."""


class Stat(NamedTuple):
    """As os.stat_result has them."""

    st_size: int  # bytes
    st_mtime: float  # seconds since 1970; 0 where the store does not say


@dataclass(frozen=True, order=True)
class RemotePath:
    """A file or folder in an object store, with the part of pathlib.Path's manners that shards need."""

    path: PurePosixPath  # in the store: bucket, then key
    protocol: str
    store: Any = field(compare=False, repr=False)  # fsspec's file system
    known: Stat | None = field(default=None, compare=False, repr=False)  # from the listing that named it

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def parent(self) -> RemotePath:
        return self._at(self.path.parent)

    def __truediv__(self, name: str) -> RemotePath:
        return self._at(self.path / name)

    def __str__(self) -> str:
        return f"{self.protocol}://{self.path}"

    def with_suffix(self, suffix: str) -> RemotePath:
        return self._at(self.path.with_suffix(suffix))

    def _at(self, path: PurePosixPath) -> RemotePath:
        return RemotePath(path, self.protocol, self.store)

    def exists(self) -> bool:
        with self._asked() as store:
            return bool(store.exists(str(self.path)))

    def is_dir(self) -> bool:
        with self._asked() as store:
            return bool(store.isdir(str(self.path)))

    def iterdir(self) -> Iterator[RemotePath]:
        """What lies in the folder; sizes and times come with the listing."""
        with self._asked() as store:
            entries = store.ls(str(self.path), detail=True)
        for entry in entries:
            path = PurePosixPath(store._strip_protocol(entry["name"]))
            yield RemotePath(path, self.protocol, self.store, _stat_of(entry))

    def stat(self) -> Stat:
        """Raises FileNotFoundError."""
        return self.known or _stat_of(self._info())

    def version(self) -> str:
        """Changes when other bytes are written, as far as the store tells."""
        info = self._info()
        names = ("ETag", "etag", "generation", "blob_id", "LastModified", "last_modified", "size")
        return " ".join(str(info.get(name)) for name in names)

    def _info(self) -> dict[str, Any]:
        with self._asked() as store:
            return dict(store.info(str(self.path)))

    def read_bytes(self) -> bytes:
        with self._asked() as store:
            return bytes(store.cat_file(str(self.path)))

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes start … end - 1; fewer where the file ends before."""
        with self._asked() as store:
            return bytes(store.cat_file(str(self.path), start=start, end=end))

    def open(self, mode: str = "r", encoding: str = "utf-8") -> io.TextIOWrapper:
        """A small text file, read at once."""
        assert mode == "r", "shards are written by `upload` and `write_bytes`"
        return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding=encoding)

    def write_bytes(self, data: bytes) -> None:
        with self._asked() as store:
            store.pipe_file(str(self.path), data)

    def upload(self, file: Path) -> None:
        with self._asked() as store:
            store.put_file(str(file), str(self.path))

    def download(self, file: Path) -> None:
        with self._asked() as store:
            store.get_file(str(self.path), str(file))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with self._asked() as store:
                store.rm_file(str(self.path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    @contextmanager
    def _asked(self) -> Iterator[Any]:
        """The store, asked anew; what goes wrong is a FileNotFoundError or a StoreError."""
        self.store.invalidate_cache()  # another machine may have written
        try:
            yield self.store
        except FileNotFoundError:
            raise
        except Exception as error:  # every store raises errors of its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise StoreError(
                f"{self}: the store does not do as asked ({reason}). Are its address, your rights and the "
                "network in order? What is complete stays; run again"
            ) from error


Folder = TypeVar("Folder", Path, RemotePath)


def located(text: str) -> Path:
    """The folder that a path or a URL names. A URL gives a RemotePath, which is as good as a Path here.

    Raises ValueError for a URL that nothing installed can open.
    """
    if "://" not in text:
        return Path(text)
    import fsspec

    protocol = text.split("://")[0].lower()
    if protocol in ("http", "https"):
        raise ValueError(
            f"{text}: a web server lists no folders. Copy the set here, or into an object store: s3://, gs://"
        )
    try:
        store, path = fsspec.core.url_to_fs(text, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{text}: {error}. Run: pip install 'gvmgen[remote]'") from error
    return cast(Path, RemotePath(PurePosixPath(path), protocol, store))


def shards_of(data: str | Path) -> Path:
    """Where the shards of a data folder or URL are: in it, or where the folder's `remote.url` says."""
    pointer = Path(data) / POINTER_NAME
    if "://" not in str(data) and pointer.is_file():
        data = pointer.read_text().strip()
        if "://" not in data:
            raise ValueError(
                f"{pointer}: {data!r} is no URL. Remove this file where the shards lie beside it"
            )
    return located(str(data)) / "shards"


def _stat_of(info: dict[str, Any]) -> Stat:
    names = ("LastModified", "last_modified", "mtime", "created")
    time = next((info[name] for name in names if isinstance(info.get(name), datetime)), None)
    return Stat(int(info["size"] or 0), 0.0 if time is None else time.timestamp())
