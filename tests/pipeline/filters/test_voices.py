"""Speech by silero-vad, and tags by a small tagger of a real class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.filters.tags import tags
from tests.pipeline.made_speech import spoken

RATE = 32_000
AUDIO_SET = ("Speech", "Singing", "Music", "Dog")


@pytest.fixture(autouse=True, scope="module")
def _detector() -> None:
    pytest.importorskip("silero_vad", reason="silero-vad brings the speech detector")


def chords(seconds: float) -> np.ndarray:
    """Three-note chords, a new one every second."""
    times = np.arange(round(seconds * RATE)) / RATE
    root = 220 * 2 ** (np.floor(times) * 5 % 12 / 12)
    return sum(0.08 * np.sin(2 * np.pi * root * ratio * times) for ratio in (1, 1.25, 1.5)).astype(np.float32)


def test_a_voice_is_speech_and_chords_are_not() -> None:
    from pipeline.filters.speech import speech

    assert speech(spoken(RATE), RATE)["speech"] > 0.8
    assert speech(chords(10), RATE)["speech"] < 0.05


def test_a_voice_over_music_is_found() -> None:
    from pipeline.filters.speech import speech

    voice = spoken(RATE)
    assert speech(voice + chords(len(voice) / RATE)[: len(voice)], RATE)["speech"] > 0.6


def test_speech_over_time_tells_when() -> None:
    from pipeline.filters.speech import speech

    voice = spoken(RATE)[: 4 * RATE]
    scores = speech(np.concatenate([np.zeros(4 * RATE, np.float32), voice]), RATE)
    assert len(scores["speech_over_time"]) == 8
    assert max(scores["speech_over_time"][:3]) < 0.2
    assert min(scores["speech_over_time"][5:7]) > 0.5


def test_speech_does_not_depend_on_what_was_measured_before() -> None:
    from pipeline.filters.speech import speech

    alone = speech(chords(3), RATE)
    speech(spoken(RATE), RATE)
    assert speech(chords(3), RATE) == alone


def test_a_piece_too_short_for_a_window_has_no_speech() -> None:
    from pipeline.filters.speech import speech

    assert speech(np.zeros(100, np.float32), RATE)["speech"] == 0.0


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Audio Spectrogram Transformer whose head says: music surely, singing hardly, speech at
    random."""
    return make_tagger(tmp_path_factory.mktemp("tagger"), AUDIO_SET)


def make_tagger(folder: Path, labels: tuple[str, ...]) -> Path:
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_length=1024,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    model = ASTForAudioClassification(config)
    head = model.classifier.dense
    torch.nn.init.zeros_(head.weight)
    head.bias.data = torch.tensor([{"Music": 4.0, "Singing": -4.0}.get(label, 0.0) for label in labels])
    model.save_pretrained(folder)
    ASTFeatureExtractor().save_pretrained(folder)
    return folder


def test_a_tagger_from_a_local_folder_gives_its_probabilities(tagger: Path) -> None:
    scores = tags(chords(20), RATE, tagger)
    assert scores["music"] == pytest.approx(1 / (1 + np.exp(-4)), abs=0.001)
    assert scores["singing"] == pytest.approx(1 / (1 + np.exp(4)), abs=0.001)
    assert scores["talking"] == 0.5
    assert len(scores["music_over_time"]) == 2


def test_a_rest_shorter_than_half_a_window_is_not_tagged(tagger: Path) -> None:
    assert len(tags(chords(14), RATE, tagger)["music_over_time"]) == 1
    assert len(tags(chords(16), RATE, tagger)["music_over_time"]) == 2
    assert len(tags(chords(2), RATE, tagger)["music_over_time"]) == 1


def test_a_folder_without_a_tagger_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tagger there"):
        tags(chords(1), RATE, tmp_path)


def test_labels_that_are_not_of_audioset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing for music, singing, talking"):
        tags(chords(1), RATE, make_tagger(tmp_path, ("Cat", "Dog")))
