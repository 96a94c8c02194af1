"""The smallest soundfont: one instrument, one looped sine of 440 Hz. SoundFont 2.04, section 7."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

_RATE = 44_100
_PERIOD, _PERIODS = 100, 40  # samples: 441 Hz
_INSTRUMENT, _SAMPLE_ID, _SAMPLE_MODES = 41, 53, 54  # generators


def make_soundfont(path: Path) -> Path:
    size = _PERIOD * _PERIODS
    wave = (12_000 * np.sin(2 * np.pi * np.arange(size) / _PERIOD)).astype("<i2").tobytes() + bytes(2 * 46)
    info = (
        _chunk("ifil", struct.pack("<HH", 2, 1))
        + _chunk("isng", b"EMU8000\0")
        + _chunk("INAM", b"one sine\0\0")
    )
    presets = _preset("sine", bag=0) + _preset("EOP", bag=1)
    instruments = struct.pack("<20sH", b"sine", 0) + struct.pack("<20sH", b"EOI", 1)
    sample = struct.pack("<20sIIIIIBbHH", b"sine", 0, size, 0, size, _RATE, 69, 0, 0, 1)
    end = struct.pack("<20sIIIIIBbHH", b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0)
    generators = struct.pack("<HH", _SAMPLE_MODES, 1) + struct.pack("<HH", _SAMPLE_ID, 0)
    hydra = {
        "phdr": presets,
        "pbag": struct.pack("<HHHH", 0, 0, 1, 0),
        "pmod": bytes(10),
        "pgen": struct.pack("<HH", _INSTRUMENT, 0) + bytes(4),
        "inst": instruments,
        "ibag": struct.pack("<HHHH", 0, 0, 2, 0),
        "imod": bytes(10),
        "igen": generators + bytes(4),
        "shdr": sample + end,
    }
    lists = _list("INFO", info) + _list("sdta", _chunk("smpl", wave))
    lists += _list("pdta", b"".join(_chunk(name, content) for name, content in hydra.items()))
    path.write_bytes(_chunk("RIFF", b"sfbk" + lists))
    return path


def _preset(name: str, bag: int) -> bytes:
    return struct.pack("<20sHHHIII", name.encode(), 0, 0, bag, 0, 0, 0)


def _chunk(name: str, content: bytes) -> bytes:
    return name.encode() + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _list(name: str, content: bytes) -> bytes:
    return _chunk("LIST", name.encode() + content)
