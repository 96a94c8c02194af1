"""A trained network that is given `frame_changes` composes as before until it learns more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from gvmgen.checkpoint import ModelInfo, load_model, save_model
from tests.gvmgen.networks import make_features, make_network

ADD_CHANGES = Path(__file__).parents[3] / "tools" / "pocket" / "add_changes.py"


def test_a_network_given_frame_changes_has_the_conditions_of_before(tmp_path: Path) -> None:
    before, features = make_network(seed=3), make_features(1, 3)
    save_model(tmp_path / "before", before, ModelInfo(preset="pocket"))
    arguments = ["--model", str(tmp_path / "before"), "--out", str(tmp_path / "after"), "--dropout", "0.1"]
    subprocess.run([sys.executable, str(ADD_CHANGES), *arguments], check=True)
    after, _ = load_model(tmp_path / "after")
    assert after.config.frame_changes
    assert after.config.dropout == 0.1
    torch.testing.assert_close(after.eval().conditions(features), before.conditions(features))
