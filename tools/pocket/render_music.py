"""Notes -> waveform with FluidSynth's library and the FluidR3 General MIDI sound font (MIT), mono, 32 kHz.

Needs the Debian packages `libfluidsynth3` and `fluid-soundfont-gm`. No reverb and no chorus: the same
note gives the same sound wherever it stands, which a small codec and a small network learn soonest.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections import defaultdict
from pathlib import Path

import numpy as np
from compose import CODE_RATE, Note

SAMPLE_RATE = 32_000
SOUND_FONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
GAIN = 1.0
DRUM_CHANNEL = 9


def render_music(notes: list[Note], duration_s: float) -> np.ndarray:
    """float32 [N] mono in -1 … 1, N = duration_s x 32000. The same notes give the same samples.

    Every call starts a fresh synthesiser: a reset one still sounds of the piece before.
    """
    synthesiser = _Synthesiser()
    try:
        return _soft_limit(synthesiser.render(notes, round(duration_s * CODE_RATE)))
    finally:
        synthesiser.close()


class _Synthesiser:
    """One FluidSynth with the sound font loaded."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(ctypes.util.find_library("fluidsynth") or "libfluidsynth.so.3")
        for name in ("new_fluid_settings", "new_fluid_synth"):
            getattr(self._lib, name).restype = ctypes.c_void_p
        self._settings = ctypes.c_void_p(self._lib.new_fluid_settings())
        for name, value in ((b"synth.sample-rate", SAMPLE_RATE), (b"synth.gain", GAIN)):
            self._lib.fluid_settings_setnum(self._settings, name, ctypes.c_double(value))
        for name, switch in ((b"reverb.active", 0), (b"chorus.active", 0), (b"dynamic-sample-loading", 1)):
            self._lib.fluid_settings_setint(self._settings, b"synth." + name, switch)
        self._synth = ctypes.c_void_p(self._lib.new_fluid_synth(self._settings))
        if self._lib.fluid_synth_sfload(self._synth, str(SOUND_FONT).encode(), 1) < 0:
            raise ValueError(f"{SOUND_FONT}: not a sound font. Install the Debian package fluid-soundfont-gm")

    def close(self) -> None:
        self._lib.delete_fluid_synth(self._synth)
        self._lib.delete_fluid_settings(self._settings)

    def render(self, notes: list[Note], num_frames: int) -> np.ndarray:
        channels = self._assign_channels(notes)
        events: dict[int, list[tuple[bool, int, Note]]] = defaultdict(list)
        for note in notes:
            channel = channels[note.program]
            events[note.start].append((True, channel, note))
            events[note.start + max(1, note.length)].append((False, channel, note))
        return np.concatenate([self._frame(events.get(frame, ())) for frame in range(num_frames)])

    def _assign_channels(self, notes: list[Note]) -> dict[int, int]:
        channels = {-1: DRUM_CHANNEL}
        free = [c for c in range(16) if c != DRUM_CHANNEL]
        for program in sorted({n.program for n in notes if n.program >= 0}):
            channels[program] = free.pop(0)
            self._lib.fluid_synth_program_change(self._synth, channels[program], program)
        return channels

    def _frame(self, events) -> np.ndarray:
        for is_on, channel, note in sorted(
            events, key=lambda e: e[0]
        ):  # offs before ons: a repeated note sounds
            if is_on:
                self._lib.fluid_synth_noteon(self._synth, channel, note.pitch, note.velocity)
            else:
                self._lib.fluid_synth_noteoff(self._synth, channel, note.pitch)
        samples = SAMPLE_RATE // CODE_RATE
        left, right = np.empty(samples, np.float32), np.empty(samples, np.float32)
        pointers = [buffer.ctypes.data_as(ctypes.c_void_p) for buffer in (left, right)]
        self._lib.fluid_synth_write_float(self._synth, samples, pointers[0], 0, 1, pointers[1], 0, 1)
        return 0.5 * (left + right)


def _soft_limit(waveform: np.ndarray, knee: float = 0.7) -> np.ndarray:
    """Leave everything below the knee alone and bend what is above it under 0.98."""
    above = np.abs(waveform) > knee
    room = 0.98 - knee
    bent = np.sign(waveform) * (knee + room * np.tanh((np.abs(waveform) - knee) / room))
    return np.where(above, bent, waveform).astype(np.float32)
