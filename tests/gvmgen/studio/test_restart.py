"""A studio that is killed loses nothing, and leaves nothing running."""

from __future__ import annotations

from pathlib import Path

import psutil

from tests.gvmgen.studio.made_studio import StudioProcess, wait


def test_a_killed_studio_goes_on_where_it_was(tmp_path: Path, film: Path) -> None:
    with StudioProcess(tmp_path / "made") as studio:
        _, video = studio.upload(film)
        key = video["key"]
        number = studio.order(key, takes=2, seed=5, original="keep")
        wait(lambda: studio.ask("GET", f"/api/videos/{key}")[1]["cuts"] is not None, "the cuts")
        wait(lambda: psutil.Process(studio.process.pid).children(), "a process that composes")
        left = psutil.Process(studio.process.pid).children()
        studio.process.kill()
    with StudioProcess(tmp_path / "made") as studio:
        _, again = studio.ask("GET", f"/api/videos/{key}")
        assert (again["name"], len(again["frames"]), len(again["cuts"])) == ("two shots.mp4", 12, 1)
        order = studio.state(key, number)
        assert order["state"] in ("queued", "running")
        assert (order["wanted"]["seed"], order["wanted"]["original"]) == (5, "keep")
        wait(lambda: not any(child.is_running() for child in left), "the end of what the killed one left")
        mine = psutil.Process(studio.process.pid).children(recursive=True)
    psutil.wait_procs(mine, timeout=60)
    assert not any(process.is_running() for process in mine)
