"""int8 data sets: calibrated once, made, resumed and mended like others."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gvmgen.data import SegmentLoader
from pipeline.folder import DataFolder
from pipeline.selection import EncodeConfig, foresee, settled
from pipeline.verification import set_aside_broken, verify
from shards.reader import ShardSet
from shards.record import ShardRecord
from shards.spec import FEATURES, ShardError
from tests.pipeline.encode_runs import CONFIG, NUM_SEGMENTS, Bytes, run, written


@pytest.fixture(scope="module")
def made(crawled: Path, tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    """An int8 data set, made without trouble. Tests take copies."""
    data = DataFolder(shutil.copytree(crawled, tmp_path_factory.mktemp("made") / "data"))
    assert run(data, feature_codec="int8").num_failed == 0
    return data


@pytest.fixture
def int8(made: DataFolder, tmp_path: Path) -> DataFolder:
    return DataFolder(shutil.copytree(made.root, tmp_path / "int8"))


def test_the_loader_hands_out_nearly_the_same_tensors_of_half_the_bytes(
    int8: DataFolder, uninterrupted: Bytes, tmp_path: Path
) -> None:
    for name, content in uninterrupted.items():
        (tmp_path / name).write_bytes(content)
    small, plain = ShardSet.open(int8.shards), ShardSet.open(tmp_path)
    batches = zip(SegmentLoader(small, batch_size=1), SegmentLoader(plain, batch_size=1), strict=False)
    for _, (a, b) in zip(range(NUM_SEGMENTS), batches, strict=False):
        assert (a["keys"], a["features"].dtype, a["features"].shape) == (
            b["keys"],
            b["features"].dtype,
            b["features"].shape,
        )
        error = (a["features"].float() - b["features"].float()).norm() / b["features"].float().norm()
        assert 0 < error < 0.02
        assert (a["codes"] == b["codes"]).all()
    sizes = [sum(s.record.fields[FEATURES].size for s in shards.samples) for shards in (small, plain)]
    assert sizes[0] < 0.51 * sizes[1]
    assert verify(int8, deep=True)[1] == []


def test_a_data_set_stays_what_it_is_without_a_flag(int8: DataFolder, made: DataFolder) -> None:
    tar = sorted(int8.shards.glob("*.tar"))[0]
    tar.with_suffix(".json").unlink()
    tar.unlink()
    assert settled(int8, CONFIG).feature_codec == "int8"
    run(int8)
    assert written(int8) == written(made)


def test_a_broken_sample_is_mended_and_the_others_stay(int8: DataFolder, made: DataFolder) -> None:
    record = max(map(ShardRecord.load, int8.shards.glob("*.json")), key=lambda record: len(record.samples))
    with (int8.shards / f"{record.shard:06d}.tar").open("rb+") as file:
        file.seek(record.samples[-1].fields[FEATURES].offset + 1000)
        file.write(b"?")
    report = run(int8, mend=set_aside_broken(int8, deep=True), cache="off")
    assert report.progress.num_encoded == record.samples[-1].num_frames
    assert written(int8) == written(made)


def test_another_codec_is_refused(int8: DataFolder) -> None:
    with pytest.raises(ShardError, match="made with --feature-codec int8, not fp16"):
        run(int8, feature_codec="fp16")


def test_lost_scales_are_those_of_the_shards(int8: DataFolder) -> None:
    before = int8.feature_scales.read_bytes()
    int8.feature_scales.unlink()
    assert run(int8).made == []
    assert int8.feature_scales.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"feature-scales\.json: damaged"),
        (b'{"scales": [1.0], "weights_sha256": "another"}', "measured with another CLIP"),
    ],
)
def test_scales_that_cannot_be_used_are_named(int8: DataFolder, content: bytes, message: str) -> None:
    int8.feature_scales.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        run(int8)


def test_a_dry_run_tells_half_the_bytes(data: DataFolder) -> None:
    def told(config: EncodeConfig) -> float:
        return float(foresee(data, replace(config, preset="pocket")).split("disk")[1].split()[0])

    assert told(replace(CONFIG, feature_codec="int8")) == pytest.approx(told(CONFIG) / 2, abs=0.01)


def test_where_no_source_can_be_read_there_is_nothing_to_measure(data: DataFolder) -> None:
    shutil.rmtree(data.root / "videos")
    with pytest.raises(ValueError, match=r"no segment can be read to measure scales.*no such file"):
        run(data, feature_codec="int8")
    assert not data.feature_scales.exists()


def test_the_largest_values_met_have_level_126(int8: DataFolder) -> None:
    record = ShardRecord.load(sorted(int8.shards.glob("*.json"))[0])
    assert record.feature_codec is not None
    shards = ShardSet.open(int8.shards)
    levels = np.concatenate([shards.read_array(i, FEATURES) for i in range(len(shards))])
    assert (np.abs(levels).max((0, 1)) >= 120).mean() > 0.5
