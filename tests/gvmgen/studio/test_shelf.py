"""What lies on disk outlives the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from gvmgen.jobs import Job
from gvmgen.studio.shelf import Order, Shelf, Video
from gvmgen.studio.waiting import Line

ABOUT = {"duration_s": 3.0, "width": 160, "height": 120, "has_audio": True}


def put(shelf: Shelf, name: str = "Ferien am Meer.MP4") -> Video:
    upload = shelf.upload_path()
    upload.write_bytes(b"video")
    return shelf.add(upload, name, **ABOUT)


def reopened(shelf: Shelf) -> Shelf:
    """What another process finds after this one is gone."""
    shelf._lock.close()
    return Shelf(shelf.folder)


def test_videos_and_orders_are_found_again(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "new" / "folder")
    video = put(shelf)
    order = shelf.order(video, Job(takes=4, seed=7, start_s=1.0, ending="cut"))
    order.state, order.takes = "done", [{"seed": 7}]
    shelf.save(video, order)
    found = reopened(shelf)
    assert found.videos == {video.key: video}
    assert found.source(video).read_bytes() == b"video"
    assert found.source(video).name == "video.mp4"


def test_what_was_not_whole_is_swept_away_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.upload_path().write_bytes(b"half")
    (shelf.scratch / "left.f32").write_bytes(b"half")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    assert reopened(shelf).videos == {}
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", ".scratch", "diary.txt", "mine"]


def test_a_damaged_record_names_its_file_and_deletes_nothing(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    video = put(shelf)
    record = shelf.place(video) / "video.json"
    record.write_text("{")
    with pytest.raises(ValueError, match=r"video.json: is damaged .* Repair it, or move"):
        reopened(shelf)
    assert shelf.source(video).is_file()


def test_removing_an_order_leaves_the_video_and_numbers_go_on(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    video = put(shelf)
    first, second = shelf.order(video, Job()), shelf.order(video, Job())
    shelf.remove(video, first)
    assert not shelf.place(video, first).exists()
    assert list(reopened(shelf).videos[video.key].orders) == [second.number]
    assert shelf.order(video, Job()).number == 3


def test_orders_that_a_restart_interrupted_wait_again_in_their_order(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    video, other = put(shelf), put(shelf)
    orders = [shelf.order(v, Job(seed=seed)) for seed, v in enumerate((video, other, video, other))]
    for at, order in enumerate(orders):
        order.created = 1000.0 - at if at < 2 else 1000.0 + at
    for place, state in ((video, "done"), (other, "running")):
        order = place.orders[1]
        order.state = state  # type: ignore[assignment]
        shelf.save(place, order)
    line = Line(reopened(shelf), {})
    assert [order.job.seed for _, order in line.waiting] == [1, 2, 3]
    assert {order.state for _, order in line.waiting} == {"queued"}
    assert [line.ahead(order) for _, order in line.waiting] == [0, 1, 2]


def test_a_cancelled_order_leaves_the_line_and_the_others_move_up(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    video = put(shelf)
    line = Line(shelf, {})
    first, second, third = (shelf.order(video, Job()) for _ in range(3))
    for order in (first, second, third):
        line.add(video, order)
    line.cancel(video, second)
    assert [line.ahead(order) for order in (first, third)] == [0, 1]
    assert list(video.orders) == [first.number, third.number]


def test_the_number_of_a_cancelled_order_is_never_given_again(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    video = put(shelf)
    first = shelf.order(video, Job())
    shelf.remove(video, first)
    second = shelf.order(video, Job())
    shelf.remove(video, second)
    shelf = reopened(shelf)
    assert [first.number, second.number, shelf.order(shelf.videos[video.key], Job()).number] == [1, 2, 3]


def test_an_order_without_a_process_fails_with_its_reason(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    video = put(shelf)
    order = shelf.order(video, Job())
    Line(shelf, {})._end(video, order, {"event": "failed", "error": f"{shelf.source(video)}: is cut short"})
    again = reopened(shelf).videos[video.key].orders[1]
    assert isinstance(again, Order)
    assert (again.state, again.error) == ("failed", "Ferien am Meer.MP4: is cut short")
