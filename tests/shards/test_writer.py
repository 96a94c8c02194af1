"""What a shard is on disk, and that a killed, failed or rival writer never spoils one."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import resource
import signal
import tarfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess as Process
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
from webdataset import TarWriter

from shards.reader import ShardSet
from shards.record import ShardRecord, canonical_json
from shards.spec import FIELDS, Sample, ShardBusyError, ShardError, check_sample
from shards.verify import verify_shard
from shards.writer import TAR_MTIME, write_durably, write_shard
from tests.samples import FINGERPRINT, make_sample

FORK = multiprocessing.get_context("fork")  # children start with the libraries loaded
SAMPLES = [make_sample("a", 1), make_sample("b", 2.5, split="test"), make_sample("c", 1)]


def write(directory: Path, samples: object = SAMPLES, shard: int = 42, **settings: object) -> ShardRecord:
    return write_shard(directory, shard, samples, plan_hash="plan", fingerprint=FINGERPRINT, **settings)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_shard_is_a_tar_and_a_commit_record_and_nothing_else(tmp_path):
    record = write(tmp_path / "data" / "shards")
    assert set(files(tmp_path / "data" / "shards")) == {"000042.tar", "000042.json"}
    assert ShardRecord.load(tmp_path / "data" / "shards" / "000042.json") == record


def test_equal_samples_give_equal_bytes(tmp_path):
    write(tmp_path / "one")
    time.sleep(1.1)  # a tar header holds whole seconds
    write(tmp_path / "two", iter(SAMPLES))
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize("num_samples", [0, 1, 3])
def test_a_tar_is_what_webdatasets_own_writer_makes(tmp_path, num_samples):
    write(tmp_path, SAMPLES[:num_samples])
    theirs = io.BytesIO()
    with TarWriter(theirs, encoder=False, user="", group="", mtime=TAR_MTIME, compress=False) as tar:
        for sample in SAMPLES[:num_samples]:
            arrays = {"features.npy": io.BytesIO(), "codes.npy": io.BytesIO()}
            np.save(arrays["features.npy"], sample.features)
            np.save(arrays["codes.npy"], sample.codes)
            meta = canonical_json({**sample.meta, "key": sample.key}) + b"\n"
            fields = {name: content.getvalue() for name, content in arrays.items()}
            tar.write({"__key__": sample.key, **fields, "meta.json": meta})
    assert (tmp_path / "000042.tar").read_bytes() == theirs.getvalue()


def test_the_record_tells_where_each_field_lies(tmp_path):
    record = write(tmp_path)
    with tarfile.open(tmp_path / "000042.tar") as tar:
        found = {member.name: (member.offset_data, member.size) for member in tar}
    stated = {
        f"{sample.key}.{name}": (field.offset, field.size)
        for sample in record.samples
        for name, field in sample.fields.items()
    }
    assert stated == found
    assert [set(sample.fields) for sample in record.samples] == [set(FIELDS)] * 3


def test_the_record_carries_split_duration_plan_encoders_and_what_was_left_out(tmp_path):
    left_out = [{"key": "d", "stage": "decode", "message": "zero bytes"}]
    record = write(tmp_path, left_out=left_out)
    assert [(s.key, s.split, s.duration_s) for s in record.samples] == [
        ("a", "train", 1),
        ("b", "test", 2.5),
        ("c", "train", 1),
    ]
    assert (record.plan_hash, record.fingerprint, list(record.left_out)) == ("plan", FINGERPRINT, left_out)


def test_what_is_left_out_may_be_found_out_while_the_samples_run(tmp_path):
    left_out: list[dict[str, str]] = []

    def encode() -> Iterator[Sample]:
        yield SAMPLES[0]
        left_out.append({"key": "b"})

    assert write(tmp_path, encode(), left_out=left_out).left_out == ({"key": "b"},)


def test_a_shard_of_failures_only_is_complete_and_empty(tmp_path):
    write(tmp_path, [], left_out=[{"key": "a"}])
    assert verify_shard(tmp_path, 42, deep=True) == []
    assert len(ShardSet.open(tmp_path)) == 0


def test_one_sample_at_a_time_is_in_memory(tmp_path):
    alive = 0
    most = 0

    class Counted(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            if self.base is not None and self.ndim == 3:
                alive -= 1

    def encode() -> Iterator[Sample]:
        nonlocal alive, most
        for index in range(6):
            sample = make_sample(f"s{index}")
            alive += 1
            most = max(most, alive)
            yield Sample(sample.key, sample.features.view(Counted), sample.codes, sample.meta)
            del sample

    write(tmp_path, encode())
    assert most <= 2  # the one being written, and the one being made


def test_the_next_sample_is_made_while_the_one_before_is_written(tmp_path, monkeypatch):
    is_at_the_next = threading.Event()

    def check(sample: Sample, where: str) -> None:
        assert is_at_the_next.wait(timeout=20), "written in turn"
        check_sample(sample, where)

    def encode() -> Iterator[Sample]:
        yield SAMPLES[0]
        is_at_the_next.set()
        yield SAMPLES[1]

    monkeypatch.setattr("shards.writer.check_sample", check)
    assert [sample.key for sample in write(tmp_path, encode()).samples] == ["a", "b"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: Sample("a.b", s.features, s.codes), "letters"),
        (lambda s: Sample("../up", s.features, s.codes), "letters"),
        (lambda s: Sample("k" * 81, s.features, s.codes), "1 to 80"),
        (lambda s: Sample("x", s.features.astype(np.float32), s.codes), "features.npy is float32"),
        (lambda s: Sample("x", s.features[:, :576], s.codes), r"features.npy is float16 \(1, 576, 1\)"),
        (lambda s: Sample("x", s.features * np.float16(np.nan), s.codes), "not finite"),
        (lambda s: Sample("x", s.features, s.codes.astype(np.int64)), "codes.npy is int64"),
        (lambda s: Sample("x", s.features, s.codes + np.int16(2048)), "ids outside"),
        (lambda s: Sample("x", s.features, s.codes, {"duration_s": 30.0}), "wants 30 and 1500 for 30.0 s"),
        (lambda s: s, "comes twice"),
    ],
)
def test_a_sample_against_the_contract_is_refused_by_name_and_leaves_nothing(tmp_path, spoil, message):
    with pytest.raises(ShardError, match=message) as caught:
        write(tmp_path, [SAMPLES[0], spoil(SAMPLES[0])])
    assert "000042.tar: sample" in str(caught.value)
    assert files(tmp_path) == {}


def test_the_longest_key_fits_a_plain_tar_header(tmp_path):
    write(tmp_path, [make_sample("k" * 80)])
    assert verify_shard(tmp_path, 42, deep=True) == []


def test_an_error_while_encoding_leaves_the_former_shard_as_it_was(tmp_path):
    write(tmp_path)
    before = files(tmp_path)

    def encode() -> Iterator[Sample]:
        yield make_sample("z")
        raise RuntimeError("no more pictures")

    with pytest.raises(RuntimeError, match="no more pictures"):
        write(tmp_path, encode())
    assert files(tmp_path) == before


def test_a_shard_can_be_replaced(tmp_path):
    write(tmp_path)
    write(tmp_path, [make_sample("z")])
    assert [ref.record.key for ref in ShardSet.open(tmp_path).samples] == ["z"]


def test_leftovers_of_a_dead_writer_are_swept_and_those_of_other_shards_are_not(tmp_path):
    for name in (".000042.tar.99999.tmp", ".000042.json.99999.tmp", ".000007.tar.99999.tmp"):
        (tmp_path / name).write_bytes(b"half")
    write(tmp_path)
    assert set(files(tmp_path)) == {"000042.tar", "000042.json", ".000007.tar.99999.tmp"}


def test_of_two_writers_of_one_shard_one_wins_and_the_other_is_told(tmp_path):
    def encode() -> Iterator[Sample]:
        yield SAMPLES[0]
        rival = FORK.Process(target=write_and_expect_busy, args=(tmp_path,))
        rival.start()
        assert ending(rival) == 0
        yield SAMPLES[1]

    write(tmp_path, encode())
    assert verify_shard(tmp_path, 42, deep=True) == []


def write_and_expect_busy(directory: Path) -> None:
    write(directory, shard=41)  # another shard is free
    with pytest.raises(ShardBusyError, match="shard 42 is being written by another process"):
        write(directory)


def test_many_writers_of_one_shard_leave_one_whole_shard(tmp_path):
    writers = [start_writer(tmp_path) for _ in range(6)]
    endings = [ending(writer) for writer in writers]
    assert 0 in endings
    assert set(endings) <= {0, BUSY}
    assert set(files(tmp_path)) == {"000042.tar", "000042.json"}
    assert verify_shard(tmp_path, 42, deep=True) == []


def test_sigkill_at_any_moment_leaves_a_shard_absent_or_complete(tmp_path):
    """A killed writer, again and again; then the bytes are those of a writer nobody killed."""
    moments = random.Random(1)
    killed = 0
    for _ in range(20):
        writer = start_writer(tmp_path / "killed", pause_s=0.02)
        time.sleep(moments.uniform(0, 0.25))
        writer.kill()
        killed += ending(writer) == -signal.SIGKILL
        if (tmp_path / "killed" / "000042.json").exists():
            assert verify_shard(tmp_path / "killed", 42, deep=True) == []
    assert killed
    for directory in ("killed", "left-alone"):
        assert ending(start_writer(tmp_path / directory)) == 0
    assert files(tmp_path / "killed") == files(tmp_path / "left-alone")


BUSY, DIED = 17, 9  # exit codes


def start_writer(directory: Path, pause_s: float = 0.0) -> Process:
    """A process that writes shard 42, already at it when this returns; slower by `pause_s` a sample."""
    at_work = FORK.Event()
    writer = FORK.Process(target=write_in_a_process, args=(directory, pause_s, at_work))
    writer.start()
    assert at_work.wait(timeout=60)
    return writer


def write_in_a_process(directory: Path, pause_s: float, at_work: Event) -> None:
    def encode() -> Iterator[Sample]:
        for index in range(8):
            at_work.set()
            yield make_sample(f"s{index}", feature_dim=16)
            time.sleep(pause_s)

    try:
        write(directory, encode())
    except ShardBusyError:
        at_work.set()
        os._exit(BUSY)


def ending(process: Process) -> int | None:
    process.join()
    return process.exitcode


@pytest.mark.parametrize("step", range(12))
def test_death_at_each_step_to_disk_leaves_a_shard_absent_or_complete(tmp_path, step):
    """Exit without any clean-up at the nth fsync, rename or unlink of a write that replaces a shard."""
    write(tmp_path)
    child = FORK.Process(target=replace_and_die, args=(tmp_path, step))
    child.start()
    assert ending(child) in (0, DIED)
    try:
        keys = [ref.record.key for ref in ShardSet.open(tmp_path).samples]
    except ShardError as error:
        assert "no complete shard" in str(error)  # noqa: PT017
    else:
        assert verify_shard(tmp_path, 42, deep=True) == []
        assert keys in (["a", "b", "c"], ["x", "y", "z"])
    write(tmp_path, [make_sample("x"), make_sample("y", 2.5), make_sample("z")])
    assert set(files(tmp_path)) == {"000042.tar", "000042.json"}
    assert verify_shard(tmp_path, 42, deep=True) == []


def replace_and_die(directory: Path, step: int) -> None:
    """Replace shard 42 with one of the same size, and die before the `step`-th call that changes the disk."""
    calls = iter(range(step + 1))

    def dying(function):
        def call(*args, **kwargs):
            if next(calls, None) == step:
                os._exit(DIED)
            return function(*args, **kwargs)

        return call

    os.fsync = dying(os.fsync)
    Path.rename = dying(Path.rename)
    Path.unlink = dying(Path.unlink)
    write(directory, [make_sample("x"), make_sample("y", 2.5, split="test"), make_sample("z")])


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    write(tmp_path)
    before = files(tmp_path)
    writer = FORK.Process(target=write_with_little_room, args=(tmp_path,))
    writer.start()
    assert ending(writer) == 0
    assert files(tmp_path) == before


def write_with_little_room(directory: Path) -> None:
    limit_file_size(20_000)
    with pytest.raises(OSError, match="too large"):
        write(directory, (make_sample(f"s{index}", feature_dim=16) for index in range(8)))


def limit_file_size(size: int) -> None:
    """Every write beyond fails, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_that_fills_up_at_the_record_leaves_no_part_of_one(tmp_path):
    writer = FORK.Process(target=write_a_record_with_little_room, args=(tmp_path,))
    writer.start()
    assert ending(writer) == 0
    assert set(files(tmp_path)) == {"000042.tar"}


def write_a_record_with_little_room(directory: Path) -> None:
    limit_file_size(40_000)
    with pytest.raises(OSError, match="too large"):
        write(directory, left_out=[{"key": f"k{index}", "message": "zero bytes"} for index in range(4000)])


def test_write_durably_replaces_a_file_and_keeps_the_old_one_on_an_error(tmp_path):
    path = tmp_path / "plan.json"
    write_durably(path, b"old")
    with pytest.raises(TypeError):
        write_durably(path, None)
    assert files(tmp_path) == {"plan.json": b"old"}
    write_durably(path, b"new")
    assert files(tmp_path) == {"plan.json": b"new"}
