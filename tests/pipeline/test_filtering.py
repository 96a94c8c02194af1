"""`gvm-prep filter` on files whose right answer is known: kept and dropped as a person would, each with its
reason."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.crawl import crawl
from pipeline.cutting import CrawlConfig
from pipeline.filtering import DEFAULT_KEEP, FilterConfig, decide_again, filter_manifest
from pipeline.folder import DataFolder
from pipeline.manifest import read_manifest
from pipeline.plan import ShardPlan, line_of, write_plan
from shards.spec import Sample
from shards.writer import write_shard
from tests.pipeline.filters.test_voices import AUDIO_SET, make_tagger
from tests.pipeline.made_scenes import SECONDS, captioned, encode_again, film, make_film, scene, song
from tests.pipeline.made_speech import spoken

pytest.importorskip("silero_vad", reason="silero-vad brings the speech detector")
pytest.importorskip("rapidocr", reason="rapidocr brings the text detector")
RATE = 32_000


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    make_film(folder / "good.mp4", film(1), song(1))
    make_film(folder / "other.mp4", film(2), song(2))
    voice = spoken(RATE)[: SECONDS * RATE]
    make_film(folder / "speech.mp4", film(3), 0.4 * song(3)[: len(voice)] + 0.6 * voice)
    make_film(folder / "captions.mp4", [captioned(frame) for frame in film(4)], song(4))
    make_film(folder / "silent.mp4", film(5), np.zeros(SECONDS * RATE, np.float32))
    make_film(folder / "frozen.mp4", [scene(6)] * SECONDS, song(6))
    make_film(folder / "black.mp4", [np.zeros((360, 640, 3), np.uint8)] * SECONDS, song(7))
    make_film(folder / "clipped.mp4", film(8), np.clip(40 * song(8), -1, 1))
    encode_again(folder / "good.mp4", folder / "again.mp4")
    make_film(folder / "same music.mp4", film(9), song(2))
    return folder


@pytest.fixture(scope="module")
def filtered(films: Path, tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    data = DataFolder(tmp_path_factory.mktemp("data"))
    crawl([films], data.manifest, CrawlConfig())
    filter_manifest(data, FilterConfig())
    return data


@pytest.fixture
def data(filtered: DataFolder, tmp_path: Path) -> DataFolder:
    """A copy to change."""
    shutil.copytree(filtered.root, tmp_path / "data")
    return DataFolder(tmp_path / "data")


def rows(data: DataFolder) -> dict[str, dict[str, Any]]:
    found = map(json.loads, data.manifest.read_text().splitlines())
    return {Path(row["source"]).stem: row for row in found}


def test_the_default_thresholds_keep_and_drop_what_a_person_would(filtered: DataFolder) -> None:
    verdicts = {name: row["dropped"] and row["dropped"].split()[0] for name, row in rows(filtered).items()}
    assert verdicts == {
        "good": None,
        "other": None,
        "same music": None,
        "speech": "speech",
        "captions": "text",
        "silent": "silence",
        "frozen": "static",
        "black": "black",
        "clipped": "clipping",
        "again": "duplicate",
    }


def test_every_reason_says_what_was_found_and_what_was_wanted(filtered: DataFolder) -> None:
    found = rows(filtered)
    scored = [row["dropped"] for name, row in found.items() if row["dropped"] and name != "again"]
    assert all(re.fullmatch(r"(\w+) is -?[\d.]+, wanted \1 [<>] -?[\d.]+", reason) for reason in scored)
    assert found["speech"]["dropped"].endswith("wanted speech < 0.3")
    assert found["again"]["dropped"] == f"duplicate of {found['good']['key']}"


def test_the_smaller_twin_goes_and_the_larger_stays(filtered: DataFolder) -> None:
    found = rows(filtered)
    assert found["again"]["source_size"] < found["good"]["source_size"]


def test_only_kept_segments_are_read_for_encoding(filtered: DataFolder) -> None:
    assert {Path(segment.source).stem for segment in read_manifest(filtered.manifest)} == {
        "good",
        "other",
        "same music",
    }


def test_duplicates_and_one_songs_videos_share_group_and_split(filtered: DataFolder) -> None:
    found = rows(filtered)
    for one, other in (("good", "again"), ("other", "same music")):
        assert found[one]["group"] == found[other]["group"]
        assert found[one]["split"] == found[other]["split"]
    assert found["good"]["group"] != found["other"]["group"]


def test_deciding_again_measures_nothing_and_brings_rows_back(data: DataFolder) -> None:
    before = (data.root / "scores.jsonl").read_bytes()
    summary = filter_manifest(data, FilterConfig(keep="silence < 0.5")).summary()
    assert "0 segments measured" in summary
    assert (data.root / "scores.jsonl").read_bytes() == before
    assert [name for name, row in rows(data).items() if row["dropped"]] == ["silent"]


def test_what_a_killed_run_measured_is_not_measured_again(data: DataFolder) -> None:
    journal = data.root / "scores.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:6]) + lines[6][:40])
    before = rows(data)
    summary = filter_manifest(data, FilterConfig()).summary()
    assert f"{len(lines) - 6} segments measured" in summary
    assert rows(data) == before
    assert sorted(journal.read_text().splitlines()) == sorted(line.strip() for line in lines)


def test_a_later_crawl_applies_the_thresholds_in_force(data: DataFolder, films: Path) -> None:
    before = rows(data)
    crawl([films], data.manifest, CrawlConfig())
    assert list(read_manifest(data.manifest)) == []  # a kill here lets nothing through
    assert all(row["dropped"].startswith("undecided") for row in rows(data).values())
    assert decide_again(data.manifest) is not None
    assert rows(data) == before


def test_a_crawl_without_thresholds_decides_nothing(films: Path, tmp_path: Path) -> None:
    crawl([films / "good.mp4"], tmp_path / "manifest.jsonl", CrawlConfig())
    assert decide_again(tmp_path / "manifest.jsonl") is None


def test_an_unknown_score_is_refused_with_those_there_are(data: DataFolder) -> None:
    before = data.manifest.read_bytes()
    with pytest.raises(ValueError, match=r"asks for musik, which no segment has; known: .*speech"):
        filter_manifest(data, FilterConfig(score="none", keep="musik > 0.5"))
    assert data.manifest.read_bytes() == before


def test_labels_and_lengths_may_be_asked_for(data: DataFolder) -> None:
    filter_manifest(data, FilterConfig(score="none", keep="duration_s > 100"))
    assert all("duration_s" in row["dropped"] for row in rows(data).values())


def test_an_unknown_filter_is_refused_with_the_known(data: DataFolder) -> None:
    with pytest.raises(ValueError, match="smell is unknown; known: all, none, silence"):
        filter_manifest(data, FilterConfig(score="silence,smell"))


def test_a_file_that_broke_since_the_crawl_is_dropped_with_its_error(films: Path, tmp_path: Path) -> None:
    shutil.copy(films / "good.mp4", tmp_path / "a.mp4")
    data = DataFolder(tmp_path / "data")
    crawl([tmp_path / "a.mp4"], data.manifest, CrawlConfig())
    (tmp_path / "a.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:2000])
    filter_manifest(data, FilterConfig(score="silence,picture"))
    assert rows(data)["a"]["dropped"].startswith("unreadable: ")


def test_a_file_that_is_away_for_a_while_is_measured_when_it_is_back(films: Path, tmp_path: Path) -> None:
    shutil.copy(films / "good.mp4", tmp_path / "a.mp4")
    data = DataFolder(tmp_path / "data")
    crawl([tmp_path / "a.mp4"], data.manifest, CrawlConfig())
    (tmp_path / "a.mp4").rename(tmp_path / "away.mp4")
    found = filter_manifest(data, FilterConfig(score="silence"))
    assert found.num_measured == 0
    assert "a.mp4" in found.failed[0]
    assert "not measured this time" in found.summary()
    (tmp_path / "away.mp4").rename(tmp_path / "a.mp4")
    found = filter_manifest(data, FilterConfig(score="silence"))
    assert (found.num_measured, found.failed) == (1, [])
    assert rows(data)["a"]["dropped"] is None
    assert rows(data)["a"]["scores"]["silence"] < 0.5


def test_a_file_that_was_damaged_is_kept_once_it_is_whole(films: Path, tmp_path: Path) -> None:
    shutil.copy(films / "good.mp4", tmp_path / "a.mp4")
    data = DataFolder(tmp_path / "data")
    crawl([tmp_path / "a.mp4"], data.manifest, CrawlConfig())
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    filter_manifest(data, FilterConfig(score="silence"))
    assert rows(data)["a"]["dropped"].startswith("unreadable: ")
    shutil.copy(films / "good.mp4", tmp_path / "a.mp4")
    filter_manifest(data, FilterConfig(score="silence,loudness"))
    assert rows(data)["a"]["dropped"] is None


def test_another_tagger_measures_again(films: Path, tmp_path: Path) -> None:
    first = make_tagger(tmp_path / "first", AUDIO_SET)
    other = shutil.copytree(first, tmp_path / "other")
    (other / "note.txt").write_text("trained on")
    data = DataFolder(tmp_path / "data")
    crawl([films / "good.mp4"], data.manifest, CrawlConfig())
    counts = [
        filter_manifest(data, FilterConfig(score="tags", tagger=tagger)).num_measured
        for tagger in (first, first, other, other)
    ]
    assert counts == [1, 0, 1, 0]


def test_a_crawl_of_videos_that_lack_the_scores_in_force_succeeds(films: Path, tmp_path: Path) -> None:
    data = DataFolder(tmp_path)
    crawl([films / "good.mp4"], data.manifest, CrawlConfig())
    filter_manifest(data, FilterConfig(score="silence", keep="silence < 0.5"))
    crawl([films / "other.mp4"], data.manifest, CrawlConfig())
    assert decide_again(data.manifest) is not None
    assert rows(data)["other"]["dropped"] is None


def test_a_filter_whose_package_is_missing_is_one_line_and_the_others_run(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.filters.score.is_there", lambda module: module != "rapidocr")
    data = DataFolder(tmp_path)
    crawl([films / "captions.mp4"], data.manifest, CrawlConfig())
    summary = filter_manifest(data, FilterConfig(score="silence,text", keep=DEFAULT_KEEP)).summary()
    assert "text: not scored; needs rapidocr. Run: pip install 'gvmgen[filters]'" in summary
    assert rows(data)["captions"]["dropped"] is None


def test_without_a_manifest_the_message_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Run: gvm-prep crawl-manifest"):
        filter_manifest(DataFolder(tmp_path), FilterConfig())


@pytest.mark.slow
def test_real_videos_are_all_kept(shared_dir: Path, tmp_path: Path) -> None:
    data = DataFolder(tmp_path)
    crawl([shared_dir / "videos"], data.manifest, CrawlConfig())
    filter_manifest(data, FilterConfig())
    assert {name: row["dropped"] for name, row in rows(data).items() if row["dropped"]} == {}
    assert len(rows(data)) == 8


def finish_shard(data: DataFolder, *names: str) -> None:
    """Put these films into shard 0, with made-up features: their splits are final from here on."""
    segments = [segment for segment in read_manifest(data.manifest) if Path(segment.source).stem in names]
    shard = ShardPlan.of(0, (line_of(segment.identity) for segment in segments))
    write_plan(data.plan, {0: shard})
    features, codes = np.zeros((1, 577, 2), np.float16), np.zeros((4, 50), np.int16)
    samples = [Sample(segment.key, features, codes) for segment in segments]
    write_shard(data.shards, 0, samples, plan_hash=shard.plan_hash, fingerprint={})


def test_a_segment_in_a_finished_shard_keeps_its_split_and_others_follow_it(data: DataFolder) -> None:
    """`same music` was encoded before anyone knew that `other` has its music; `other` follows it."""
    rewrite(data, "same music", split="test")
    finish_shard(data, "same music")
    filter_manifest(data, FilterConfig(score="none"))
    found = rows(data)
    assert found["same music"]["split"] == "test"
    assert found["other"]["dropped"] is None
    assert found["other"]["split"] == "test"


def test_music_of_finished_shards_in_both_splits_is_kept_out_of_new_ones(data: DataFolder) -> None:
    rewrite(data, "good", split="train")
    rewrite(data, "again", split="test", dropped=None)
    finish_shard(data, "good", "again")
    third = rows(data)["good"] | {"key": "f" * 16 + "_00000_008000", "source": "third.mp4"}
    data.manifest.write_text(data.manifest.read_text() + json.dumps(third) + "\n")
    filter_manifest(data, FilterConfig(score="none", keep="silence < 0.5"))
    assert rows(data)["third"]["dropped"] == "group: its music is in both splits of finished shards"
    assert rows(data)["good"]["dropped"] is None


def rewrite(data: DataFolder, name: str, **values: Any) -> None:
    """Change one row of the manifest."""
    found = rows(data)
    found[name] |= values
    data.manifest.write_text("".join(json.dumps(row) + "\n" for row in found.values()))
