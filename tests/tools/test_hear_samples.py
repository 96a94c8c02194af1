"""What a run composed on the way is heard, once."""

from __future__ import annotations

import importlib.util
import json
import wave
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TOOL = Path(__file__).resolve().parents[2] / "tools" / "hear_samples.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hear_samples", TOOL)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_composed_codes_become_sound_files_and_tensorboards_audio(tmp_path: Path, tool: ModuleType) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"train": {"preset": "pocket"}}))
    sample = tmp_path / "samples" / "step_00000040" / "one.npy"
    sample.parent.mkdir(parents=True)
    np.save(sample, np.random.default_rng(0).integers(0, 2048, (4, 50), np.int16))
    tool.main(tmp_path, follow=False)
    with wave.open(str(sample.with_suffix(".wav"))) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (32_000, 32_000)
    assert not tool.unheard(tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "samples"))
    events.Reload()
    assert (events.Tags()["audio"], events.Tags()["images"]) == (["one"], ["one spectrogram"])
    assert events.Audio("one")[0].step == 40


def test_a_spectrogram_shows_a_tone_where_its_frequency_is(tool: ModuleType) -> None:
    tone = torch.sin(2 * torch.pi * 8000 * torch.arange(32_000) / 32_000)
    picture = tool.spectrogram(tone)[0]
    loudest = picture.mean(dim=1).argmax().item()
    assert loudest == pytest.approx(len(picture) / 2, abs=2)  # 8 of 16 kHz, low at the bottom
    assert picture.max() == 1
    assert picture.mean() < 0.2
