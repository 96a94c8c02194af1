"""The line of orders and the process beside it, where things go wrong."""

from __future__ import annotations

from pathlib import Path

from tests.gvmgen.studio.made_studio import StudioProcess, wait


def test_a_model_that_cannot_be_loaded_is_told_and_the_studio_stays(tmp_path: Path, film: Path) -> None:
    with StudioProcess(tmp_path / "made", "--model", str(tmp_path / "nowhere")) as studio:
        _, video = studio.upload(film)
        wait(
            lambda: studio.ask("GET", "/api/studio")[1]["engine"]["state"] == "broken", "the model's failure"
        )
        engine = studio.ask("GET", "/api/studio")[1]["engine"]
        assert str(tmp_path / "nowhere") in engine["error"]
        order = studio.wait_for(video["key"], studio.order(video["key"]), "failed")
        assert order["error"] == engine["error"]
        assert studio.request("GET", f"/files/{video['key']}/video.mp4")[0] == 200
