"""Music makes room for a synthetic voice, and only for that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gvmgen.finish import speech
from gvmgen.finish.film import write_film
from gvmgen.finish.mastering import Mastering
from gvmgen.finish.speech import AFTER_S, BEFORE_S, DUCK_DB, MissingExtraError, check_detector, ducked
from tests import media as made
from tests.gvmgen.finish.made_music import RATE, as_sound, read_sound, tone
from tests.pipeline.made_speech import spoken

VOICE_S = (3.0, 7.0)  # when the voice speaks in the made film of 10 s


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 s of noise as of wind, somebody speaking in the middle."""
    pytest.importorskip("silero_vad", reason="silero-vad brings the speech detector")
    folder = tmp_path_factory.mktemp("talk")
    sound = 0.002 * np.random.default_rng(0).standard_normal(10 * RATE)
    first, last = (round(at_s * RATE) for at_s in VOICE_S)
    sound[first:last] += 0.5 * spoken(RATE)[: last - first]
    raw = ["-f", "f32le", "-ar", str(RATE), "-ac", "1", "-i", "pipe:"]
    picture = ["-f", "lavfi", "-i", "color=size=64x48:rate=10:duration=10"]
    path = folder / "talk.mp4"
    made.run_ffmpeg([*raw, *picture, "-c:a", "aac", str(path)], stdin=sound.astype("<f4").tobytes())
    return path


def test_the_spans_of_speech_are_found(film: Path) -> None:
    spans = speech.speech_spans(film)
    assert spans[0][0] == pytest.approx(VOICE_S[0], abs=0.3)
    assert spans[-1][1] == pytest.approx(VOICE_S[1], abs=0.3)
    assert sum(end - start for start, end in spans) > 3.0


def test_the_music_of_a_film_goes_down_while_somebody_speaks(film: Path, tmp_path: Path) -> None:
    out = tmp_path / "film.mkv"
    music = as_sound(tone(10.0, pitch=6000))  # where the voice has little
    write_film(film, music, out, Mastering(ending="cut"), original="duck", tags={})
    samples, rate = read_sound(out)
    times = np.arange(len(samples)) / rate
    carrier = samples[:, 0] * np.exp(-2j * np.pi * 6000 * times)
    before, during, after = (
        20 * np.log10(np.abs(carrier[at_s * rate :][: rate // 2].mean())) for at_s in (1, 5, 9)
    )
    assert during - before == pytest.approx(DUCK_DB, abs=1.0)
    assert after == pytest.approx(before, abs=1.0)


def test_music_is_down_before_the_first_word_and_back_after_the_last() -> None:
    quieter = ducked(as_sound(np.ones(10 * RATE)), [(13.0, 15.0)], start_s=10.0).samples  # speech at 3 … 5 s
    levels = 20 * np.log10(quieter)
    at = {at_s: levels[round(at_s * RATE)] for at_s in (2.9 - BEFORE_S, 3.0, 4.9, 5.1 + AFTER_S)}
    np.testing.assert_allclose(list(at.values()), [0, DUCK_DB, DUCK_DB, 0], atol=0.01)
    assert np.abs(np.diff(levels)).max() < 0.01  # no step that clicks


def test_without_the_detector_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gvmgen\[filters\]'"):
        check_detector()
