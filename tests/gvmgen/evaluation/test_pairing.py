"""Music finds its video by name, and what does not fit is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from gvmgen.evaluation.pairing import find_system, find_videos, named_folder


@pytest.fixture
def videos(tmp_path: Path) -> dict[str, Path]:
    for name in ("a.mp4", "b.MKV", "a.2.mp4", "notes.txt", ".hidden.mp4"):
        (tmp_path / "videos").mkdir(exist_ok=True)
        (tmp_path / "videos" / name).touch()
    return find_videos(tmp_path / "videos")


def music(tmp_path: Path, *names: str) -> Path:
    folder = tmp_path / "music"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


def test_videos_are_known_by_their_names(videos: dict[str, Path]) -> None:
    assert list(videos) == ["a.2", "a", "b"]


def test_takes_are_numbered_and_a_video_with_a_number_is_no_take(
    tmp_path: Path, videos: dict[str, Path]
) -> None:
    found = find_system("x", music(tmp_path, "b.wav", "b.2.wav", "b.10.wav", "a.2.wav"), videos)
    assert [path.name for path in found.takes["b"]] == ["b.wav", "b.2.wav", "b.10.wav"]
    assert [path.name for path in found.takes["a.2"]] == ["a.2.wav"]
    assert found.missing == ("a",)


def test_sound_goes_before_film_and_film_before_midi(tmp_path: Path, videos: dict[str, Path]) -> None:
    found = find_system("x", music(tmp_path, "a.mid", "a.mp4", "b.mid", "a.flac", "other.wav"), videos)
    assert [found.takes[name][0].name for name in ("a", "b")] == ["a.flac", "b.mid"]
    assert found.extra == ("other.wav",)


def test_two_videos_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mov"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"a\.mov and a\.mp4 have one name"):
        find_videos(tmp_path)


def test_what_is_missing_is_said_with_the_way_out(tmp_path: Path, videos: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="holds no video"):
        find_videos(music(tmp_path, "a.wav"))
    with pytest.raises(ValueError, match="no such folder"):
        find_system("x", tmp_path / "nowhere", videos)
    (tmp_path / "music" / "a.wav").rename(tmp_path / "music" / "wrong.wav")
    with pytest.raises(ValueError, match=r"name the files as the videos, such as a\.2\.wav"):
        find_system("x", tmp_path / "music", videos)
    for wrong in ("ours", "=folder", "ours="):
        with pytest.raises(ValueError, match="wants NAME=FOLDER"):
            named_folder(wrong)
