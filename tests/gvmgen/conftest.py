"""What the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gvmgen.tiny_runs import make_data


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards for tiny networks."""
    return make_data(tmp_path_factory.mktemp("data"))
