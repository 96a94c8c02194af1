"""Black, static and frozen pictures, and text in them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from pipeline.filters.picture import picture
from pipeline.filters.text import text

SIZE = (360, 640)
CAPTION = "I never knew the sea was so far away"


def scene(seed: int) -> np.ndarray:
    """A smooth random picture; another seed, another scene."""
    coarse = np.random.default_rng(seed).integers(30, 220, (6, 10, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC))


def captioned(frame: np.ndarray, words: str = CAPTION) -> np.ndarray:
    image = Image.fromarray(frame)
    font = ImageFont.load_default(size=26)
    ImageDraw.Draw(image).text(
        (80, image.height - 50), words, "white", font, stroke_width=2, stroke_fill="black"
    )
    return np.asarray(image)


def test_a_moving_picture_is_none_of_these() -> None:
    assert picture([scene(i) for i in range(10)]) == {"black": 0.0, "static": 0.0, "frozen": 0.0}


def test_black_is_the_share_of_black_frames() -> None:
    black = np.full((*SIZE, 3), 8, np.uint8)
    assert picture([scene(0), black, scene(1), black])["black"] == 0.5


def test_a_dark_scene_is_not_black() -> None:
    assert picture([scene(i) // 6 for i in range(4)])["black"] == 0.0


def test_a_slideshow_is_static_and_not_one_long_freeze() -> None:
    slides = [scene(i // 5) for i in range(20)]
    scores = picture(slides)
    assert scores["static"] == pytest.approx(16 / 19, abs=0.001)
    assert scores["frozen"] == pytest.approx(4 / 19, abs=0.001)


def test_a_still_with_a_codecs_noise_is_frozen() -> None:
    noise = np.random.default_rng(0)
    still = [np.clip(scene(0) + noise.normal(0, 2, (*SIZE, 3)), 0, 255).astype(np.uint8) for _ in range(8)]
    assert picture(still)["frozen"] == 1.0


def test_one_frame_has_an_answer() -> None:
    assert picture([scene(0)]) == {"black": 0.0, "static": 0.0, "frozen": 0.0}


def test_burned_in_captions_are_found_by_area_and_persistence() -> None:
    pytest.importorskip("rapidocr", reason="rapidocr brings the text detector")
    scores = text([captioned(scene(i)) for i in range(11)])
    assert 0.03 < scores["text"] < 0.15
    assert scores["text_persistence"] == 1.0


def test_pictures_without_text_have_none() -> None:
    pytest.importorskip("rapidocr", reason="rapidocr brings the text detector")
    scores = text([scene(i) for i in range(11)])
    assert scores["text"] < 0.005


def test_text_in_a_third_of_the_frames_persists_for_a_third() -> None:
    pytest.importorskip("rapidocr", reason="rapidocr brings the text detector")
    frames = [captioned(scene(0)), *(scene(i) for i in range(1, 11))]  # every fifth is looked at: 0, 5, 10
    assert text(frames)["text_persistence"] == pytest.approx(1 / 3, abs=0.001)
