"""An evaluator on disk, and scores of real files through the encoders in the box."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.media import read_waveform, write_waveform
from gvmgen.encoders.presets import encoder_config
from gvmgen.encoders.video import VideoEncoder
from gvmgen.evaluation import load_evaluator
from gvmgen.evaluation.config import EvaluatorConfig
from gvmgen.evaluation.evaluator import Evaluator, EvaluatorInfo, save_evaluator
from gvmgen.evaluation.model import EvaluationModel
from shards.spec import SAMPLE_RATE
from tests import media as made

SIZES = EvaluatorConfig(video_dim=3 * 192, music_dim=3 * 64, dim=16, num_layers=1, num_heads=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained evaluator for pocket's encoders."""
    config = encoder_config("pocket")
    fingerprint = {
        "video": VideoEncoder.load(config, dtype=torch.float32).fingerprint,
        "audio": AudioCodec.load(config).fingerprint,
    }
    torch.manual_seed(0)
    info = EvaluatorInfo(preset="pocket", encoder_fingerprint=fingerprint, step=0, training={})
    path = tmp_path_factory.mktemp("evaluator")
    save_evaluator(path, EvaluationModel(SIZES), info)
    return path


@pytest.fixture(scope="module")
def evaluator(folder: Path) -> Evaluator:
    return load_evaluator(folder)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "numbered.mp4"
    return made.make_numbered(path, made.constant_times(3.0, Fraction(10)))


def noise(seconds: float, seed: int) -> np.ndarray:
    samples = np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))
    return (0.1 * samples).astype(np.float32)


def test_a_waveform_and_its_file_get_the_same_score(
    evaluator: Evaluator, video: Path, tmp_path: Path
) -> None:
    write_waveform(tmp_path / "music.wav", noise(3, seed=1))
    from_file = evaluator.score(video, tmp_path / "music.wav")
    from_waveform = evaluator.score(video, read_waveform(tmp_path / "music.wav"))
    assert from_file.cmr == from_waveform.cmr
    assert -1 <= from_file.cmr <= 1
    assert from_file.alignment.shape == (3, 3)
    assert from_file.ta == pytest.approx(from_file.alignment.diagonal().mean(), abs=1e-6)
    assert from_file.ta_chance == pytest.approx(1 / 3)


def test_the_matrix_holds_the_scores_of_all_pairs(evaluator: Evaluator, video: Path) -> None:
    takes = [noise(3, seed=1), noise(2.5, seed=2)]  # of unlike lengths
    watched = evaluator.watch(video)
    matrix = evaluator.matrix([video, watched], takes)
    assert matrix.shape == (2, 2)
    np.testing.assert_array_equal(matrix[0], matrix[1])
    assert matrix[0, 0] == pytest.approx(evaluator.score(watched, takes[0]).cmr, abs=1e-6)
    assert matrix[0, 0] != matrix[0, 1]


def test_music_is_heard_as_shards_hold_it(evaluator: Evaluator) -> None:
    waveform = noise(2, seed=3)
    codes = AudioCodec.load(encoder_config("pocket")).encode(torch.from_numpy(waveform)[None])
    torch.testing.assert_close(evaluator.hear_codes(codes), evaluator.hear(waveform))


def test_less_than_a_second_of_music_is_refused(evaluator: Evaluator) -> None:
    with pytest.raises(ValueError, match=r"music of 0\.50 s; at least a second"):
        evaluator.hear(noise(0.5, seed=0))


def test_weights_kept_as_float16_score_nearly_the_same(evaluator: Evaluator, tmp_path: Path) -> None:
    save_evaluator(tmp_path, evaluator.model, evaluator.info, torch.float16)
    half = load_evaluator(tmp_path)
    seen, heard = torch.randn(1, 5, 576), torch.randn(1, 5, 192)
    with torch.inference_mode():
        for tower in ("video_tower", "music_tower"):
            x = seen if tower == "video_tower" else heard
            exact, rounded = getattr(evaluator.model, tower)(x), getattr(half.model, tower)(x)
            torch.testing.assert_close(exact, rounded, atol=0.02, rtol=0)


def test_a_folder_without_an_evaluator_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no evaluator\. Train one: gvm-eval train"):
        load_evaluator(tmp_path)


def test_an_evaluator_of_other_encoders_is_refused_with_the_difference(
    folder: Path, evaluator: Evaluator, tmp_path: Path
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["encoder_fingerprint"]["audio"]["weights_sha256"] = "other"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="trained with other encoders: weights_sha256: found"):
        load_evaluator(tmp_path).hear(noise(1, seed=0))


def test_a_broken_evaluator_is_one_line_that_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:999])
    with pytest.raises(ValueError, match=r"is no evaluator that can be used: .*gvm-eval train"):
        load_evaluator(tmp_path)
