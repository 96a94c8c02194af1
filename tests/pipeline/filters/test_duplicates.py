"""The same segment again, found by its sound and told from the same music with another picture."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterable

import numpy as np
import pytest
from PIL import Image

from gvmgen.encoders.media import ffmpeg_path
from pipeline.filters.duplicates import Match, Print, duplicates
from pipeline.filters.fingerprint import chromaprint, decode, encode, fingerprint

RATE = 32_000


def song(seed: int, seconds: float = 20.0) -> np.ndarray:
    """A melody of plucked notes with harmonics over a bass; another seed, another melody."""
    random = np.random.default_rng(seed)
    wave = np.zeros(round(seconds * RATE))
    for start in np.arange(0, seconds - 0.5, 0.25):
        for octave in (0.5, 1):
            pitch = 220 * octave * 2 ** (random.integers(0, 24) / 12)
            times = np.arange(round(0.5 * RATE)) / RATE
            note = sum(np.sin(2 * np.pi * pitch * k * times) / k for k in (1, 2, 3, 4)) * np.exp(-6 * times)
            at = round(start * RATE)
            wave[at : at + len(note)] += 0.1 * note
    return wave.astype(np.float32)


def film(seed: int, seconds: int = 20, size: tuple[int, int] = (320, 180)) -> list[np.ndarray]:
    frames = []
    for second in range(seconds):
        coarse = np.random.default_rng((seed, second)).integers(0, 255, (7, 9, 3), np.uint8)
        frames.append(np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)))
    return frames


def encoded_again(wave: np.ndarray, bit_rate: str) -> np.ndarray:
    """Through AAC and back."""
    raw = ("-f", "s16le", "-ar", str(RATE), "-ac", "1")
    samples = (np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes()
    quiet = [ffmpeg_path(), "-nostdin", "-v", "error"]
    adts = subprocess.run(
        [*quiet, *raw, "-i", "-", "-c:a", "aac", "-b:a", bit_rate, "-f", "adts", "-"],
        input=samples,
        capture_output=True,
        check=True,
    ).stdout
    back = subprocess.run([*quiet, "-i", "-", *raw, "-"], input=adts, capture_output=True, check=True).stdout
    return np.frombuffer(back, "<i2").astype(np.float32) / 32768


def smaller(frames: list[np.ndarray]) -> list[np.ndarray]:
    """At another size, through JPEG."""
    again = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).resize((160, 90)).save(buffer, "JPEG", quality=50)
        again.append(np.asarray(Image.open(buffer)))
    return again


def print_of(source: int, wave: np.ndarray, frames: list[np.ndarray]) -> Print:
    prints = fingerprint(wave, RATE, frames)
    return Print(source, len(wave) / RATE, prints["sound_print"], prints["picture_print"])


def matches(prints: Iterable[Print]) -> set[tuple[frozenset[int], bool]]:
    return {(frozenset((m.first, m.second)), m.same_picture) for m in duplicates(prints)}


def test_a_segment_encoded_again_at_another_size_is_found_among_others() -> None:
    prints = [print_of(i, song(i), film(i)) for i in range(4)]
    prints.append(print_of(9, encoded_again(song(2), "64k"), smaller(film(2))))
    assert matches(prints) == {(frozenset((2, 4)), True)}


def test_the_same_music_with_another_picture_is_told_from_a_duplicate() -> None:
    """Nine cameras of one dance share their song and are nine segments."""
    prints = [print_of(0, song(0), film(0)), print_of(1, encoded_again(song(0), "96k"), film(1))]
    assert matches(prints) == {(frozenset((0, 1)), False)}


def test_the_same_scene_cut_two_seconds_later_is_found() -> None:
    prints = [print_of(0, song(0), film(0)), print_of(1, song(0)[2 * RATE :], film(0)[2:])]
    assert matches(prints) == {(frozenset((0, 1)), True)}


def test_a_short_overlap_is_the_same_music_and_no_duplicate() -> None:
    prints = [print_of(0, song(0), film(0)), print_of(1, song(0)[13 * RATE :], film(0)[13:])]
    longer = Print(1, 20.0, prints[1].sound_print, prints[1].picture_print)
    assert matches([prints[0], longer]) == {(frozenset((0, 1)), False)}


def test_segments_of_one_source_are_never_duplicates_of_each_other() -> None:
    assert matches([print_of(0, song(0), film(0)), print_of(0, song(0), film(0))]) == set()


def test_silences_and_held_tones_are_no_duplicates() -> None:
    times = np.arange(20 * RATE) / RATE
    held = (0.2 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)
    quiet = np.zeros(20 * RATE, np.float32)
    prints = [print_of(i, wave, film(i)) for i, wave in enumerate((held, held, quiet, quiet))]
    assert matches(prints) == set()


def test_three_copies_are_joined_into_one_cluster() -> None:
    copies = [print_of(i, song(0), film(0)) for i in range(3)]
    rows = set().union(*(pair for pair, _ in matches(copies)))
    assert rows == {0, 1, 2}


def test_rows_without_a_print_match_nothing() -> None:
    assert list(duplicates([])) == []
    assert list(duplicates([Print(0, 5.0, "", ""), Print(1, 5.0, "", "")])) == []


def test_a_print_survives_its_text_form() -> None:
    values = chromaprint(song(0, 10), RATE)
    assert len(values) == pytest.approx(8.08 * 10, abs=25)
    assert (decode(encode(values), "<u4") == values).all()


def test_matches_name_rows_in_the_order_they_came() -> None:
    found = next(duplicates([print_of(0, song(0), film(0)), print_of(1, song(0), film(0))]))
    assert isinstance(found, Match)
    assert {found.first, found.second} == {0, 1}
