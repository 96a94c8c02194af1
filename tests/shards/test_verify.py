"""Whatever is wrong with a shard, one sentence names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.record import ShardRecord
from shards.spec import FEATURES, META, Sample
from shards.verify import verify_shard
from shards.writer import write_shard
from tests.samples import FINGERPRINT, flipped, make_sample, make_shards


@pytest.fixture
def data(tmp_path) -> Path:
    rooms = [[make_sample("a"), make_sample("b", 2.5, split="test")], [make_sample("c", 3)]]
    return make_shards(tmp_path / "shards", rooms)


def test_a_sound_shard_has_no_problems(data):
    assert verify_shard(data, 0) == verify_shard(data, 0, deep=True) == []


def test_the_first_lost_sample_of_a_cut_tar_is_named(data):
    record = ShardRecord.load(data / "000000.json")
    cut = record.samples[1].fields[META].offset
    (data / "000000.tar").write_bytes((data / "000000.tar").read_bytes()[:cut])
    assert "cut, from sample b on" in verify_shard(data, 0)[0]


def test_deep_verify_finds_a_flipped_bit_at_any_byte_of_tar_or_record(data):
    for path in (data / "000000.tar", data / "000000.json"):
        whole = path.read_bytes()
        for place in range(0, len(whole), 97):
            path.write_bytes(flipped(whole, place))
            assert verify_shard(data, 0, deep=True) != [], f"{path.name} at byte {place}"
        path.write_bytes(whole)
    assert verify_shard(data, 0, deep=True) == []


def test_shallow_verify_reads_headers_only(data):
    field = ShardRecord.load(data / "000000.json").samples[0].fields[FEATURES]
    tar = data / "000000.tar"
    tar.write_bytes(flipped(tar.read_bytes(), field.offset + 500))
    assert verify_shard(data, 0) == []
    assert verify_shard(data, 0, deep=True) != []


def test_a_shard_that_is_not_there_is_a_problem(data):
    (data / "000001.tar").unlink()
    assert "000005.tar: has no commit record" in verify_shard(data, 5)[0]
    assert "000001.tar: its commit record is here, the tar is not" in verify_shard(data, 1)[0]


def test_a_sample_against_the_spec_is_found_though_its_bytes_are_as_written(data, monkeypatch):
    monkeypatch.setattr("shards.writer.check_sample", lambda sample, where: None)
    sound = make_sample("z")
    false = Sample("z", sound.features, sound.codes + 2048, sound.meta)
    write_shard(data, 3, [false], plan_hash="plan", fingerprint=FINGERPRINT)
    assert verify_shard(data, 3) == []
    (problem,) = verify_shard(data, 3, deep=True)
    assert "sample z: codes.npy holds ids outside 0 … 2047" in problem
