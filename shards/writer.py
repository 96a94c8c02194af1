"""A shard: written aside, fsynced, renamed, then the commit record that makes it exist.

Killed at any moment, a write leaves the shard absent or complete; the same samples give the same bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from isal import isal_zlib

from shards.feature_codec import Int8Codec, num_saturated
from shards.record import FieldRecord, SampleRecord, ShardRecord, canonical_json
from shards.spec import (
    CODE_RATE,
    CODES,
    FEATURES,
    META,
    SPEC_VERSION,
    Fingerprint,
    Sample,
    ShardBusyError,
    ShardError,
    check_sample,
    record_path,
    tar_path,
)

TAR_BLOCK = 512  # bytes; a header is one block, a payload is padded to whole blocks
SYNC_BYTES = 8 << 20  # go to the disk together
TAR_MODE = 0o444  # webdataset's
TAR_MTIME = 946_684_800  # 2000-01-01, for every member: the same samples give the same bytes


def write_shard(
    directory: Path,
    shard: int,
    samples: Iterable[Sample],
    *,
    plan_hash: str,
    fingerprint: Fingerprint,
    left_out: Sequence[dict[str, Any]] = (),
    feature_codec: Int8Codec | None = None,
) -> ShardRecord:
    """Write one shard and its commit record, replacing a former one.

    A sample is written while the next one is made, so two are in memory at a time.
    feature_codec: how features lie in the tar; None: as float16. `fingerprint` should name it.
    `left_out` is read after the last sample, so the caller may fill it while `samples` runs. An error in
    `samples` leaves what was there before. Raises ShardError for a sample that breaks the contract,
    ShardBusyError where another process writes this shard.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tar, record_file = tar_path(directory, shard), record_path(directory, shard)
    packer = _Packer(feature_codec)
    with only_writer(directory, shard):
        with _written_aside(tar) as (file, commit):
            with _syncing_behind(file) as sync_behind, _Tar(file, sync_behind) as members:
                sample_records = tuple(_write_samples(members, samples, packer, str(tar)))
            # A former record must never stand beside the new tar.
            record_file.unlink(missing_ok=True)
            _sync_directory(directory)
            commit()
        record = ShardRecord(
            spec_version=SPEC_VERSION,
            shard=shard,
            plan_hash=plan_hash,
            fingerprint=_plain_json(fingerprint),
            tar_bytes=members.size,
            tar_sha256=members.sha256.hexdigest(),
            samples=sample_records,
            left_out=tuple(_plain_json(left_out)),
            feature_codec=feature_codec,
            num_saturated=packer.num_saturated,
        )
        write_durably(record_file, record.to_bytes())
    return record


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file so that, killed or unplugged at any moment, the old bytes or the new ones are there."""
    with _written_aside(path) as (file, commit):
        file.write(data)
        commit()


def _write_samples(
    tar: _Tar, samples: Iterable[Sample], packer: _Packer, where: str
) -> Iterator[SampleRecord]:
    keys: set[str] = set()

    def write(sample: Sample) -> SampleRecord:
        check_sample(sample, where)
        if sample.key in keys:
            raise ShardError(f"{where}: sample {sample.key} comes twice; a key names one sample")
        keys.add(sample.key)
        return SampleRecord(
            key=sample.key,
            split=sample.meta.get("split", "train"),
            duration_s=float(sample.meta.get("duration_s", sample.codes.shape[1] / CODE_RATE)),
            fields=_write_fields(tar, sample, packer),
        )

    yield from _beside(write, samples)


def _beside(work: Callable[[Sample], SampleRecord], samples: Iterable[Sample]) -> Iterator[SampleRecord]:
    """The work's results in order; a thread does it while the next sample is made."""
    last: Future[SampleRecord] | None = None
    with ThreadPoolExecutor(1, "write-shard") as thread:
        for sample in samples:
            if last is not None:
                yield last.result()
            last = thread.submit(work, sample)
        if last is not None:
            yield last.result()


class _Packer:
    """A sample's arrays as they lie in the tar; counts what the feature codec cannot hold."""

    def __init__(self, codec: Int8Codec | None) -> None:
        self.codec, self.num_saturated = codec, 0

    def arrays(self, sample: Sample) -> dict[str, np.ndarray]:
        features = sample.features
        if self.codec is not None:
            features = self.codec.encode(features)
            self.num_saturated += num_saturated(features)
        return {CODES: sample.codes, FEATURES: features}


def _write_fields(tar: _Tar, sample: Sample, packer: _Packer) -> dict[str, FieldRecord]:
    """The sample's members, in the order of their names, as webdataset writes them."""
    fields = {}
    for name, array in packer.arrays(sample).items():
        array = np.ascontiguousarray(array)
        place = tar.add(f"{sample.key}.{name}", [_npy_header(array), array.data.cast("B")])
        fields[name] = FieldRecord(*place, dtype=str(array.dtype), shape=array.shape)
    meta = canonical_json({**sample.meta, "key": sample.key}) + b"\n"
    fields[META] = FieldRecord(*tar.add(f"{sample.key}.{META}", [meta]))
    return fields


def _npy_header(array: np.ndarray) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue()


class _Tar:
    """A tar that grows by members and is hashed beside that, so that a shard is read only by its readers.

    tarfile takes a member through ten kilobytes at a time.
    """

    def __init__(self, file: IO[bytes], sync_behind: Callable[[], None]) -> None:
        self.file, self.size, self.sha256 = file, 0, hashlib.sha256()
        self._sync_behind, self._synced = sync_behind, 0
        self._hasher = ThreadPoolExecutor(1, "hash-shard")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                end = self.size + 2 * TAR_BLOCK
                self._write([bytes(-(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE - self.size)])
        finally:
            self._hasher.shutdown()

    def add(self, name: str, parts: Sequence[bytes | memoryview]) -> tuple[int, int, int]:
        """Append a member; returns its content's offset, size and crc32."""
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = sum(map(len, parts)), TAR_MTIME, TAR_MODE
        offset = self.size + TAR_BLOCK
        padding = bytes(-member.size % TAR_BLOCK)
        crc32 = self._write([member.tobuf(tarfile.USTAR_FORMAT), *parts, padding], slice(1, -1))
        return offset, member.size, crc32

    def _write(self, parts: Sequence[bytes | memoryview], counted: slice = slice(0)) -> int:
        """Write the parts; returns the crc32 of those counted."""
        hashing = self._hasher.submit(self._hash, parts)
        for part in parts:
            self.file.write(part)
            self.size += len(part)
        if self.size - self._synced >= SYNC_BYTES:
            self._sync_behind()
            self._synced = self.size
        crc32 = reduce(lambda crc, part: isal_zlib.crc32(part, crc), parts[counted], 0)
        hashing.result()
        return crc32

    def _hash(self, parts: Sequence[bytes | memoryview]) -> None:
        for part in parts:
            self.sha256.update(part)


@contextmanager
def _syncing_behind(file: IO[bytes]) -> Iterator[Callable[[], None]]:
    """A call that sends what is written on to the disk, beside the work: the last fsync finds little left."""
    with ThreadPoolExecutor(1, "sync-behind") as thread:
        last = thread.submit(lambda: None)

        def sync_behind() -> None:
            nonlocal last
            if last.done():
                last.result()  # a disk error is told only once: to the fsync that met it
                file.flush()
                last = thread.submit(os.fsync, file.fileno())

        yield sync_behind
        last.result()


@contextmanager
def only_writer(directory: Path, shard: int) -> Iterator[None]:
    """Hold this shard against every other process; the kernel lets go when the holder dies."""
    lock = directory / f".{shard:06d}.lock"
    with _locked(lock, shard):
        for leftover in directory.glob(f".{shard:06d}.*.tmp"):
            leftover.unlink(missing_ok=True)  # nobody else may write this shard now: its writer is dead
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def _locked(lock: Path, shard: int) -> Iterator[None]:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ShardBusyError(
                    f"{lock.parent}: shard {shard} is being written by another process; "
                    f"let it finish, or stop it and run again"
                ) from error
            if _is_at(descriptor, lock):
                yield
                return
            # The former holder removed its lock file between our open and our lock: take a fresh one.
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _written_aside(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
    """A file beside `path`, and a `commit` that makes it `path`, durably. Uncommitted, it vanishes."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def commit() -> None:
        file.flush()
        os.fsync(file.fileno())
        aside.rename(path)
        _sync_directory(path.parent)

    try:
        with aside.open("wb") as file:
            yield file, commit
    finally:
        aside.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain_json(value: Any) -> Any:
    """The value as a reader of the record will see it."""
    return json.loads(canonical_json(value))
