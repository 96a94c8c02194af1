"""Ending, loudness and true peak of a piece, and the file it becomes. ffmpeg does it all, piece by piece.

Loudness is reached by one gain for the whole piece (ITU-R BS.1770, ffmpeg's `ebur128`); a limiter at four
times the sample rate holds the peaks between samples. `loudnorm` would do both at once, but rides the gain
where peaks are in the way: it would undo dynamics that were composed, and any ducking.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from gvmgen.encoders.process import local_file
from gvmgen.finish.ffmpeg import encode, last_words
from gvmgen.finish.sound import Sound

Ending = Literal["fade", "cut"]

CEILING_DB = -1.0  # dBTP; what every platform asks for, so that lossy coding does not clip
_HEADROOM_DB = 0.3  # going back from the limiter's to the file's sample rate lifts peaks a little
_OVERSAMPLING = 4  # BS.1770 measures true peaks at this
_TOLERANCE_LU = 0.2
_ROUNDS = 4  # limiting makes quieter; so often may gain and limit be corrected
_LOUDEST = -10.0  # LUFS; beyond it peaks held at the ceiling leave most music a decibel or more short
SILENCE_LUFS = -70.0  # the gate of BS.1770: nothing below it is measured
_FADE_S, _FADE_SHARE = 4.0, 0.25  # a fade's length; at most this share of the piece
_CLICK_S = 0.01  # even a cut ends in so short a ramp, or the last sample clicks

LOUDNESS = {  # LUFS that the platform plays at, in its own documentation
    "spotify": -14.0,
    "youtube": -14.0,
    "tidal": -14.0,
    "apple": -16.0,
    "podcast": -16.0,
    "ebu": -23.0,  # broadcast in Europe, EBU R 128
    "atsc": -24.0,  # broadcast in America, ATSC A/85
}
SAMPLE_RATES = (8000, 192_000)
_AAC_RATES = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000)
_FIXED_RATES = {
    ".mp3": (32_000, 44_100, 48_000),
    ".opus": (48_000,),
    **dict.fromkeys((".m4a", ".mp4", ".mov"), _AAC_RATES),
}


def aac(num_channels: int = 1) -> list[str]:
    """ffmpeg's arguments for AAC. At such rates its `fast` search is the better one, in half the time."""
    return ["aac", "-aac_coder", "fast", "-b:a", f"{96 * max(2, num_channels)}k"]


_CODERS = {
    ".wav": ["-c:a", "pcm_s16le", "-f", "wav"],
    ".flac": ["-c:a", "flac", "-sample_fmt", "s16", "-f", "flac"],
    ".mp3": ["-c:a", "libmp3lame", "-q:a", "0", "-f", "mp3"],
    ".opus": ["-c:a", "libopus", "-b:a", "160k", "-f", "opus"],
    ".m4a": ["-c:a", *aac(), "-movflags", "+faststart", "-f", "ipod"],
}
SOUND_SUFFIXES = tuple(_CODERS)


@dataclass(frozen=True, kw_only=True)
class Mastering:
    """How a piece ends and how loud it is. Raises ValueError for what cannot be."""

    ending: Ending = "fade"
    loudness: float | None = LOUDNESS["youtube"]  # LUFS of the file, as a meter reads it; None: as composed
    sample_rate: int | None = None  # Hz; None: as composed, 32 kHz
    stereo: bool = False  # the same on both sides; the model composes mono

    def __post_init__(self) -> None:
        if self.ending not in get_args(Ending):
            raise ValueError(f"ending {self.ending!r} is unknown; known: {', '.join(get_args(Ending))}")
        if self.loudness is not None and not -60.0 <= self.loudness <= _LOUDEST:
            raise ValueError(
                f"loudness {self.loudness:g} LUFS cannot be reached well; give -60 … {_LOUDEST:g}, or off"
            )
        lowest, highest = SAMPLE_RATES
        if self.sample_rate is not None and not lowest <= self.sample_rate <= highest:
            raise ValueError(f"sample rate {self.sample_rate} Hz; give {lowest} … {highest}")


def loudness_target(text: str) -> float | None:
    """LUFS of a number, of a platform's name, or None of `off`."""
    if text == "off":
        return None
    if text in LOUDNESS:
        return LOUDNESS[text]
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"loudness {text!r}: give LUFS, off, or one of {', '.join(LOUDNESS)}") from None


@dataclass(frozen=True)
class Mix:
    """What ffmpeg is to read, and the filter graph over it whose end is still open."""

    inputs: list[str]
    filters: str
    sample_rate: int  # Hz, at the end of the filters
    sounds: tuple[Sound, ...] = ()  # whose files the inputs name: they go when nobody holds the sound

    def then(self, *filters: str) -> Mix:
        return replace(self, filters=",".join([self.filters, *filters]))


@dataclass(frozen=True)
class Measured:
    loudness: float  # LUFS, -70 for silence
    peak_db: float  # dBTP


def write_sound(sound: Sound, path: Path, mastering: Mastering, tags: Mapping[str, Any]) -> None:
    """Write a sound file of the kind that the suffix says. The name appears when the file is whole.

    tags: plain JSON that goes into the file's comment. Raises ValueError for a sample rate it cannot hold.
    """
    mastering = replace(mastering, sample_rate=file_rate(path, mastering, sound.sample_rate))
    mix = leveled(shaped(sound, mastering), mastering.loudness)
    comment = ["-metadata", f"comment={json.dumps(tags, ensure_ascii=False)}"]
    encode(mix.inputs, mix.filters, ["-map", "[out]", *comment, *_CODERS[path.suffix.lower()]], path)


def file_rate(path: Path, mastering: Mastering, composed: int) -> int:
    """The sample rate of a file, Hz. Raises ValueError where its kind cannot hold the wanted one."""
    known = _FIXED_RATES.get(path.suffix.lower())
    if mastering.sample_rate is None:
        return composed if known is None or composed in known else known[-1]
    if known is not None and mastering.sample_rate not in known:
        rates = ", ".join(map(str, known))
        raise ValueError(
            f"{path}: {path.suffix} holds {rates} Hz, not {mastering.sample_rate}; take .wav, .flac or .mkv"
        )
    return mastering.sample_rate


def shaped(sound: Sound, mastering: Mastering, number: int = 0) -> Mix:
    """The piece with its ending, at its sample rate, on its channels, exactly as long as composed.

    number: which of ffmpeg's inputs it is going to be.
    """
    rate = mastering.sample_rate or sound.sample_rate
    num_samples = round(sound.duration_s * rate)
    filters = [fade_out(sound, mastering.ending), f"aresample={rate}"]
    filters += [f"apad=whole_len={num_samples}", f"atrim=end_sample={num_samples}"]
    if mastering.stereo:
        filters.append("pan=stereo|c0=c0|c1=c0")
    return Mix(raw_input(sound), f"[{number}:a]" + ",".join(filters), rate, (sound,))


def raw_input(sound: Sound) -> list[str]:
    """ffmpeg's arguments that read the samples from their file."""
    return ["-f", "f32le", "-ar", str(sound.sample_rate), "-ac", "1", "-i", local_file(sound.path)]


def fade_out(sound: Sound, ending: Ending) -> str:
    """A filter: half a cosine down to silence, slow at first, so that the last bar is still heard."""
    wanted_s = min(_FADE_S, _FADE_SHARE * sound.duration_s) if ending == "fade" else _CLICK_S
    length = min(round(wanted_s * sound.sample_rate), sound.num_samples)
    return f"afade=t=out:ss={sound.num_samples - length}:ns={max(1, length)}:curve=hsin"


def leveled(mix: Mix, loudness: float | None) -> Mix:
    """The mix at a loudness, its true peak at most `CEILING_DB`; without one, only that."""
    measured = measure(mix)
    if loudness is None or measured.loudness <= SILENCE_LUFS:
        return mix.then(_gain(min(0.0, CEILING_DB - measured.peak_db)))
    gain_db = loudness - measured.loudness
    if measured.peak_db + gain_db <= CEILING_DB:
        return mix.then(_gain(gain_db))
    limit_db = CEILING_DB - _HEADROOM_DB
    for _ in range(_ROUNDS):
        limited = mix.then(_gain(gain_db), *_limiter(mix.sample_rate, limit_db))
        found = measure(limited)
        missing_lu, excess_db = loudness - found.loudness, max(0.0, found.peak_db - CEILING_DB)
        if abs(missing_lu) <= _TOLERANCE_LU and excess_db == 0:
            break
        gain_db, limit_db = gain_db + missing_lu, limit_db - excess_db
    return limited


def measure(mix: Mix) -> Measured:
    """Integrated loudness and true peak of a mix."""
    said = last_words(mix.inputs, mix.filters + ",ebur128=peak=true:framelog=quiet")
    loudness = re.search(r"I:\s+(\S+) LUFS", said)
    peak = re.search(r"Peak:\s+(\S+) dBFS", said)
    assert loudness is not None, f"ffmpeg's ebur128 summary has another form: {said}"
    assert peak is not None, f"ffmpeg's ebur128 summary has another form: {said}"
    return Measured(float(loudness[1]), float(peak[1]))


def _gain(gain_db: float) -> str:
    return f"volume={gain_db:.3f}dB:precision=float"


def _limiter(sample_rate: int, limit_db: float) -> list[str]:
    """Holds true peaks. `latency`: the sound stays where it is; `level`: it is not made louder afterwards."""
    limit = f"alimiter=limit={limit_db:.2f}dB:attack=5:release=50:level=0:latency=1"
    return [f"aresample={sample_rate * _OVERSAMPLING}", limit, f"aresample={sample_rate}"]
