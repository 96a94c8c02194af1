"""Batches are a pure function of data, seed and position, on any number of processes; damage has a name."""

from __future__ import annotations

import gc
import multiprocessing
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from gvmgen.data import Batch, BatchPlan, SegmentLoader, permutation
from shards.feature_codec import Int8Codec, with_codec
from shards.reader import ShardSet
from shards.spec import CODE_RATE, FEATURES, ShardError
from shards.writer import write_shard
from tests.samples import flipped, make_sample, make_shards

LENGTHS = (6, 4, 5.5, 9, 7)  # seconds
SAMPLES = [make_sample(f"s{i}", LENGTHS[i % 5], split="test" if i in (3, 8) else "train") for i in range(13)]
BY_KEY = {sample.key: sample for sample in SAMPLES}
BATCH = 8

Row = tuple[str, int]  # key, and a checksum of what was handed out


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    directory = tmp_path_factory.mktemp("data")
    return ShardSet.open(make_shards(directory, [SAMPLES[:5], SAMPLES[5:9], SAMPLES[9:]]))


def rows(batch: Batch) -> list[Row]:
    frames, code_frames = lengths(batch)
    return [
        (
            key,
            zlib.crc32(
                batch["features"][i, : frames[i]].numpy().tobytes()
                + batch["codes"][i, :, : code_frames[i]].numpy().tobytes()
            ),
        )
        for i, key in enumerate(batch["keys"])
    ]


def lengths(batch: Batch) -> tuple[list[int], list[int]]:
    """Real frames and code frames of each row."""
    whole = (
        (batch["num_frames"], batch["features"].shape[1]),
        (batch["num_code_frames"], batch["codes"].shape[2]),
    )
    frames, code_frames = (
        [longest] * len(batch["keys"]) if lengths is None else lengths.tolist() for lengths, longest in whole
    )
    return frames, code_frames


def take(loader: SegmentLoader, num_batches: int) -> list[list[Row]]:
    return [rows(batch) for batch in islice(loader, num_batches)]


def flat(lists: Iterable[list[Row]]) -> list[Row]:
    return list(chain.from_iterable(lists))


def test_an_epoch_shows_each_sample_once_and_the_next_in_another_order(shards):
    keys = [key for batch in take(SegmentLoader(shards, batch_size=1), 39) for key, _ in batch]
    epochs = [keys[:13], keys[13:26], keys[26:]]
    for epoch in epochs:
        assert sorted(epoch) == sorted(BY_KEY)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_batch_holds_what_was_written(shards):
    for batch in islice(SegmentLoader(shards, batch_size=4), 8):
        assert batch["features"].dtype == torch.float16
        assert batch["codes"].dtype == torch.int64
        for i, (key, frames, code_frames) in enumerate(zip(batch["keys"], *lengths(batch), strict=True)):
            np.testing.assert_array_equal(batch["features"][i, :frames], BY_KEY[key].features)
            np.testing.assert_array_equal(batch["codes"][i, :, :code_frames], BY_KEY[key].codes)
            assert not batch["features"][i, frames:].any()
            assert not batch["codes"][i, :, code_frames:].any()


def test_lengths_are_given_only_where_a_row_is_padded(shards):
    padded = next(iter(SegmentLoader(shards, batch_size=13)))
    assert (padded["features"].shape, padded["codes"].shape) == ((13, 9, 577, 1), (13, 4, 450))
    assert sorted(padded["num_frames"].tolist()) == sorted(s.features.shape[0] for s in SAMPLES)
    assert sorted(padded["num_code_frames"].tolist()) == sorted(s.codes.shape[1] for s in SAMPLES)
    whole = next(iter(SegmentLoader(shards, batch_size=13, crop_s=4)))
    assert (whole["features"].shape, whole["codes"].shape) == ((13, 4, 577, 1), (13, 4, 200))
    assert whole["num_frames"] is None
    assert whole["num_code_frames"] is None


def test_a_crop_keeps_frames_and_codes_in_step(shards):
    starts = Counter()
    for batch in islice(SegmentLoader(shards, batch_size=1, crop_s=4), 156):
        sample = BY_KEY[batch["keys"][0]]
        features, codes = batch["features"][0].numpy(), batch["codes"][0].numpy()
        (start,) = (
            s for s in range(len(sample.features) - 3) if np.array_equal(sample.features[s : s + 4], features)
        )
        np.testing.assert_array_equal(codes, sample.codes[:, start * CODE_RATE : (start + 4) * CODE_RATE])
        starts[start] += 1
    assert set(starts) == {0, 1, 2, 3, 4, 5}  # the longest sample has 9 s


def test_half_of_the_crops_begin_with_an_anchor_from_elsewhere_and_the_others_are_as_long(shards):
    found = Counter()
    for batch in islice(SegmentLoader(shards, batch_size=13, crop_s=2, anchor_s=2), 40):
        assert (batch["features"].shape[1], batch["codes"].shape[2]) == (4, 4 * CODE_RATE)
        flags = [False] * 13 if batch["anchored"] is None else batch["anchored"].tolist()
        for key, features, codes, anchored in zip(
            batch["keys"], batch["features"].numpy(), batch["codes"].numpy(), flags, strict=True
        ):
            sample = BY_KEY[key]
            anchor, crop = (place_in(sample.features, part) for part in (features[:2], features[2:]))
            for start, part in ((anchor, codes[:, :100]), (crop, codes[:, 100:])):
                wanted = sample.codes[:, start * CODE_RATE : (start + 2) * CODE_RATE]
                np.testing.assert_array_equal(part, wanted)
            assert anchored or crop == anchor + 2
            assert abs(crop - anchor) >= 2
            found[anchored, crop - anchor] += 1
    shares = Counter()
    for (anchored, _), times in found.items():
        shares[anchored] += times
    assert 0.4 < shares[True] / shares.total() < 0.6
    assert {distance for anchored, distance in found if anchored} >= {-3, -2, 2, 3, 5}


def place_in(features: np.ndarray, part: np.ndarray) -> int:
    """The frame of a sample from which on its features are these."""
    (start,) = (
        s for s in range(len(features) - len(part) + 1) if np.array_equal(features[s : s + len(part)], part)
    )
    return start


def test_a_segment_too_short_for_crop_and_anchor_has_no_anchor(shards):
    batch = next(iter(SegmentLoader(shards, batch_size=13, crop_s=6, anchor_s=4)))
    assert batch["anchored"] is None
    assert lengths(batch)[0] == [len(BY_KEY[key].features) for key in batch["keys"]]


def test_a_segment_shorter_than_the_crop_comes_whole(shards):
    batch = next(iter(SegmentLoader(shards, batch_size=13, crop_s=6)))
    frames, code_frames = lengths(batch)
    for key, num_frames, num_code_frames in zip(batch["keys"], frames, code_frames, strict=True):
        sample = BY_KEY[key]
        assert num_frames == min(6, len(sample.features))
        assert num_code_frames == min(300, sample.codes.shape[1])


@pytest.mark.parametrize("crop_s", [None, 4])
@pytest.mark.parametrize("threads", [1, 7])
def test_the_sequence_depends_on_the_seed_and_not_on_threads(shards, crop_s, threads):
    wanted = take(SegmentLoader(shards, batch_size=BATCH, seed=5, crop_s=crop_s), 6)
    found = take(
        SegmentLoader(shards, batch_size=BATCH, seed=5, crop_s=crop_s, num_threads=threads, prefetch=4), 6
    )
    other = take(SegmentLoader(shards, batch_size=BATCH, seed=6, crop_s=crop_s), 6)
    assert found == wanted != other


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("done", [0, 1, 3])
@pytest.mark.parametrize("anchor_s", [0, 1])
def test_a_run_goes_on_as_if_never_stopped_on_any_number_of_processes(shards, world_size, done, anchor_s):
    settings = {"batch_size": BATCH, "seed": 5, "crop_s": 3, "anchor_s": anchor_s}
    wanted = take(SegmentLoader(shards, **settings), 7)
    first = SegmentLoader(shards, **settings)
    take(first, done)
    ranks = [
        SegmentLoader(shards, **settings, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for loader in ranks:
        loader.load_state(first.state)
    shares = [take(loader, 7 - done) for loader in ranks]
    assert [flat(parts) for parts in zip(*shares, strict=True)] == wanted[done:]
    assert len({str(loader.state) for loader in ranks}) == 1


def test_a_state_goes_on_with_another_batch_size(shards):
    loader = SegmentLoader(shards, batch_size=3)
    wanted = flat(take(SegmentLoader(shards, batch_size=1), 15))
    take(loader, 3)
    wider = SegmentLoader(shards, batch_size=6)
    wider.load_state(loader.state)
    assert flat(take(wider, 1)) == wanted[9:15]


def test_pieces_of_a_batch_are_the_batch_and_the_state_moves_with_the_last(shards):
    wanted = take(SegmentLoader(shards, batch_size=BATCH), 3)
    loader = SegmentLoader(shards, batch_size=BATCH, pieces=4)
    consumed = []
    pieces = []
    for piece in islice(loader, 12):
        pieces.append(rows(piece))
        consumed.append(loader.state["epoch"] * 13 + loader.state["samples_consumed"])
    assert [flat(pieces[i : i + 4]) for i in (0, 4, 8)] == wanted
    assert consumed == [0, 0, 0, 8, 8, 8, 8, 16, 16, 16, 16, 24]


def test_the_state_is_small_plain_json(shards):
    loader = SegmentLoader(shards, batch_size=6, seed=9)
    take(loader, 3)
    assert loader.state == {
        "plan_hash": shards.plan_hash,
        "seed": 9,
        "epoch": 1,
        "samples_consumed": 5,
    }


@pytest.mark.parametrize("change", [{"plan_hash": "other"}, {"seed": 1}])
def test_a_state_of_other_data_or_seed_is_refused(shards, change):
    loader = SegmentLoader(shards, batch_size=6)
    with pytest.raises(ValueError, match=f"the state to resume has {next(iter(change))}"):
        loader.load_state(loader.state | change)


def test_the_order_is_fixed_for_ever():
    """A number from outside: runs of last year must resume after an update of numpy."""
    assert permutation(10, 0, 0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert permutation(10, 7, 3).tolist() == [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]


def test_every_permutation_is_one():
    for size in (1, 2, 1000):
        assert sorted(permutation(size, 1, 2)) == list(range(size))


def test_a_batch_may_be_larger_than_the_data():
    plan = BatchPlan(num_samples=3, batch_size=8)
    drawn = [draw.index for draw in plan.share(0, 0, 1)]
    assert sorted(drawn[:3]) == sorted(drawn[3:6]) == [0, 1, 2]


def test_validation_shows_every_sample_once_whatever_the_processes(shards):
    for world_size in (1, 2, 5):
        keys = []
        for rank in range(world_size):
            loader = SegmentLoader(shards, batch_size=10, rank=rank, world_size=world_size)
            keys += [key for batch in loader.one_pass() for key in batch["keys"]]
            assert loader.state["samples_consumed"] == 0
        assert sorted(keys) == sorted(BY_KEY)


def test_the_rounds_of_a_pass_are_those_of_the_process_with_the_most(shards):
    for world_size in (1, 2, 5):
        ranks = [
            SegmentLoader(shards, batch_size=10, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        counts = [len(list(loader.one_pass())) for loader in ranks]
        assert {loader.rounds_of_one_pass for loader in ranks} == {max(counts)}


def test_the_windows_of_a_batch_are_those_that_it_shows(shards):
    loader = SegmentLoader(shards, batch_size=5, crop_s=6, seed=3)
    for number, batch in enumerate(islice(loader, 4)):
        windows = loader.windows(5 * number)
        frames, code_frames = lengths(batch)
        assert [window.num_frames for window in windows] == frames
        assert [window.num_code_frames for window in windows] == code_frames


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 6, "world_size": 4}, "batch_size 6 cannot be shared by 4 processes .* multiple of 4"),
        ({"batch_size": 6, "pieces": 4}, "multiple of 4"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 1, "crop_s": 2.5}, "crop_s is 2.5; it must be a whole number"),
        ({"batch_size": 1, "crop_s": 0}, "crop_s is 0"),
        ({"batch_size": 1, "seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(shards, settings, message):
    with pytest.raises(ValueError, match=message):
        SegmentLoader(shards, **settings)


def test_an_empty_split_is_refused(tmp_path):
    shards = ShardSet.open(make_shards(tmp_path, [[make_sample("a")]]), split="test")
    with pytest.raises(ValueError, match="no samples"):
        SegmentLoader(shards, batch_size=1)


def test_reading_ahead_is_bounded(shards, monkeypatch):
    read: list[int] = []
    monkeypatch.setattr(shards, "read_array", noting(read, shards.read_array))
    batches = iter(SegmentLoader(shards, batch_size=2, prefetch=3))
    for handed_out in range(1, 6):
        next(batches)
        while len(read) < 2 * (handed_out + 2):
            pass
        assert len(read) <= 2 * (handed_out + 3)
    batches.close()


def noting(notes: list[int], function):
    def call(index, *args):
        notes.append(index)
        return function(index, *args)

    return call


def test_a_batch_in_the_callers_hands_is_left_alone(shards):
    batches = iter(SegmentLoader(shards, batch_size=3, prefetch=2))
    for _ in range(12):
        batch = next(batches)
        before = rows(batch)
        wait_for_readers()
        assert rows(batch) == before
    batches.close()


def wait_for_readers() -> None:
    time.sleep(0.02)


def test_buffers_are_used_again(shards):
    places = Counter(
        b["features"].data_ptr() for b in islice(SegmentLoader(shards, batch_size=13, prefetch=2), 12)
    )
    assert len(places) == 3


def test_leaving_a_loop_early_ends_the_threads(shards):
    before = threading.active_count()
    for _ in SegmentLoader(shards, batch_size=2):
        break
    gc.collect()
    assert threading.active_count() == before


def test_levels_are_decoded_behind_the_move_to_the_values_that_readers_give(tmp_path):
    samples = [make_sample(f"q{i}", LENGTHS[i], feature_dim=3) for i in range(3)]
    codec = Int8Codec.calibrated(np.array([4.0, 3.0, 5.0]))
    write_shard(
        tmp_path, 0, samples, plan_hash="plan", fingerprint=with_codec({}, codec), feature_codec=codec
    )
    shards = ShardSet.open(tmp_path)
    in_threads, behind = (SegmentLoader(shards, batch_size=3, crop_s=5) for _ in range(2))
    behind.decodes_on_device = True  # as on a GPU, where half the bytes are to be moved
    wanted, found = (next(iter(loader)) for loader in (in_threads, behind))
    assert found["features"].dtype == torch.float16
    assert torch.equal(found["features"], wanted["features"])
    assert wanted["features"].any()


# Corrupt samples


@pytest.fixture
def damaged(tmp_path) -> ShardSet:
    """Four samples of one shard; s1 has a wrong bit in its pictures, s3 in its codes."""
    samples = [make_sample(f"s{i}", 2 + i) for i in range(4)]
    directory = make_shards(tmp_path, [samples])
    shards = ShardSet.open(directory)
    tar = directory / "000000.tar"
    for index, name in ((1, FEATURES), (3, "codes.npy")):
        field = shards.samples[index].record.fields[name]
        tar.write_bytes(flipped(tar.read_bytes(), field.offset + field.size - 1))
    return shards


def test_a_corrupt_sample_stops_the_run_by_name(damaged):
    with pytest.raises(ShardError, match=r"000000.tar: sample s[13]: (features|codes).npy is damaged"):
        take(SegmentLoader(damaged, batch_size=4), 1)


def test_a_crop_beside_the_damage_is_refused_too(damaged):
    with pytest.raises(ShardError, match="is damaged"):
        take(SegmentLoader(damaged, batch_size=4, crop_s=1), 1)


def test_a_corrupt_sample_is_substituted_the_same_way_everywhere_and_counted(damaged):
    settings = {"batch_size": 4, "seed": 2, "on_corrupt": "substitute"}
    alone = SegmentLoader(damaged, **settings)
    wanted = take(alone, 6)
    keys = [key for batch in wanted for key, _ in batch]
    assert len(keys) == 24
    assert set(keys) == {"s0", "s2"}
    pairs = [SegmentLoader(damaged, **settings, rank=rank, world_size=2, num_threads=1) for rank in range(2)]
    shares = [take(loader, 6) for loader in pairs]
    assert [a + b for a, b in zip(*shares, strict=True)] == wanted
    assert set(alone.substituted) == {"s1", "s3"}
    assert sum(alone.substituted.values()) >= 12


def test_where_every_sample_is_corrupt_nothing_substitutes(tmp_path):
    shards = ShardSet.open(make_shards(tmp_path, [[make_sample("a")]]))
    tar = tmp_path / "000000.tar"
    tar.write_bytes(flipped(tar.read_bytes(), shards.samples[0].record.fields[FEATURES].offset))
    with pytest.raises(ShardError, match="every sample of the data is corrupt"):
        take(SegmentLoader(shards, batch_size=2, on_corrupt="substitute"), 1)


# Real processes


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_real_processes_agree_on_the_global_sequence_after_a_stop(shards, tmp_path, world_size):
    wanted = take(SegmentLoader(shards, batch_size=BATCH, seed=5, crop_s=4), 6)
    stopped = SegmentLoader(shards, batch_size=BATCH, seed=5, crop_s=4)
    take(stopped, 2)
    fork = multiprocessing.get_context("fork")  # children start with the libraries loaded
    results = fork.SimpleQueue()
    arguments = (world_size, tmp_path / "rendezvous", shards, stopped.state, results)
    ranks = [fork.Process(target=run_rank, args=(rank, *arguments)) for rank in range(world_size)]
    for process in ranks:
        process.start()
    found = results.get()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * world_size
    assert found == wanted[2:]


def run_rank(rank: int, world_size: int, rendezvous: Path, shards: ShardSet, state: dict, results) -> None:
    """One process of a run that goes on from `state`; the first reports the global batches."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    loader = SegmentLoader(shards, batch_size=BATCH, seed=5, crop_s=4, rank=rank, world_size=world_size)
    loader.load_state(state)
    sequence: list[list[Row]] = []
    for share in take(loader, 4):
        gathered: list[Sequence[Row]] = [[]] * world_size
        dist.all_gather_object(gathered, share)
        sequence.append([row for part in gathered for row in part])
    dist.destroy_process_group()
    if rank == 0:
        results.put(sequence)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_the_batches_a_cpu_gets(shards):
    wanted = take(SegmentLoader(shards, batch_size=4), 12)
    busy = torch.randn(2048, 2048, device="cuda")
    for batch, expected in zip(SegmentLoader(shards, batch_size=4, device="cuda"), wanted, strict=False):
        assert batch["features"].is_cuda
        assert batch["codes"].is_cuda
        for _ in range(20):
            busy = busy @ busy / 2048
        on_cpu = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        assert rows(on_cpu) == expected
