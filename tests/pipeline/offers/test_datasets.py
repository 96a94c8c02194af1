"""The data sets' lists, in own-made files of the published forms, malformed lines included."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import fsspec
import pytest

from pipeline.download import Access
from pipeline.offers.candidate import Candidate, Offer, Problem
from pipeline.offers.datasets import read_aist, read_muvi_sync, read_ossl, read_symmv, read_tiktok
from pipeline.offers.read import read_offers


def split_up(offers: Iterable[Offer]) -> tuple[list[Candidate], list[Problem]]:
    offers = list(offers)
    return [o for o in offers if isinstance(o, Candidate)], [o for o in offers if isinstance(o, Problem)]


def test_symmv_rows_group_by_song_and_stand_alone_without_one(tmp_path: Path) -> None:
    (tmp_path / "SymMV.csv").write_text(
        "index\tyoutube_url\ttonality\tshazam_id\n"
        "00001\thttps://www.youtube.com/watch?v=aaaaaaaaaaa\tC# major\t670144512\n"
        "00002\thttps://www.bilibili.com/video/BV1aaaaaaaaa?\tf minor\n"
        "00003\tnot a url\tf minor\t1\n"
        "00004\n"
    )
    found, problems = split_up(read_symmv(str(tmp_path)))
    assert [c.groups for c in found] == [("song:shazam:670144512",), ("video:symmv:00002",)]
    assert found[1].location == "https://www.bilibili.com/video/BV1aaaaaaaaa"
    assert {c.kind for c in found} == {"MV"}
    assert all("CC-BY-NC-SA" in (c.licence or "") for c in found)
    assert [p.origin for p in problems] == ["SymMV.csv line 4", "SymMV.csv line 5"]


def test_muvi_sync_ids_become_videos_with_the_published_split(tmp_path: Path) -> None:
    splits = tmp_path / "split" / "v1"
    splits.mkdir(parents=True)
    (splits / "train.txt").write_text("001\n003\n")
    (splits / "val.txt").write_text("004\n")
    (splits / "test.txt").write_text("002\n")
    (tmp_path / "idlist.txt").write_text(
        "001-Some One - A Song (Official Video)\tabcdefghijk\n"
        "002-Ünïcode – Sông\t-_cdefghijk\n"
        "003-No tab here\n"
        "004-Other\tABCDEFGHIJK\n"
        "005-Short id\tabc\n"
    )
    found, problems = split_up(read_muvi_sync(str(tmp_path)))
    assert [c.location[-11:] for c in found] == ["abcdefghijk", "-_cdefghijk", "ABCDEFGHIJK"]
    assert [c.split for c in found] == ["train", "test", "test"]
    assert [p.origin for p in problems] == ["idlist.txt line 3", "idlist.txt line 5"]


def test_aist_cameras_of_a_dance_and_dances_to_a_song_share_their_group(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        "gWA_sFM_c01_d27_mWA2_ch21\n"
        "https://example.org/10M/gWA_sFM_c02_d27_mWA2_ch21.mp4\n"
        "/home/someone/gBR_sBM_c01_d04_mWA2_ch01_seg3.npy\n"
        "gWA_sFM_c01_d27_mWA2_ch21\n"
        "something else\n"
    )
    found, problems = split_up(read_aist(str(tmp_path / "list.txt")))
    assert len(found) == 3
    assert {c.groups[0] for c in found} == {"song:aist:mWA2"}
    assert found[0].groups[1] == found[1].groups[1] != found[2].groups[1]
    assert found[0].location.endswith("/10M/gWA_sFM_c01_d27_mWA2_ch21.mp4")
    assert len(problems) == 1


def test_aist_videos_beside_the_list_are_used_before_the_web(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("gWA_sFM_c01_d27_mWA2_ch21\n")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "gWA_sFM_c01_d27_mWA2_ch21.mp4").touch()
    (found,), _ = split_up(read_aist(str(tmp_path)))
    assert found.location == str(tmp_path / "videos" / "gWA_sFM_c01_d27_mWA2_ch21.mp4")


def test_tiktok_pieces_become_one_candidate_a_video_found_beside_the_list(tmp_path: Path) -> None:
    (tmp_path / "000007_7_188.mp4").touch()
    (tmp_path / "000011_76_339.mp4").touch()
    (tmp_path / "tiktok_video_train_segment.txt").write_text(
        "/data/someone/tiktok/video_s2/000007_7_188_seg3.npy\n"
        "/data/someone/tiktok/video_s2/000007_7_188_seg5.npy\n"
        "/data/someone/tiktok/video_s2/000007_8_189_seg1.npy\n"
        "nonsense\n"
    )
    (tmp_path / "tiktok_audio_test_segment.txt").write_text("/data/someone/audio_s2/000011_76_339_seg1.wav\n")
    found, problems = split_up(read_tiktok(str(tmp_path)))
    assert [(Path(c.location).stem, c.split) for c in found] == [
        ("000011_76_339", "test"),
        ("000007_7_188", "train"),
    ]
    assert found[1].groups == ("song:tiktok:000007_7",)
    assert [p.location for p in problems] == [
        "000007_8_189",
        str(tmp_path / "tiktok_video_train_segment.txt"),
    ]


def ossl_files(films: str = "movie_id,title\nmov_1,A\nmov_1_b,B\n") -> dict[str, str]:
    return {
        "metadata.csv": films,
        "splits/train.txt": "mov_1_0001\nmov_1_b_0007\n\nbad id!\n",
        "splits/test.txt": "mov_9_0001\n",
    }


def check_ossl(offers: Iterable[Offer], root: str) -> None:
    found, problems = split_up(offers)
    assert [c.location for c in found] == [
        f"{root}/train/video/mov_1/mov_1_0001.mp4",
        f"{root}/train/video/mov_1_b/mov_1_b_0007.mp4",
        f"{root}/test/video/mov_9/mov_9_0001.mp4",
    ]
    assert found[0].music == f"{root}/train/audio/mov_1/mov_1_0001.wav"
    assert [c.groups for c in found] == [("film:ossl:mov_1",), ("film:ossl:mov_1_b",), ("film:ossl:mov_9",)]
    assert [c.split for c in found] == ["train", "train", "test"]
    assert {c.licence for c in found} == {"CC-BY-4.0"}
    assert len(problems) == 1


def test_ossl_in_a_folder_pairs_picture_and_music_by_film(tmp_path: Path) -> None:
    for name, text in ossl_files().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    check_ossl(read_ossl(str(tmp_path)), str(tmp_path))


def test_ossl_in_a_store_is_read_through_fsspec() -> None:
    store = fsspec.filesystem("memory")
    for name, text in ossl_files().items():
        store.pipe_file(f"/ossl-here/{name}", text.encode())
    check_ossl(read_ossl("memory://ossl-here"), "memory://ossl-here")


def test_a_list_that_is_not_there_is_one_problem_and_the_next_source_is_read(tmp_path: Path) -> None:
    (tmp_path / "idlist.txt").write_text("001-A\tabcdefghijk\n")
    found, problems = split_up(read_offers([f"symmv:{tmp_path}", f"muvi-sync:{tmp_path}"], Access()))
    assert len(found) == 1
    assert "no list in it; wants SymMV.csv" in problems[0].reason


@pytest.mark.parametrize(
    "spec", ["ftp://a.example/x.mp4", "file:///etc/passwd", "gopher://a/b", "s3://a::file://b"]
)
def test_other_protocols_are_a_problem_with_words_and_no_request(spec: str) -> None:
    _, (problem,) = split_up(read_offers([spec], Access()))
    assert spec in problem.reason
    assert "known: " in problem.reason
