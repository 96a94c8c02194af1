"""From the manifest to shards: what is made, skipped and retried."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from gvmgen.encoders.media import read_frames, read_waveform
from pipeline.crawl import crawl
from pipeline.encode import Encoders
from pipeline.estimate import clip_flop
from pipeline.folder import DataFolder
from pipeline.run import encode
from pipeline.selection import foresee
from pipeline.verification import set_aside_broken
from shards.reader import ShardSet
from shards.record import ShardRecord
from shards.spec import ShardError, failures_path, record_path, tar_path
from tests.pipeline.encode_runs import CONFIG, CRAWL, NUM_SEGMENTS, NUM_SOURCE_FRAMES, Bytes, run, written
from tests.pipeline.made_videos import make_video
from tests.samples import flipped


def failures(data: DataFolder) -> list[dict]:
    paths = sorted(data.shards.glob("*.failures.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_a_plain_webdataset_reader_reads_the_shards(data: DataFolder) -> None:
    run(data)
    urls = [str(path) for path in sorted(data.shards.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert {s["__key__"] for s in samples} == set(data.read_segments())
    for sample in samples:
        assert (sample["features.npy"].dtype, sample["features.npy"].shape) == (np.float16, (2, 577, 192))
        assert (sample["codes.npy"].dtype, sample["codes.npy"].shape) == (np.int16, (4, 100))
        assert sample["meta.json"]["frame_times_s"][1] == sample["meta.json"]["start_s"] + 1


def test_the_features_and_codes_are_the_encoders_own(data: DataFolder) -> None:
    run(data)
    encoders = Encoders.load("pocket", "cpu")
    segment = max(data.read_segments().values(), key=lambda s: (s.source, s.start_s))
    shard_set = ShardSet.open(data.shards)
    (sample,) = (
        shard_set.read(i) for i, ref in enumerate(shard_set.samples) if ref.record.key == segment.key
    )
    video = data.root / segment.source
    frames = torch.stack([encoders.video.preprocess(f) for f in read_frames(video, segment.start_s, 2)])
    np.testing.assert_array_equal(sample.features, encoders.video.encode(frames).numpy())
    waveform = torch.from_numpy(read_waveform(video, segment.start_s, 2))
    np.testing.assert_array_equal(sample.codes, encoders.audio.encode(waveform[None])[0].numpy())


def test_encode_skips_complete_shards(data: DataFolder, uninterrupted: Bytes) -> None:
    run(data)
    times = {path: path.stat().st_mtime_ns for path in data.shards.iterdir()}
    again = run(data)
    assert (again.made, again.progress.num_encoded) == ([], 0)
    assert times == {path: path.stat().st_mtime_ns for path in data.shards.iterdir()}
    assert written(data) == uninterrupted


def test_a_damaged_commit_record_or_tar_is_not_skipped_but_named(data: DataFolder) -> None:
    run(data)
    tar = sorted(data.shards.glob("*.tar"))[0]
    with tar.open("ab") as file:
        file.write(b"more")
    with pytest.raises(ShardError, match=rf"{tar.name}.*bytes of the tar"):
        run(data)


def test_other_encoders_are_refused_with_what_differs(data: DataFolder, uninterrupted: Bytes) -> None:
    run(data)
    path = sorted(data.shards.glob("*.json"))[0]
    record = ShardRecord.load(path)
    video = {**record.fingerprint["video"], "layer": "another"}
    path.write_bytes(replace(record, fingerprint={**record.fingerprint, "video": video}).to_bytes())
    with pytest.raises(ShardError, match=r"encoders\.video\.layer: found 'another'.*--force"):
        run(data)
    run(data, force=True)
    assert written(data) == uninterrupted


def test_a_manifest_that_contradicts_finished_shards_is_refused(data: DataFolder) -> None:
    run(data)
    before = written(data)
    crawl([data.root / "videos"], data.manifest, replace(CRAWL, test_share=1.0))
    with pytest.raises(ValueError, match="split was 'train', is 'test'"):
        run(data)
    assert written(data) == before


def test_an_appended_manifest_only_adds_shards(data: DataFolder, uninterrupted: Bytes) -> None:
    run(data)
    make_video(data.root / "videos" / "new.mp4", 2, 660)
    crawl([data.root / "videos"], data.manifest, CRAWL)
    report = run(data)
    after = written(data)
    assert {name: after[name] for name in uninterrupted} == uninterrupted
    assert [record.shard for record in report.made] == [3]
    assert len(ShardSet.open(data.shards)) == NUM_SEGMENTS + 1


def test_ranges_beyond_the_plan_are_skipped_quietly(data: DataFolder) -> None:
    assert len(run(data, shards="0,50-99").made) == 1
    assert len(list(data.shards.glob("*.tar"))) == 1


def test_shards_of_which_none_is_planned_are_refused(data: DataFolder) -> None:
    nothing = replace(CONFIG, shards="50-99")
    for look in (encode, foresee):
        with pytest.raises(ValueError, match=r"--shards 50-99: none is planned; planned are 0 … 2"):
            look(data, nothing)


def test_a_dry_run_refuses_what_the_run_would(data: DataFolder) -> None:
    run(data)
    for changes in ({"precision": "bf16"}, {"feature_codec": "int8"}):
        with pytest.raises(ShardError, match=r"complete, and made with --.*--force"):
            foresee(data, replace(CONFIG, **changes))  # type: ignore[arg-type]
        with pytest.raises(ShardError, match=r"complete, and made with --.*--force"):
            run(data, **changes)
    assert not data.feature_scales.exists()  # or the next shards would be int8, unasked


def test_a_dry_run_writes_nothing(data: DataFolder) -> None:
    before = sorted(data.root.rglob("*"))
    text = foresee(data, CONFIG)
    assert f"{NUM_SEGMENTS} segments" in text
    assert "h at least: here CLIP cannot do more than" in text  # nothing is made yet that could tell more
    assert sorted(data.root.rglob("*")) == before


def test_a_dry_run_needs_no_device_that_is_elsewhere(data: DataFolder) -> None:
    assert "cuda:99 is no device of this machine" in foresee(data, replace(CONFIG, device="cuda:99"))


def test_the_arithmetic_of_a_frame_is_the_publications_clip() -> None:
    assert clip_flop("small") == pytest.approx(382e9, rel=0.01)
    assert clip_flop("pocket") < clip_flop("small") / 50


def test_a_failed_segment_is_told_and_the_others_go_on(data: DataFolder, uninterrupted: Bytes) -> None:
    video = data.root / "videos" / "a.mp4"
    whole = video.read_bytes()
    video.write_bytes(whole[:-1] + b"?")
    report = run(data)
    assert report.num_failed == 2
    assert {row["kind"] for row in failures(data)} == {"permanent"}
    assert "changed since the crawl" in failures(data)[0]["message"]
    assert len(ShardSet.open(data.shards)) == NUM_SEGMENTS - 2
    assert run(data).made == []  # nothing mends itself
    video.write_bytes(whole)
    healed = run(data, retry="all")
    assert healed.num_failed == 0
    assert healed.progress.num_encoded == 4  # the frames of what failed, no others
    assert written(data) == uninterrupted


def test_reasons_that_a_kill_left_beside_a_whole_shard_go(data: DataFolder, uninterrupted: Bytes) -> None:
    run(data)
    failures_path(data.shards, 0).write_text('{"kind": "transient"}\n')
    assert run(data).made == []
    assert written(data) == uninterrupted


def test_a_source_that_comes_back_is_retried_at_the_next_run(data: DataFolder, uninterrupted: Bytes) -> None:
    video = data.root / "videos" / "b.mp4"
    video.rename(data.root / "unplugged")
    run(data)
    assert {(row["kind"], row["attempt"]) for row in failures(data)} == {("transient", 1)}
    run(data)
    assert {row["attempt"] for row in failures(data)} == {2}
    (data.root / "unplugged").rename(video)
    run(data)
    assert written(data) == uninterrupted


def test_a_source_that_hangs_is_given_up_at_the_deadline_and_tried_again_later(
    data: DataFolder, uninterrupted: Bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "ffmpeg"
    slow.write_text("#!/bin/sh\nwhile :; do printf x; sleep 0.05; done\n")
    slow.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr("gvmgen.encoders.process.ffmpeg_path", lambda: str(slow))
        assert run(data, deadline_s=0.2).num_failed == NUM_SEGMENTS
    assert {(row["stage"], row["kind"]) for row in failures(data)} == {("frames", "transient")}
    assert "was not read in its time" in failures(data)[0]["message"]
    run(data)
    assert written(data) == uninterrupted


def test_segments_that_fail_alike_stop_the_run_and_commit_nothing(data: DataFolder) -> None:
    shutil.rmtree(data.root / "videos")
    with pytest.raises(ValueError, match=r"2 segments in a row failed at the stage 'source'.*no such file"):
        run(data, stop_after=2)
    assert not list(data.shards.glob("*.tar")) + list(data.shards.glob(".*.tmp"))


def test_a_full_disk_is_seen_before_the_shard_is_begun(
    data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(data.root)._replace(free=1 << 20)
    monkeypatch.setattr("pipeline.engines.shutil.disk_usage", lambda path: full)
    with pytest.raises(OSError, match="Make room and run again"):
        run(data)
    assert not list(data.shards.glob("*"))


@pytest.mark.parametrize("cache", ["keep", "until-packed"])
def test_overlapping_segments_never_run_clip_twice(
    data: DataFolder, uninterrupted: Bytes, cache: str
) -> None:
    progress = run(data, cache=cache).progress
    assert progress.num_encoded == NUM_SOURCE_FRAMES
    assert progress.num_cached == 2 * NUM_SEGMENTS - NUM_SOURCE_FRAMES
    assert written(data) == uninterrupted


def test_without_a_cache_every_segment_is_encoded_whole(data: DataFolder, uninterrupted: Bytes) -> None:
    assert run(data, cache="off").progress.num_encoded == 2 * NUM_SEGMENTS
    assert not data.cache.exists()
    assert written(data) == uninterrupted


def test_a_kept_cache_makes_shards_again_without_clip(data: DataFolder, uninterrupted: Bytes) -> None:
    run(data, cache="keep")
    assert run(data, cache="keep", force=True).progress.num_encoded == 0
    assert written(data) == uninterrupted


def test_a_kept_cache_makes_shards_again_without_ffmpeg_and_encodec(
    data: DataFolder, uninterrupted: Bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("not needed again")

    run(data, cache="keep")
    monkeypatch.setattr("gvmgen.encoders.process.ffmpeg_path", refuse)
    monkeypatch.setattr("gvmgen.encoders.audio.AudioCodec.encode", refuse)
    assert run(data, cache="keep", force=True).num_failed == 0
    assert written(data) == uninterrupted


def test_damaged_codes_are_made_again(data: DataFolder, uninterrupted: Bytes) -> None:
    run(data, cache="keep")
    paths = sorted((data.cache / "codes").rglob("*.npy"))
    assert len(paths) == NUM_SEGMENTS
    whole = paths[0].read_bytes()
    for path, damaged in zip(paths, (b"", whole[:-1], flipped(whole, 200)), strict=False):
        path.write_bytes(damaged)
    run(data, cache="keep", force=True)
    assert written(data) == uninterrupted
    assert paths[0].read_bytes() == whole


def test_a_damaged_cache_is_made_again(data: DataFolder, uninterrupted: Bytes) -> None:
    run(data, cache="keep")
    chunks = list(data.cache.rglob("c/*/0/0"))
    assert len(chunks) == NUM_SOURCE_FRAMES
    chunks[0].unlink()
    chunks[1].write_bytes(chunks[1].read_bytes()[:-1])
    assert run(data, cache="keep", force=True).progress.num_encoded == 2
    assert written(data) == uninterrupted


def test_a_cache_stays_within_its_budget_and_the_shards_are_the_same(
    data: DataFolder, uninterrupted: Bytes
) -> None:
    run(data, cache="keep", cache_gb=1e-3)
    assert 0 < sum(path.stat().st_size for path in data.cache.rglob("c/*/0/0")) <= 1_001_000
    assert written(data) == uninterrupted


def test_batches_that_cross_segments_as_on_a_gpu_change_no_byte(
    data: DataFolder, uninterrupted: Bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_gpu = replace(Encoders.load("pocket", "cpu"), is_on_gpu=True)
    monkeypatch.setattr(Encoders, "load", lambda *_: as_on_gpu)
    assert run(data).progress.num_encoded == NUM_SOURCE_FRAMES
    assert written(data) == uninterrupted


def test_a_data_set_keeps_its_precision_without_a_flag(data: DataFolder) -> None:
    run(data, shards="0", precision="bf16")
    with pytest.raises(ShardError, match="made with --precision bf16, not fp32"):
        run(data, precision="fp32")
    run(data)
    assert ShardSet.open(data.shards).fingerprint["video"]["dtype"] == "bfloat16"


def test_until_packed_leaves_no_features_behind(data: DataFolder) -> None:
    run(data, shards="0", cache="until-packed")
    assert list(data.cache.rglob("c/*/0/0"))  # frames that the other shards show, too
    run(data, cache="until-packed")
    assert not [path for path in data.cache.rglob("*") if path.is_file()]


def test_a_repair_makes_what_is_broken_and_keeps_what_is_sound(
    data: DataFolder, uninterrupted: Bytes
) -> None:
    run(data)
    records = [ShardRecord.load(path) for path in sorted(data.shards.glob("*.json"))]
    flipped, *others = sorted(records, key=lambda record: -len(record.samples))
    assert len(flipped.samples) > 1
    with tar_path(data.shards, flipped.shard).open("rb+") as file:
        file.seek(flipped.samples[-1].fields["features.npy"].offset + 1000)
        file.write(b"?")
    record_path(data.shards, others[0].shard).write_bytes(b"{")
    broken = set_aside_broken(data, deep=True)
    assert broken == {flipped.shard, others[0].shard}
    repaired = run(data, mend=broken, cache="off")
    assert repaired.progress.num_encoded == 2 * (1 + len(others[0].samples))
    assert written(data) == uninterrupted


def test_a_repair_keeps_sound_samples_even_where_the_source_is_gone(data: DataFolder) -> None:
    run(data)
    record = max(map(ShardRecord.load, data.shards.glob("*.json")), key=lambda record: len(record.samples))
    with tar_path(data.shards, record.shard).open("rb+") as file:
        file.seek(record.samples[0].fields["codes.npy"].offset)
        file.write(b"?")
    shutil.rmtree(data.root / "videos")
    report = run(data, mend=set_aside_broken(data, deep=True))
    assert report.num_failed == 1
    assert len(ShardSet.open(data.shards)) == NUM_SEGMENTS - 1
