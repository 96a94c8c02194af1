"""One studio for all tests of this room: loading its model is what takes long."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gvmgen.studio.made_studio import StudioProcess, make_film


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudioProcess]:
    with StudioProcess(tmp_path_factory.mktemp("studio") / "made") as process:
        yield process


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds with sound and one cut."""
    return make_film(tmp_path_factory.mktemp("film") / "two shots.mp4")


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory, film: Path) -> Path:
    """The first half of the film's bytes: its index is missing."""
    path = tmp_path_factory.mktemp("broken") / "broken.mp4"
    content = film.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path
