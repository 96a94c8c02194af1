"""int8 features: what comes back, what is counted, and that a shard says how its features lie."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.feature_codec import LARGEST_SCALE, SMALLEST_SCALE, Int8Codec, num_saturated, with_codec
from shards.reader import ShardSet, stream
from shards.record import ShardRecord
from shards.spec import CODES, FEATURES, META, Sample, ShardError
from shards.verify import verify_shard
from shards.writer import write_shard
from tests.samples import FINGERPRINT, flipped, make_sample

DIM = 5
LARGEST = np.array([4.0, 0.5, 30.0, 8.0, 6.0])  # by channel
CODEC = Int8Codec.calibrated(LARGEST)
SCALES = np.array(CODEC.scales)


def sample(key: str, duration_s: float = 2.0) -> Sample:
    """Within the calibrated range, in every channel."""
    plain = make_sample(key, duration_s, feature_dim=DIM)
    return replace(plain, features=(np.tanh(plain.features) * LARGEST).astype(np.float16))


SAMPLES = [sample("a"), sample("b", 3.5), sample("c")]


def write(
    directory: Path, samples: Iterable[Sample] = SAMPLES, codec: Int8Codec | None = CODEC
) -> ShardRecord:
    return write_shard(
        directory,
        0,
        samples,
        plan_hash="plan",
        fingerprint=with_codec(FINGERPRINT, codec),
        feature_codec=codec,
    )


def decoded(features: np.ndarray) -> np.ndarray:
    values = np.empty(features.shape, np.float16)
    CODEC.decode(CODEC.encode(features), values)
    return values


def test_within_the_calibrated_range_a_value_is_off_by_half_a_level_at_most() -> None:
    for each in SAMPLES:
        error = np.abs(decoded(each.features).astype(float) - each.features)
        rounding = np.abs(each.features) * 2.0**-11  # of float16 itself
        assert (error <= SCALES / 2 + rounding).all()
        assert num_saturated(CODEC.encode(each.features)) == 0


def test_values_beyond_the_range_are_clipped_and_counted_never_wrapped() -> None:
    features = np.zeros((1, 577, DIM), np.float16)
    features[0, 0] = 60000
    features[0, 1] = -60000
    features[0, 2] = LARGEST
    levels = CODEC.encode(features)
    assert levels[0, 0].tolist() == [127] * DIM
    assert levels[0, 1].tolist() == [-127] * DIM
    assert levels[0, 2].tolist() == [126] * DIM
    assert num_saturated(levels) == 2 * DIM


@pytest.mark.parametrize("scale", [SMALLEST_SCALE, 0.0123, 1.0, LARGEST_SCALE])
def test_decoded_levels_are_finite_and_encode_to_themselves(scale: float) -> None:
    codec = Int8Codec((float(np.float16(scale)),))
    levels = np.arange(-127, 128, dtype=np.int8).reshape(1, -1, 1)
    values = np.empty(levels.shape, np.float16)
    codec.decode(levels, values)
    assert np.isfinite(values).all()
    np.testing.assert_array_equal(codec.encode(values), levels)


def test_channels_that_are_always_zero_or_huge_have_a_scale() -> None:
    codec = Int8Codec.calibrated(np.array([0.0, 65504.0]))
    assert codec.scales == (SMALLEST_SCALE, LARGEST_SCALE)


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="3 wide, there are 5 scales"):
        CODEC.encode(np.zeros((1, 577, 3), np.float16))


def test_every_reader_hands_out_the_same_float16_values(tmp_path: Path) -> None:
    write(tmp_path)
    shards = ShardSet.open(tmp_path)
    streamed = {found.key: found for found in stream(tmp_path)}
    for index, wanted in enumerate(SAMPLES):
        whole = decoded(wanted.features)
        for found in (shards.read(index), streamed[wanted.key]):
            assert found.features.dtype == np.float16
            np.testing.assert_array_equal(found.features, whole)
            np.testing.assert_array_equal(found.codes, wanted.codes)
        rows = np.empty((len(whole) - 1, 577, DIM), np.float16)
        shards.read_features(index, rows, start=1)
        np.testing.assert_array_equal(rows, whole[1:])


def test_float16_shards_are_read_through_the_same_call(tmp_path: Path) -> None:
    write(tmp_path, codec=None)
    rows = np.empty((2, 577, DIM), np.float16)
    ShardSet.open(tmp_path).read_features(1, rows, start=1)
    np.testing.assert_array_equal(rows, SAMPLES[1].features[1:3])


def test_int8_takes_half_the_bytes_and_the_record_tells_scales_and_saturation(tmp_path: Path) -> None:
    wild = replace(SAMPLES[0], features=SAMPLES[0].features * np.float16(2))
    record = write(tmp_path / "int8", [wild])
    plain = write(tmp_path / "float16", [wild], codec=None)
    assert record.samples[0].fields[FEATURES].size < 0.51 * plain.samples[0].fields[FEATURES].size
    assert record.num_saturated == int((np.abs(wild.features / SCALES) > 126.5).sum()) > 0
    assert ShardRecord.load(tmp_path / "int8" / "000000.json") == record
    assert record.feature_codec == CODEC
    assert "feature_codec" not in json.loads((tmp_path / "float16" / "000000.json").read_bytes())


def test_what_was_read_is_written_again_to_the_same_bytes(tmp_path: Path) -> None:
    wild = replace(SAMPLES[2], features=SAMPLES[2].features * np.float16(2))
    write(tmp_path / "one", [*SAMPLES[:2], wild])
    shards = ShardSet.open(tmp_path / "one")
    write(tmp_path / "two", [shards.read(index) for index in range(3)])
    for name in ("000000.tar", "000000.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_verify_passes_int8_and_finds_a_flipped_bit_in_any_field(tmp_path: Path) -> None:
    record = write(tmp_path)
    assert verify_shard(tmp_path, 0, deep=True) == []
    tar = tmp_path / "000000.tar"
    whole = tar.read_bytes()
    for name in (FEATURES, CODES, META):
        tar.write_bytes(flipped(whole, record.samples[1].fields[name].offset + 40))
        assert any("sample b" in problem for problem in verify_shard(tmp_path, 0, deep=True))


def test_shards_of_two_codecs_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path)
    write_shard(tmp_path, 1, [sample("d")], plan_hash="plan", fingerprint=FINGERPRINT)
    with pytest.raises(ShardError, match=r"000001\.tar.*features"):
        ShardSet.open(tmp_path)


def test_a_record_whose_features_are_not_what_its_codec_makes_is_refused(tmp_path: Path) -> None:
    record = write(tmp_path)
    for false in (replace(record, feature_codec=None), replace(record, feature_codec=Int8Codec((1.0,)))):
        (tmp_path / "000000.json").write_bytes(false.to_bytes())
        with pytest.raises(ShardError, match=r"sample a: features\.npy is int8 of width 5, its codec wants"):
            ShardSet.open(tmp_path)
