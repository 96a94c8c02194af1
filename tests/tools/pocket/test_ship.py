"""What was trained on a codec's codes outlives a better decoder of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import EncodecModel

from gvmgen import GVMGen
from gvmgen.encoders.presets import ENCODER_PRESETS, POCKET_DIR, encoder_config

SHIP = Path(__file__).parents[3] / "tools" / "pocket" / "ship.py"


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_a_codec_that_ships_takes_networks_along_only_where_codes_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    package, trained = tmp_path / "pocket", tmp_path / "trained"
    shutil.copytree(POCKET_DIR, package)
    codec = EncodecModel.from_pretrained(package / "codec", dtype=torch.float32)
    with torch.no_grad():
        getattr(codec, part).layers[0].conv.bias += 0.01
    codec.save_pretrained(trained)
    command = [sys.executable, str(SHIP), "--codec", str(trained), "--package", str(package)]
    subprocess.run(command, check=True, capture_output=True)
    theirs = replace(encoder_config("pocket"), codec=str(package / "codec"))
    monkeypatch.setitem(ENCODER_PRESETS, "pocket", theirs)
    if part == "decoder":
        GVMGen.load(str(package / "model"), device="cpu")
    else:
        with pytest.raises(ValueError, match="trained with other encoders"):
            GVMGen.load(str(package / "model"), device="cpu")
