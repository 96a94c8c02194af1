"""The page and its numbers, looked at in a real browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.folder import DataFolder
from pipeline.jsonl import write_rows
from pipeline.report import histogram, write_report
from pipeline.samples import peaks
from tests.pipeline.made_videos import make_video

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def row(number: int, source: str, **values: Any) -> dict[str, Any]:
    base = {
        "key": f"{number:016x}_00000_006000",
        "source": source,
        "source_size": 1,
        "source_sha256": f"{number:064x}",
        "start_s": 0,
        "duration_s": 6.0,
        "group": f"{number:016x}",
        "split": "train",
        "shard": 0,
        "dropped": None,
        "scores": {"speech": number / 10, "loudness": -20.0 - number},
        "about": {"source_name": "SymMV", "kind": "MV", "style": "Chinese", "licence": "CC0"},
    }
    return base | values


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    make_video(tmp_path / "a.mp4", 6)
    rows = [
        row(1, "a.mp4"),
        row(2, "a.mp4", about={"kind": "movie", "style": "Western"}, split="test"),
        row(3, "a.mp4", dropped="speech is 0.9, wanted speech < 0.3"),
        row(4, "gone.mp4", dropped="duplicate of 1"),
        row(
            5,
            "<script>alert(1)</script>.mp4",
            about={"source_name": "<img src=x onerror=alert(2)>", "kind": "MV"},
        ),
    ]
    write_rows(tmp_path / "manifest.jsonl", rows)
    write_rows(tmp_path / "manifest.left-out.jsonl", [{"reason": "too short"}, {"reason": "too short"}])
    return DataFolder(tmp_path)


@pytest.fixture
def report(data: DataFolder) -> Path:
    out = data.root / "report.html"
    write_report(data, out, num_samples=5)
    return out


def test_the_numbers_add_up(report: Path) -> None:
    numbers = json.loads(report.with_suffix(".json").read_text())
    assert numbers["total"] == {"kept_h": 0.005, "dropped_h": 0.0033, "segments": 5}
    assert numbers["hours"]["kind"]["MV"]["segments"] == 4
    assert numbers["hours"]["split"]["test"]["kept_h"] == 0.0017
    assert numbers["dropped"] == {"speech": 1, "duplicate": 1}
    assert numbers["left_out"] == {"too short": 2}
    assert {"kind": "movie", "style": "Western", "hours": 0.0017} in numbers["table"]
    assert sum(numbers["histograms"]["speech"]["counts"]) == 5


def test_time_by_kind_and_style_comes_with_sums(report: Path) -> None:
    """As in the publication's table 1: Chinese, Western, not labelled, and all of them."""
    sums = re.search(r"<tr class=total><th>all(.*?)</table>", report.read_text())
    assert sums
    assert re.findall(r"<td class=n>([^<]*)", sums[1]) == ["6 s", "6 s", "6 s", "18 s"]


def test_the_page_asks_for_nothing_from_elsewhere_and_holds_no_script(report: Path) -> None:
    found: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "link", "iframe", "object")
            found.extend(value or "" for name, value in attrs if name in ("src", "href"))
            assert not any(name.startswith("on") for name, _ in attrs)

    Links().feed(report.read_text())
    assert found
    assert all(link.startswith("data:image/jpeg;base64,") for link in found)
    assert "url(" not in report.read_text()


def test_a_segment_whose_file_is_gone_is_still_shown(report: Path) -> None:
    assert report.read_text().count("not readable") == 2
    assert report.read_text().count("data:image/jpeg") == 3


def test_the_same_set_gives_the_same_page(data: DataFolder, report: Path) -> None:
    write_report(data, data.root / "again.html", num_samples=5)
    assert (data.root / "again.html").read_text() == report.read_text()


def test_a_sample_is_half_kept_and_half_dropped_where_there_are_so_many(tmp_path: Path) -> None:
    rows = [row(i, "gone.mp4", dropped=None if i % 2 else "text is 1") for i in range(20)]
    write_rows(tmp_path / "manifest.jsonl", rows)
    write_report(DataFolder(tmp_path), tmp_path / "report.html", num_samples=6)
    assert (tmp_path / "report.html").read_text().count("class=why") == 3


def test_a_set_without_scores_and_labels_has_a_page(tmp_path: Path) -> None:
    bare = {
        key: value for key, value in row(1, "gone.mp4").items() if key not in ("scores", "about", "dropped")
    }
    write_rows(tmp_path / "manifest.jsonl", [bare])
    write_report(DataFolder(tmp_path), tmp_path / "report.html", num_samples=1)
    assert "not labelled" in (tmp_path / "report.html").read_text()


def test_without_a_manifest_the_message_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Run: gvm-prep crawl-manifest"):
        write_report(DataFolder(tmp_path), tmp_path / "report.html", num_samples=1)


def test_a_histogram_counts_every_value_and_names_the_quartiles() -> None:
    found = histogram(np.array([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert sum(found["counts"]) == 5
    assert (found["from"], found["to"], found["quartiles"]) == (0.0, 1.0, [0.25, 0.5, 0.75])
    assert sum(histogram(np.zeros(3))["counts"]) == 3


def test_peaks_follow_the_waveform() -> None:
    found = peaks(np.concatenate([np.zeros(1200), np.full(1200, -0.5)]))
    assert len(found) == 120
    assert set(found[:60]) == {0.0}
    assert set(found[60:]) == {0.5}


@pytest.mark.skipif(BROWSER is None, reason="needs chromium on PATH to look at the page")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_the_page_whole(report: Path, tmp_path: Path, width: int) -> None:
    """Every picture is decoded, nothing is wider than the window, and file names did not become markup."""
    probe = (
        "<script>addEventListener('load', () => document.title = JSON.stringify({"
        "pictures: [...document.images].map(i => i.complete && i.naturalWidth > 0),"
        "wide: document.documentElement.scrollWidth - innerWidth,"
        "heights: [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height),"
        "names: document.body.innerText.includes('<img src=x onerror'),"
        "sections: [...document.querySelectorAll('h2')].map(h => h.innerText)}))</script>"
    )
    page = re.sub(r"<meta http-equiv=[^>]*>", "", report.read_text())  # the page itself allows no script
    looked_at = tmp_path / "looked-at.html"
    looked_at.write_text(page.replace("</body>", probe + "</body>"))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    dom = subprocess.run(
        [*command, "--dump-dom", looked_at.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    title = re.search(r"<title>(\{.*?\})</title>", dom)
    assert title, dom[:500]
    seen = json.loads(title[1])
    assert seen["pictures"] == [True] * 3
    assert seen["wide"] <= 0
    assert min(seen["heights"]) > 0
    assert seen["names"]
    assert {"Source", "Kept, by kind of video and style of music", "Lengths and scores", "A sample"} <= set(
        seen["sections"]
    )
