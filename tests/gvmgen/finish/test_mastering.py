"""Ending, loudness, true peak and formats of real files, measured by others' meters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gvmgen.encoders.process import MediaError
from gvmgen.finish.mastering import CEILING_DB, SOUND_SUFFIXES, Mastering, loudness_target, write_sound
from tests.gvmgen.finish.made_music import (
    RATE,
    as_sound,
    beats,
    header_samples,
    noise_bursts,
    read_comment,
    read_sound,
    tone,
)

AS_COMPOSED = Mastering(ending="cut", loudness=None)


def write(samples: np.ndarray, path: Path, mastering: Mastering) -> tuple[np.ndarray, int]:
    """Write a file and read it back: float32 [N, C] and its sample rate."""
    write_sound(as_sound(samples), path, mastering, {"seed": 7})
    return read_sound(path)


def loudness(samples: np.ndarray, rate: int) -> float:
    """LUFS, by another meter than the one that mastered."""
    meter = pytest.importorskip("pyloudnorm", reason="pyloudnorm is the other meter").Meter(rate)
    return float(meter.integrated_loudness(samples.astype(np.float64)))


def true_peak_db(samples: np.ndarray) -> float:
    """dBTP, by exact interpolation to eight times the rate."""
    padded = np.pad(samples[:, 0].astype(np.float64), 1000)
    spectrum = np.fft.rfft(padded)
    finer = np.fft.irfft(spectrum, 8 * len(padded)) * 8
    return float(20 * np.log10(np.abs(finer).max()))


@pytest.mark.parametrize("make", [tone, beats, noise_bursts])
@pytest.mark.parametrize("target", [-14.0, -23.0])
def test_a_piece_gets_its_loudness_and_keeps_its_peaks_below_the_ceiling(
    make: object, target: float, tmp_path: Path
) -> None:
    samples, rate = write(make(6.0), tmp_path / "a.wav", Mastering(ending="cut", loudness=target))  # type: ignore[operator]
    assert loudness(samples, rate) == pytest.approx(target, abs=0.4)
    assert true_peak_db(samples) <= CEILING_DB + 0.15


def test_two_channels_are_as_loud_as_wanted_too(tmp_path: Path) -> None:
    samples, rate = write(beats(6.0), tmp_path / "a.wav", Mastering(stereo=True, sample_rate=48_000))
    assert (samples.shape[1], rate) == (2, 48_000)
    np.testing.assert_array_equal(samples[:, 0], samples[:, 1])
    assert loudness(samples, rate) == pytest.approx(-14.0, abs=0.4)


def test_without_a_target_samples_stay_as_composed(tmp_path: Path) -> None:
    composed = tone(1.0)
    samples, _ = write(composed, tmp_path / "a.wav", AS_COMPOSED)
    np.testing.assert_allclose(samples[: RATE // 2, 0], composed[: RATE // 2], atol=2 / 32768)


def test_what_is_too_loud_is_made_quieter_rather_than_clipped(tmp_path: Path) -> None:
    composed = tone(1.0, level=4.0)
    samples, _ = write(composed, tmp_path / "a.wav", AS_COMPOSED)
    assert 20 * np.log10(np.abs(samples).max()) == pytest.approx(CEILING_DB, abs=0.15)
    shape = samples[: RATE // 2, 0] / np.abs(samples).max()
    np.testing.assert_allclose(shape, composed[: RATE // 2] / 4.0, atol=2e-3)


def test_silence_stays_silent(tmp_path: Path) -> None:
    samples, _ = write(np.zeros(RATE), tmp_path / "a.wav", Mastering())
    assert not samples.any()


@pytest.mark.parametrize("suffix", SOUND_SUFFIXES)
@pytest.mark.parametrize("num_samples", [47_361, 32_000])
def test_every_kind_of_file_is_as_long_as_the_piece(suffix: str, num_samples: int, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    samples, rate = write(tone(2.0)[:num_samples], path, Mastering())
    wanted = round(num_samples * rate / RATE)
    if suffix == ".m4a":  # players stop where its header says, decoders give whole AAC frames
        assert header_samples(path) == pytest.approx(wanted, abs=1)
        samples = samples[:wanted]
    assert len(samples) == wanted
    assert json.loads(read_comment(path)) == {"seed": 7}


@pytest.mark.parametrize("suffix", SOUND_SUFFIXES)
def test_the_same_music_makes_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in ("one", "two")]
    for path in paths:
        write(beats(1.0), path, Mastering())
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_fade_comes_down_to_silence_and_a_cut_does_not(tmp_path: Path) -> None:
    faded, cut = (
        write(tone(20.0), tmp_path / f"{ending}.wav", Mastering(ending=ending))[0][:, 0]  # type: ignore[arg-type]
        for ending in ("fade", "cut")
    )
    level = [np.abs(samples[-second * RATE :][:RATE]).max() for second in (6, 3, 1) for samples in (faded,)]
    assert level[0] > level[1] > level[2]
    assert np.abs(faded[-100:]).max() < 1e-3
    assert np.abs(cut[-1000:-500]).max() > 0.9 * np.abs(cut).max()
    assert abs(cut[-1]) < 1e-3  # no click


def test_a_short_piece_is_not_all_fade(tmp_path: Path) -> None:
    samples, _ = write(tone(2.0), tmp_path / "a.wav", Mastering())
    first, last = np.abs(samples[: RATE // 2]).max(), np.abs(samples[RATE : 3 * RATE // 2]).max()
    assert last == pytest.approx(first, rel=0.01)


@pytest.mark.parametrize(("suffix", "rate"), [(".opus", 44_100), (".mp3", 96_000), (".m4a", 50_000)])
def test_a_sample_rate_that_the_file_cannot_hold_is_refused(suffix: str, rate: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds .*48000.* Hz, not"):
        write(tone(1.0), tmp_path / f"a{suffix}", Mastering(sample_rate=rate))
    assert not list(tmp_path.iterdir())


def test_where_ffmpeg_fails_no_file_appears(tmp_path: Path) -> None:
    sound = as_sound(tone(1.0))
    elsewhere = sound.path.rename(sound.path.with_suffix(".moved"))
    with pytest.raises(MediaError, match="ffmpeg"):
        write_sound(sound, tmp_path / "a.wav", Mastering(), {})
    elsewhere.rename(sound.path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "target"), [("-16", -16.0), ("off", None), ("spotify", -14.0), ("ebu", -23.0)]
)
def test_loudness_is_a_number_a_platform_or_off(text: str, target: float | None) -> None:
    assert loudness_target(text) == target


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="spotify, youtube"):
        loudness_target("loud")
    with pytest.raises(ValueError, match=r"-60 … -10"):
        Mastering(loudness=3.0)
    with pytest.raises(ValueError, match="known: fade, cut"):
        Mastering(ending="slam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="8000"):
        Mastering(sample_rate=10)
