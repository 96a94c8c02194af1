"""Commit records -> random access to samples by byte offset; a plain WebDataset stream beside it.

`ShardSet` is for local disks, and for object stores through a cache on one: exact, any order. `stream` needs
no disk: shard by shard, and a weaker promise. Neither ever unpickles, and neither ever hands out a part of a
sample.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from isal import isal_zlib

from shards.feature_codec import Int8Codec
from shards.record import SampleRecord, ShardRecord, canonical_json, remedy
from shards.remote import RemotePath
from shards.sample_cache import Extent, sample_cache
from shards.spec import (
    CODES,
    FEATURES,
    FIELDS,
    META,
    Fingerprint,
    Sample,
    ShardError,
    fingerprint_differences,
)

NUM_LOADERS = 16
CHECK_BYTES = 1 << 20  # a checksum reads in steps that stay in the processor's cache


@dataclass(frozen=True, slots=True)
class SampleRef:
    """A sample, and the tar that holds it."""

    tar: Path
    tar_bytes: int
    record: SampleRecord
    feature_codec: Int8Codec | None = None  # how its features lie in the tar; None: as float16

    def error(self, what: str) -> ShardError:
        return ShardError(f"{self.tar}: sample {self.record.key}: {what}. {remedy(self.tar)}")


class ShardSet:
    """All complete shards of a directory, as one sequence of samples. Safe to read from many threads."""

    def __init__(self, records: Sequence[tuple[Path, ShardRecord]], split: str | None = None) -> None:
        self.records = records
        self.samples: Sequence[SampleRef] = [
            SampleRef(tar, record.tar_bytes, sample, record.feature_codec)
            for tar, record in records
            for sample in record.samples
            if split is None or sample.split == split
        ]

    @classmethod
    def open(cls, directory: Path, split: str | None = None) -> Self:
        """The complete shards, in order. A tar without its record is unfinished work and not seen.

        Raises ShardError where there is no complete shard, a tar is not what its record says, or two shards
        were made with different encoders.
        """
        with ThreadPoolExecutor(NUM_LOADERS) as threads:  # an object store answers many as fast as one
            records = list(threads.map(_load_beside_tar, record_files(directory)))
        if not records:
            raise ShardError(f"{directory}: no complete shard here. Make some: gvm-prep encode --shards 0-99")
        _refuse_mixed(records)
        _refuse_twice(records)
        return cls(records, split)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def fingerprint(self) -> Fingerprint:
        """What made the data: the same for every shard."""
        return self.records[0][1].fingerprint

    @cached_property
    def plan_hash(self) -> str:
        """Changes with shards, plans or samples: equal hashes mean the same samples in the same order."""
        contents = [[record.shard, record.plan_hash] for _, record in self.records]
        keys = [ref.record.key for ref in self.samples]
        return hashlib.sha256(canonical_json([contents, keys])).hexdigest()

    def read(self, index: int) -> Sample:
        """One whole sample, checked against its checksums."""
        ref = self.samples[index]
        with _opened(ref) as opened:
            payloads = {name: _read_field(ref, opened, name) for name in FIELDS}
        return _decode(ref, payloads)

    def read_array(self, index: int, name: str) -> np.ndarray:
        """One array field of a sample as it lies in the tar, checked against its checksum."""
        ref = self.samples[index]
        with _opened(ref) as opened:
            return _decode_array(ref, name, _read_field(ref, opened, name))

    def read_features(self, index: int, out: np.ndarray, start: int = 0) -> None:
        """Fill `out`, float16 [frames, P, D], with a sample's features from frame `start` on.

        The same values as those of `read`, however they lie in the tar. As for `read_rows`, `check` first.
        """
        codec = self.samples[index].feature_codec
        if codec is None:
            self.read_rows(index, FEATURES, out, start)
            return
        levels = np.empty((1, *out.shape[1:]), np.int8)
        for frame in range(len(out)):
            self.read_rows(index, FEATURES, levels, start + frame)
            codec.decode(levels, out[frame : frame + 1])

    def read_rows(self, index: int, name: str, out: np.ndarray, start: int = 0) -> None:
        """Fill `out` with an array's rows start … start + len(out), straight from the tar.

        out: C-contiguous, of the field's dtype, [rows, …]. No checksum covers a few rows: `check` first.
        """
        ref = self.samples[index]
        field = ref.record.fields[name]
        wanted = (field.dtype, field.shape[1:])
        assert (str(out.dtype), out.shape[1:]) == wanted, f"{out.dtype} {out.shape} for rows {wanted}"
        assert 0 <= start <= start + len(out) <= field.shape[0], f"rows from {start} of {field.shape}"
        with _opened(ref) as opened:
            _fill(
                ref,
                opened,
                out.reshape(-1).view(np.uint8).data,
                field.array_offset + start * field.row_bytes,
            )

    def check(self, index: int) -> None:
        """Read a sample through and compare its checksums. Raises ShardError that names sample and field."""
        ref = self.samples[index]
        scratch = memoryview(bytearray(CHECK_BYTES))
        with _opened(ref) as opened:
            for name, field in ref.record.fields.items():
                checksum = 0
                for done in range(0, field.size, CHECK_BYTES):
                    piece = scratch[: min(CHECK_BYTES, field.size - done)]
                    _fill(ref, opened, piece, field.offset + done)
                    checksum = isal_zlib.crc32(piece, checksum)
                _compare(ref, name, checksum)


def stream(
    directory: Path, split: str | None = None, *, tars: str | None = None, shard_seed: int | None = None
) -> Iterable[Sample]:
    """The samples shard after shard through WebDataset, for stores where a seek is slow: an IterableDataset.

    The commit records are read from `directory` (they are small: copy them), the tars from the folder or URL
    `tars`, which WebDataset opens, by default `directory` too. `shard_seed` shuffles the order of the shards.

    Every sample is still checked against its record, and a cut tar is an error. The promise about order is
    weaker than ShardSet's: it changes with the number of processes and workers, which share out whole shards;
    the samples of a shard come together; a run resumes at the first shard of an epoch; processes may get
    unequal numbers of samples.
    """
    import webdataset  # it loads torch where there is one

    folder = tars or str(directory)
    shards = {
        f"{folder}/{path.stem}.tar": (path.with_suffix(".tar"), ShardRecord.load(path))
        for path in record_files(directory)
    }
    urls = list(shards)
    if shard_seed is not None:
        random.Random(shard_seed).shuffle(urls)
    return webdataset.DataPipeline(
        webdataset.SimpleShardList(urls),
        webdataset.split_by_node,
        webdataset.split_by_worker,
        partial(_stream_shards, shards=shards, split=split),
    )


def record_files(directory: Path) -> list[Path]:
    """The commit records of a directory, by shard number; none where there is no such directory."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if re.fullmatch(r"\d{6}\.json", path.name))


def _load_beside_tar(path: Path) -> tuple[Path, ShardRecord]:
    record, tar = ShardRecord.load(path), path.with_suffix(".tar")
    try:
        size = tar.stat().st_size
    except FileNotFoundError as error:
        raise ShardError(f"{tar}: its commit record is here, the tar is not. {remedy(tar)}") from error
    if size != record.tar_bytes:
        raise ShardError(
            f"{tar}: holds {size} bytes, its commit record says {record.tar_bytes}. {remedy(tar)}"
        )
    return tar, record


def _refuse_mixed(records: Sequence[tuple[Path, ShardRecord]]) -> None:
    first_tar, first = records[0]
    for tar, record in records[1:]:
        differences = fingerprint_differences(record.fingerprint, first.fingerprint)
        if differences:
            raise ShardError(
                f"{tar}: made by other encoders than {first_tar.name}: {'; '.join(differences)}. "
                f"{remedy(tar)}"
            )


def _refuse_twice(records: Sequence[tuple[Path, ShardRecord]]) -> None:
    home: dict[str, Path] = {}
    for tar, record in records:
        for sample in record.samples:
            if home.setdefault(sample.key, tar) != tar:
                raise ShardError(
                    f"{tar}: sample {sample.key} is in {home[sample.key].name} too; "
                    f"these shards come from different plans: keep one of the two"
                )


class _Opened(NamedTuple):
    """A tar, or as much of it as lies on this machine."""

    descriptor: int
    start: int = 0  # byte of the tar at which the file begins


@contextmanager
def _opened(ref: SampleRef) -> Iterator[_Opened]:
    """The sample's tar, which must still be the one its record describes; a remote one's sample, fetched."""
    opened = _open_fetched(ref, ref.tar) if isinstance(ref.tar, RemotePath) else _Opened(_open_tar(ref))
    try:
        yield opened
    finally:
        os.close(opened.descriptor)


def _open_tar(ref: SampleRef) -> int:
    try:
        descriptor = os.open(ref.tar, os.O_RDONLY)
    except OSError as error:
        raise ref.error(f"its tar cannot be opened ({error.strerror})") from error
    size = os.fstat(descriptor).st_size
    if size != ref.tar_bytes:
        os.close(descriptor)
        raise ref.error(f"its tar holds {size} bytes, the commit record says {ref.tar_bytes}")
    return descriptor


def _open_fetched(ref: SampleRef, tar: RemotePath) -> _Opened:
    extent = Extent(tar, ref.record.fields)
    try:
        descriptor, broken = sample_cache().open(extent)
    except FileNotFoundError as error:
        raise ref.error("its tar is not there") from error
    if broken is not None:
        raise ref.error(broken)
    return _Opened(descriptor, extent.start)


def _fill(ref: SampleRef, opened: _Opened, out: memoryview, offset: int) -> None:
    while out:
        try:
            count = os.preadv(opened.descriptor, [out], offset - opened.start)
        except OSError as error:
            raise ref.error(f"its tar cannot be read at byte {offset} ({error.strerror})") from error
        if count == 0:
            raise ref.error(f"its tar ends at byte {offset}")
        out, offset = out[count:], offset + count


def _read_field(ref: SampleRef, opened: _Opened, name: str) -> bytearray:
    field = ref.record.fields[name]
    payload = bytearray(field.size)
    _fill(ref, opened, memoryview(payload), field.offset)
    _compare(ref, name, isal_zlib.crc32(payload))
    return payload


def _compare(ref: SampleRef, name: str, checksum: int) -> None:
    if checksum != ref.record.fields[name].crc32:
        raise ref.error(f"{name} is damaged: its checksum differs from the commit record's")


def _decode(ref: SampleRef, payloads: Mapping[str, bytes | bytearray]) -> Sample:
    return Sample(
        key=ref.record.key,
        features=_decode_features(ref, payloads[FEATURES]),
        codes=_decode_array(ref, CODES, payloads[CODES]),
        meta=json.loads(payloads[META]),
    )


def _decode_features(ref: SampleRef, payload: bytes | bytearray) -> np.ndarray:
    stored = _decode_array(ref, FEATURES, payload)
    if ref.feature_codec is None:
        return stored
    features = np.empty(stored.shape, np.float16)
    ref.feature_codec.decode(stored, features)
    return features


def _decode_array(ref: SampleRef, name: str, payload: bytes | bytearray) -> np.ndarray:
    field = ref.record.fields[name]
    try:
        array = np.lib.format.read_array(io.BytesIO(payload), allow_pickle=False)
    except ValueError as error:
        raise ref.error(f"{name} is no plain .npy file ({error})") from error
    if (str(array.dtype), array.shape) != (field.dtype, field.shape):
        raise ref.error(
            f"{name} is {array.dtype} {array.shape}, the commit record says {field.dtype} {field.shape}"
        )
    return array


def _stream_shards(
    sources: Iterable[dict[str, Any]], *, shards: Mapping[str, tuple[Path, ShardRecord]], split: str | None
) -> Iterator[Sample]:
    from webdataset.tariterators import tarfile_samples

    for source in sources:
        tar, record = shards[source["url"]]
        for sample in _stream_shard(tarfile_samples(iter([source])), tar, record):
            if split is None or sample.meta.get("split", "train") == split:
                yield sample


def _stream_shard(found: Iterator[dict[str, Any]], tar: Path, record: ShardRecord) -> Iterator[Sample]:
    for sample in record.samples:
        ref = SampleRef(tar, record.tar_bytes, sample, record.feature_codec)
        payloads = _next_payloads(found, ref)
        for name in FIELDS:
            _compare(ref, name, isal_zlib.crc32(payloads[name]))
        yield _decode(ref, payloads)
    surplus = next(found, None)
    if surplus is not None:
        raise ShardError(f"{tar}: sample {surplus['__key__']}: not in the commit record. {remedy(tar)}")


def _next_payloads(found: Iterator[dict[str, Any]], ref: SampleRef) -> dict[str, bytes]:
    try:
        sample = next(found, None)
    except (tarfile.TarError, OSError) as error:
        raise ref.error(f"its tar cannot be read here ({error})") from error
    if sample is None:
        raise ref.error("its tar ends before it")
    if sample["__key__"] != ref.record.key:
        raise ref.error(f"sample {sample['__key__']} lies in its place")
    payloads = {name: value for name, value in sample.items() if not name.startswith("__")}
    if set(payloads) != set(FIELDS):
        raise ref.error(f"holds {sorted(payloads)}, the spec wants {sorted(FIELDS)}")
    return payloads
