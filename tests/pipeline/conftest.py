"""A small data folder for the tests of encoding, and what one run without trouble makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gvmgen.encoders.presets import ENCODER_PRESETS
from pipeline.crawl import crawl
from pipeline.folder import DataFolder
from tests.pipeline.encode_runs import CRAWL, Bytes, run, written
from tests.pipeline.made_videos import make_video


@pytest.fixture(scope="session")
def crawled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with its videos and manifest; segments overlap by half."""
    if not Path(ENCODER_PRESETS["pocket"].codec).is_dir():
        pytest.skip("pocket's weights are not in this checkout")
    root = tmp_path_factory.mktemp("crawled") / "data"
    make_video(root / "videos" / "a.mp4", 3, 440)
    make_video(root / "videos" / "b.mp4", 4, 550)
    crawl([root / "videos"], root / "manifest.jsonl", CRAWL)
    return root


@pytest.fixture
def data(crawled: Path, tmp_path: Path) -> DataFolder:
    """A fresh copy of it."""
    return DataFolder(shutil.copytree(crawled, tmp_path / "data"))


@pytest.fixture(scope="session")
def uninterrupted(crawled: Path, tmp_path_factory: pytest.TempPathFactory) -> Bytes:
    """What one run without trouble writes."""
    data = DataFolder(shutil.copytree(crawled, tmp_path_factory.mktemp("uninterrupted") / "data"))
    assert run(data).num_failed == 0
    return written(data)
