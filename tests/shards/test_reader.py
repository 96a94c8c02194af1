"""Reading whole data sets, by offset and as a stream, and that nothing damaged is ever handed out."""

from __future__ import annotations

import errno
import functools
import hashlib
import http.server
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from shards.reader import ShardSet, stream
from shards.record import ShardRecord, canonical_json
from shards.spec import CODES, FEATURES, META, Sample, ShardError
from shards.verify import verify_shard
from shards.writer import write_shard
from tests.samples import FINGERPRINT, flipped, make_sample, make_shards

ROOMS = [[make_sample("a"), make_sample("b", 2.5, split="test")], [make_sample("c", 3), make_sample("d")]]
SAMPLES = [sample for shard in ROOMS for sample in shard]


@pytest.fixture
def data(tmp_path) -> Path:
    return make_shards(tmp_path / "shards", ROOMS)


def assert_equal(found: Sample, wanted: Sample) -> None:
    assert found.key == wanted.key
    assert found.meta == {**wanted.meta, "key": wanted.key}
    np.testing.assert_array_equal(found.features, wanted.features)
    np.testing.assert_array_equal(found.codes, wanted.codes)


def test_every_sample_comes_back_as_it_was_written(data):
    shards = ShardSet.open(data)
    assert len(shards) == len(SAMPLES)
    for index, wanted in enumerate(SAMPLES):
        assert_equal(shards.read(index), wanted)


def test_a_split_holds_its_own_samples_only(data):
    assert [ref.record.key for ref in ShardSet.open(data, split="test").samples] == ["b"]
    assert [ref.record.key for ref in ShardSet.open(data, split="train").samples] == ["a", "c", "d"]
    assert [sample.key for sample in stream(data, "test")] == ["b"]


def test_rows_are_read_straight_into_a_callers_array(data):
    shards = ShardSet.open(data)
    room = np.full((4, 577, 1), 7, np.float16)
    shards.read_rows(2, FEATURES, room[1:3], start=1)
    np.testing.assert_array_equal(room[1:3], SAMPLES[2].features[1:3])
    assert (room[[0, 3]] == 7).all()
    np.testing.assert_array_equal(shards.read_array(2, CODES), SAMPLES[2].codes)


def test_reading_imports_no_torch():
    code = "import sys, shards.reader, shards.writer, shards.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_a_plain_webdataset_reader_reads_our_tars(data):
    urls = str(data / "{000000..000001}.tar")
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in found] == ["a", "b", "c", "d"]
    for sample, wanted in zip(found, SAMPLES, strict=True):
        np.testing.assert_array_equal(sample[FEATURES], wanted.features)
        np.testing.assert_array_equal(sample[CODES], wanted.codes)
        assert sample[META] == {**wanted.meta, "key": wanted.key}


def test_a_plain_tar_program_lists_our_tars(data):
    done = subprocess.run(["tar", "-tf", data / "000000.tar"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"{key}.{name}" for key in "ab" for name in (CODES, FEATURES, META)]
    assert done.stderr == ""


def test_the_stream_gives_the_same_samples_and_can_shuffle_shards(data):
    for found, wanted in zip(stream(data), SAMPLES, strict=True):
        assert_equal(found, wanted)
    orders = {"".join(sample.key for sample in stream(data, shard_seed=seed)) for seed in range(8)}
    assert orders == {"abcd", "cdab"}


def test_stream_workers_share_out_the_shards(data):
    loader = torch.utils.data.DataLoader(stream(data), batch_size=None, num_workers=2, collate_fn=keep)
    assert sorted(sample.key for sample in loader) == ["a", "b", "c", "d"]


def keep(sample: Sample) -> Sample:
    return sample


@pytest.fixture
def web_server(data) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(data))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="WebDataset reads http through curl")
def test_the_stream_reads_tars_from_a_web_server(data, web_server, tmp_path):
    records = tmp_path / "records"
    records.mkdir()
    for path in data.glob("*.json"):
        (records / path.name).write_bytes(path.read_bytes())
    for found, wanted in zip(stream(records, tars=web_server), SAMPLES, strict=True):
        assert_equal(found, wanted)


def test_a_tar_without_its_record_is_not_seen(data):
    (data / "000000.json").unlink()
    assert [ref.record.key for ref in ShardSet.open(data).samples] == ["c", "d"]


def test_no_shards_at_all_says_which_command_makes_some(tmp_path):
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ShardError, match=r"no complete shard here\. Make some: gvm-prep encode"):
            ShardSet.open(directory)


def test_a_record_without_its_tar_is_an_error(data):
    (data / "000001.tar").unlink()
    with pytest.raises(
        ShardError, match=r"000001.tar: its commit record is here, the tar is not. Run: .*--shards 1 "
    ):
        ShardSet.open(data)


def test_other_encoders_are_refused_with_what_differs(data):
    other = {**FINGERPRINT, "video": {"model": "ViT-tiny", "layer": 6}}
    write_shard(data, 7, [make_sample("z")], plan_hash="plan", fingerprint=other)
    with pytest.raises(ShardError, match=r"000007.tar: .*video.layer: found 6, wanted 5"):
        ShardSet.open(data)


def test_one_key_in_two_shards_is_refused(data):
    make_shards(data, [ROOMS[0], [make_sample("a", 2)]])
    with pytest.raises(ShardError, match=r"000001.tar: sample a is in 000000.tar too"):
        ShardSet.open(data)


def test_the_plan_hash_follows_shards_plans_samples_and_split(data):
    hashes = {ShardSet.open(data, split).plan_hash for split in (None, "train", "test")}
    assert ShardSet.open(data).plan_hash in hashes
    write_shard(data, 1, [ROOMS[1][0]], plan_hash="plan", fingerprint=FINGERPRINT)
    hashes.add(ShardSet.open(data).plan_hash)
    write_shard(data, 1, [ROOMS[1][0]], plan_hash="other plan", fingerprint=FINGERPRINT)
    hashes.add(ShardSet.open(data).plan_hash)
    assert len(hashes) == 5


def test_a_tar_cut_at_every_block_is_found_by_name_and_gives_no_partial_sample(data):
    """Opened before the cut, opened after it, streamed, verified: each sees the damage."""
    tar = data / "000000.tar"
    whole = tar.read_bytes()
    opened_before = ShardSet.open(data)
    for size in range(0, len(whole), 512):
        tar.write_bytes(whole[:size])
        with pytest.raises(ShardError, match=r"000000.tar"):
            ShardSet.open(data)
        with pytest.raises(ShardError, match=r"000000.tar: sample a"):
            opened_before.read(0)
        assert_only_whole_samples_until_an_error(data, size)
        (problem, *_) = verify_shard(data, 0)
        assert "000000.tar" in problem
        assert "gvm-prep encode --shards 0 --force" in problem


def assert_only_whole_samples_until_an_error(data: Path, size: int) -> None:
    last_byte = max(
        field.offset + field.size
        for sample in ShardRecord.load(data / "000000.json").samples
        for field in sample.fields.values()
    )
    if size >= last_byte:  # only the tar's padding is gone
        assert [sample.key for sample in stream(data)] == ["a", "b", "c", "d"]
        return
    received: list[Sample] = []
    with pytest.raises(ShardError, match=r"000000.tar: sample [ab]"):
        received.extend(stream(data))
    for found, wanted in zip(received, SAMPLES, strict=False):
        assert_equal(found, wanted)


def test_a_tar_that_goes_away_or_cannot_be_read_names_the_sample(data, monkeypatch):
    shards = ShardSet.open(data)
    monkeypatch.setattr("os.preadv", failing_disk)
    with pytest.raises(
        ShardError, match=r"000000.tar: sample a: its tar cannot be read at byte 2048 \(Input/output"
    ):
        shards.read(0)
    (data / "000000.tar").unlink()
    with pytest.raises(ShardError, match=r"000000.tar: sample a: its tar cannot be opened \(No such file"):
        shards.check(0)


def failing_disk(*_: object) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_flipped_bit_is_found_in_any_field_of_any_sample(data):
    tar = data / "000000.tar"
    whole = tar.read_bytes()
    for index, sample in enumerate(ShardRecord.load(data / "000000.json").samples):
        for name, field in sample.fields.items():
            for place in (field.offset, field.offset + field.size // 2, field.offset + field.size - 1):
                tar.write_bytes(flipped(whole, place))
                damage = rf"000000.tar: sample {sample.key}: {name} is damaged"
                shards = ShardSet.open(data)
                for read in (shards.check, shards.read):
                    with pytest.raises(ShardError, match=damage):
                        read(index)
                with pytest.raises(ShardError, match=damage):
                    list(stream(data))
                assert any(
                    f"sample {sample.key}: {name} is damaged" in p for p in verify_shard(data, 0, deep=True)
                )


def test_a_damaged_record_is_refused_and_named(data):
    record = data / "000000.json"
    whole = record.read_bytes()
    for damaged in (
        b"",
        whole[:100],
        b"[]",
        b"null",
        b"{}",
        whole.replace(b'"train"', b'"tests"'),
        b"\xff" + whole,
    ):
        record.write_bytes(damaged)
        for read in (ShardSet.open, stream):
            with pytest.raises(ShardError, match=r"000000.json"):
                read(data)
        assert "000000.json" in verify_shard(data, 0)[0]


def test_a_record_of_another_spec_is_refused(data):
    rewrite_record(data / "000000.json", spec_version=2)
    with pytest.raises(ShardError, match="written to spec 2, this program reads spec 1"):
        ShardSet.open(data)


def rewrite_record(path: Path, **changes: object) -> None:
    """A record that is false but whole: its own checksum is right."""
    body = json.loads(path.read_bytes())
    del body["record_sha256"]
    body |= changes
    body["record_sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
    path.write_bytes(canonical_json(body))


class Bomb:
    """Executed when unpickled: it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def npy_with_pickle(bomb: Bomb) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([bomb], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a.payload.pkl", "a.payload.pyd", "x.features.npy", "b.meta.json.pickle"])
def test_a_pickle_member_is_found_by_name_and_never_executed(data, tmp_path, name):
    exploded = tmp_path / "exploded"
    tar = data / "000000.tar"
    append_member(tar, name, pickle.dumps(Bomb(exploded)))
    rewrite_record(data / "000000.json", tar_bytes=tar.stat().st_size)
    assert any(name in problem for problem in verify_shard(data, 0))
    with pytest.raises(ShardError, match=f"000000.tar: sample {name[0]}"):
        list(stream(data))
    assert ShardSet.open(data).read(0).key == "a"  # by offset; the stranger is not even seen
    assert not exploded.exists()


def append_member(tar: Path, name: str, payload: bytes) -> None:
    with tarfile.open(tar, "a") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(payload)
        archive.addfile(member, io.BytesIO(payload))


def test_a_pickle_inside_an_npy_is_refused_and_never_executed(data, tmp_path):
    """Even with a record that vouches for it."""
    exploded = tmp_path / "exploded"
    bomb = npy_with_pickle(Bomb(exploded))
    record = json.loads((data / "000000.json").read_bytes())
    field = record["samples"][0]["fields"][FEATURES]
    tar = data / "000000.tar"
    whole = bytearray(tar.read_bytes())
    whole[field["offset"] : field["offset"] + len(bomb)] = bomb
    tar.write_bytes(whole)
    payload = bytes(whole[field["offset"] : field["offset"] + field["size"]])
    field["crc32"] = zlib.crc32(payload)
    rewrite_record(data / "000000.json", samples=record["samples"])
    with pytest.raises(ShardError, match=r"sample a: features.npy is no plain .npy file"):
        ShardSet.open(data).read(0)
    with pytest.raises(ShardError, match=r"sample a: features.npy is no plain .npy file"):
        list(stream(data))
    assert any("no plain .npy" in problem for problem in verify_shard(data, 0, deep=True))
    assert not exploded.exists()
