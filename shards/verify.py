"""One shard against its commit record, the spec and its checksums."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from shards.reader import ShardSet
from shards.record import SampleRecord, ShardRecord, remedy
from shards.remote import RemotePath
from shards.spec import META, Sample, ShardError, check_sample, record_path, tar_path


def verify_shard(directory: Path, shard: int, deep: bool = False) -> list[str]:
    """What is wrong with a shard, one sentence a problem; empty where all is well.

    Shallow: the record is intact, the tar has its size and holds just the recorded members, where the record
    says (headers only). Deep: every byte against its checksum, and every sample against the spec.
    """
    tar = tar_path(directory, shard)
    try:
        record = ShardRecord.load(record_path(directory, shard))
    except FileNotFoundError:
        return [f"{tar}: has no commit record, so the shard is not complete. {remedy(tar)}"]
    except ShardError as error:
        return [str(error)]
    if not tar.exists():
        return [f"{tar}: its commit record is here, the tar is not. {remedy(tar)}"]
    if isinstance(tar, RemotePath):
        return _remote_problems(tar, record, deep)
    problems = [*_size_problems(tar, record), *_member_problems(tar, record)]
    if deep and not problems:
        problems += [*_sample_problems(tar, record), *_hash_problems(tar, record)]
    return problems


def _remote_problems(tar: RemotePath, record: ShardRecord, deep: bool) -> list[str]:
    """Shallow: size alone, as a store keeps an object as it was put. Deep: fetched, and read here."""
    problems = list(_size_problems(tar, record))
    if problems or not deep:
        return problems
    with TemporaryDirectory(prefix="gvm-verify-") as folder:
        here = Path(folder, tar.name)
        tar.download(here)
        problems = [
            *_member_problems(here, record),
            *_sample_problems(here, record),
            *_hash_problems(here, record),
        ]
    return [problem.replace(str(here), str(tar)) for problem in problems]


def _size_problems(tar: Path | RemotePath, record: ShardRecord) -> Iterator[str]:
    size = tar.stat().st_size
    if size == record.tar_bytes:
        return
    ends = ((max(f.offset + f.size for f in sample.fields.values()), sample.key) for sample in record.samples)
    lost = [key for end, key in ends if end > size]
    what = f"; cut, from sample {lost[0]} on" if lost else ""
    yield f"{tar}: holds {size} bytes, its commit record says {record.tar_bytes}{what}. {remedy(tar)}"


def _member_problems(tar: Path, record: ShardRecord) -> Iterator[str]:
    """Members that are missing, moved or not ours."""
    wanted = {
        f"{sample.key}.{name}": (field.offset, field.size)
        for sample in record.samples
        for name, field in sample.fields.items()
    }
    found: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                place = (member.offset_data, member.size)
                if wanted.get(member.name) != place or not member.isreg() or member.name in found:
                    yield f"{tar}: member {member.name} is not as in the commit record. {remedy(tar)}"
                found[member.name] = place
    except (tarfile.TarError, OSError) as error:
        yield f"{tar}: cannot be read as a tar after {len(found)} members ({error}). {remedy(tar)}"
    for name in wanted:
        if name not in found:
            yield f"{tar}: sample {name.partition('.')[0]}: member {name} is missing. {remedy(tar)}"


def _sample_problems(tar: Path, record: ShardRecord) -> Iterator[str]:
    shards = ShardSet([(tar, record)])
    for index, wanted in enumerate(record.samples):
        try:
            sample = shards.read(index)
            check_sample(sample, str(tar))
        except ShardError as error:
            yield str(error)
        else:
            yield from _meta_problems(tar, wanted, sample)


def _meta_problems(tar: Path, wanted: SampleRecord, sample: Sample) -> Iterator[str]:
    found = {
        "key": sample.meta.get("key"),
        "split": sample.meta.get("split", wanted.split),
        "duration_s": sample.meta.get("duration_s", wanted.duration_s),
    }
    for name, value in found.items():
        if value != getattr(wanted, name):
            yield (
                f"{tar}: sample {wanted.key}: {META} says {name} {value!r}, "
                f"the commit record {getattr(wanted, name)!r}. {remedy(tar)}"
            )


def _hash_problems(tar: Path, record: ShardRecord) -> Iterator[str]:
    """Catches a change between the members, which no sample's checksum covers."""
    with tar.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != record.tar_sha256:
        yield f"{tar}: its sha256 differs from the commit record's. {remedy(tar)}"
