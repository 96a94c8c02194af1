"""Superimposed text, by the detector of RapidOCR (PP-OCR), whose model ships in its package. Nothing is read.

Shapes: F frames, H height, W width.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.filters.extras import needed

EVERY_S = 5  # frames one second apart go in; captions stay for longer than this gap
MAX_LINE_HEIGHT = 0.25  # of the frame; the detector's false finds (bright branches, an eye) are much taller
WITH_TEXT = 0.002  # area share from which a frame counts as having text

_engines = threading.local()


def text(frames: Sequence[np.ndarray]) -> dict[str, float]:
    """{"text": mean area share of lines of text, "text_persistence": share of frames that have any}.

    frames: uint8 [H, W, 3], one second apart; every fifth is looked at. Signs and screens in the picture
    count too:
    the detector cannot tell them from captions, but they do not persist.
    Raises MissingExtraError where rapidocr or onnxruntime is not installed.
    """
    areas = np.array([_text_area(frame) for frame in frames[::EVERY_S]])
    return {
        "text": round(float(areas.mean()), 4),
        "text_persistence": round(float((areas > WITH_TEXT).mean()), 3),
    }


def _text_area(frame: np.ndarray) -> float:
    """Share of the frame that lies in boxes around lines of text."""
    found = _engine()(frame[..., ::-1], use_det=True, use_cls=False, use_rec=False)  # it wants BGR
    if found.boxes is None:
        return 0.0
    height, width = frame.shape[:2]
    lines = [
        box for box in np.asarray(found.boxes, np.float64) if _line_height(box) < MAX_LINE_HEIGHT * height
    ]
    return min(1.0, sum(_area(box) for box in lines) / (height * width))


def _line_height(box: np.ndarray) -> float:
    """The shorter side of a box of four corners [4, 2]."""
    return float(min(np.linalg.norm(box[1] - box[0]), np.linalg.norm(box[2] - box[1])))


def _area(box: np.ndarray) -> float:
    x, y = box.T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def _engine() -> Any:
    if not hasattr(_engines, "rapidocr"):
        needed("onnxruntime")
        settings = {
            "Global.log_level": "error",
            "Det.limit_side_len": 480,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,  # segments run beside each other instead
        }
        _engines.rapidocr = needed("rapidocr").RapidOCR(params=settings)
    return _engines.rapidocr
