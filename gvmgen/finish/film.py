"""Music into a film: the picture copied, the original sound dropped, kept or ducked, everything else kept.

ffmpeg counts from the file's first timestamp, as a player does, so music and picture share one zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from gvmgen.encoders.probe import is_cover, open_media, picture_stream
from gvmgen.encoders.process import PROTOCOLS, MediaError, local_file
from gvmgen.finish.ffmpeg import encode, try_encode
from gvmgen.finish.mastering import (
    SILENCE_LUFS,
    SOUND_SUFFIXES,
    Mastering,
    Mix,
    aac,
    file_rate,
    leveled,
    measure,
    shaped,
)
from gvmgen.finish.sound import Sound

Original = Literal["drop", "keep", "duck"]

SAMPLE_RATE = 48_000  # Hz; what films have
KEEP_LU = -8.0  # loudness of the music beside a sound that is kept: a bed
DUCK_LU = -3.0  # the same where the music makes room for speech by itself

_FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}
FILM_SUFFIXES = tuple(_FORMATS)
KNOWN_SUFFIXES = (*SOUND_SUFFIXES, *FILM_SUFFIXES)
_LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}  # by channels
_TEXT = {"subrip", "ass", "ssa", "mov_text", "webvtt", "text"}  # subtitles that are text, not pictures


@dataclass(frozen=True)
class Streams:
    """What of a video goes into a film beside the music."""

    video_codec: str
    layouts: list[str]  # channel layout of each sound track
    num_channels: int  # of the first sound track; 0 where there is none
    sound_tags: dict[str, str]  # of the first sound track
    subtitles: list[str]  # codec of each subtitle track
    comment: str
    has_cover: bool  # a still picture that players show as the file's face


def write_film(
    video: Path,
    music: Sound,
    path: Path,
    mastering: Mastering,
    *,
    original: Original = "drop",
    start_s: float = 0.0,
    tags: Mapping[str, Any],
) -> None:
    """Write `video` with music from `start_s` on. The name appears when the file is whole.

    original: what becomes of the video's first sound track. Its other tracks are kept unless it is dropped;
    subtitles and chapters always. Raises MissingExtraError where `duck` needs a speech detector.
    """
    streams = read_streams(video)
    mastering = replace(mastering, sample_rate=file_rate(path, mastering, SAMPLE_RATE))
    inputs = _video_input(video)
    if original == "drop" or not streams.layouts:
        mix = _alone(inputs, music, mastering, start_s)
    else:
        mix = _together(video, inputs, streams, music, mastering, original, start_s)
    mix = leveled(mix, mastering.loudness)
    encode(mix.inputs, mix.filters, _outputs(streams, path, original, tags), path)


def check_output(path: Path, video: Path, original: Original) -> None:
    """Raise ValueError where no music can be written there: over the video, or as no kind that is known."""
    if path.suffix.lower() not in KNOWN_SUFFIXES:
        raise ValueError(f"{path}: unknown kind of file; known: {', '.join(KNOWN_SUFFIXES)}")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name a file")
    if path.exists() and video.exists() and path.samefile(video):
        raise ValueError(f"{path}: is the video itself; name another file")
    if original not in get_args(Original):
        raise ValueError(f"original {original!r} is unknown; known: {', '.join(get_args(Original))}")
    if original != "drop" and path.suffix.lower() in SOUND_SUFFIXES:
        films = ", ".join(FILM_SUFFIXES)
        raise ValueError(f"{path}: holds the music alone; --original {original} needs a film: {films}")


def check_film(video: Path, path: Path, original: Original) -> None:
    """Raise MediaError where the film's kind of file cannot hold what the video holds.

    It writes the film's first moments: better to know before an hour of music is composed.
    """
    check_output(path, video, original)
    streams = read_streams(video)
    for codec in streams.subtitles:
        if codec not in _TEXT and path.suffix.lower() != ".mkv":
            raise MediaError(f"{path}: {path.suffix} cannot hold {codec} subtitles; take .mkv")
    layout = streams.layouts[0] if original != "drop" and streams.layouts else "mono"
    inputs = [*_video_input(video), "-f", "lavfi", "-i", f"anullsrc=cl={layout}:r={SAMPLE_RATE}"]
    outputs = [*_outputs(streams, path, original, {}), "-t", "0.2"]
    try:
        try_encode(inputs, "[1:a]anull", outputs, path)
    except MediaError as error:
        raise MediaError(f"{path}: cannot hold {video}'s streams; take .mkv ({error})") from error


def left_out(video: Path, path: Path) -> list[str]:
    """What a film of this kind does not get of the video, a line each."""
    if path.suffix.lower() == ".mov" and read_streams(video).has_cover:
        return [f"{path}: .mov holds no cover picture, so that of {video} is left out; .mp4 keeps it"]
    return []


def read_streams(video: Path) -> Streams:
    with open_media(video) as container:
        tracks = container.streams
        return Streams(
            video_codec=picture_stream(container).codec_context.name,
            layouts=[_layout(sound.codec_context) for sound in tracks.audio],
            num_channels=tracks.audio[0].codec_context.channels if tracks.audio else 0,
            sound_tags=dict(tracks.audio[0].metadata) if tracks.audio else {},
            subtitles=[subtitle.codec_context.name for subtitle in tracks.subtitles],
            has_cover=any(is_cover(stream) for stream in tracks.video),
            comment=next((text for key, text in container.metadata.items() if key.lower() == "comment"), ""),
        )


def _layout(sound: Any) -> str:
    """A track's channel layout; where the file only counts channels, ffmpeg's own for so many."""
    name = str(sound.layout.name)
    return _LAYOUTS.get(sound.channels, name) if name.endswith(" channels") else name


def _video_input(video: Path) -> list[str]:
    return ["-protocol_whitelist", PROTOCOLS, "-i", local_file(video)]


def _alone(inputs: list[str], music: Sound, mastering: Mastering, start_s: float) -> Mix:
    """The music as the only sound, from `start_s` on."""
    mix = shaped(music, mastering, number=1)
    return replace(mix, inputs=[*inputs, *mix.inputs]).then(_later(start_s, mix.sample_rate))


def _together(
    video: Path,
    inputs: list[str],
    streams: Streams,
    music: Sound,
    mastering: Mastering,
    original: Original,
    start_s: float,
) -> Mix:
    """The original sound as it is, the music beside it at a loudness relative to it."""
    layout = streams.layouts[0]
    rate = mastering.sample_rate or SAMPLE_RATE
    own = Mix(inputs, f"[0:a:0]aresample={rate}:async=1:first_pts=0", rate)  # silent before a late start
    own_lufs = measure(own).loudness
    if original == "duck":
        from gvmgen.finish.speech import ducked, speech_spans

        music = ducked(music, speech_spans(video), start_s)
    alone = replace(mastering, stereo=layout != "mono")
    score = shaped(music, alone, number=1)
    gain_lu = 0.0
    if own_lufs > SILENCE_LUFS:
        wanted = own_lufs + (DUCK_LU if original == "duck" else KEEP_LU)
        gain_lu = wanted - measure(shaped(music, alone)).loudness
    score = score.then(f"volume={gain_lu:.2f}dB:precision=float", _later(start_s, score.sample_rate))
    same = f"aformat=channel_layouts={layout}"
    filters = f"{own.then(same).filters}[own];{score.then(same).filters}[score];[own][score]amix=normalize=0"
    return Mix([*inputs, *score.inputs], filters, score.sample_rate, score.sounds)


def _later(start_s: float, sample_rate: int) -> str:
    return f"adelay=delays={round(start_s * sample_rate)}S:all=1"


def _outputs(streams: Streams, path: Path, original: Original, tags: Mapping[str, Any]) -> list[str]:
    """ffmpeg's arguments for all that goes into the film; its first sound stands at the graph's end."""
    container = _FORMATS[path.suffix.lower()]
    comment = "\n".join(text for text in (streams.comment, json.dumps(tags, ensure_ascii=False)) if text)
    return [
        *["-map", "0:v", "-c:v", "copy"],
        *_sounds(streams, container, original),
        *_subtitles(streams, container),
        *(["-map", "0:t?"] if container == "matroska" else ["-movflags", "+faststart"]),  # fonts
        *(["-tag:V", "hvc1"] if streams.video_codec == "hevc" and container != "matroska" else []),
        *["-map_metadata", "0", "-map_chapters", "0", "-metadata", f"comment={comment}", "-f", container],
    ]


def _sounds(streams: Streams, container: str, original: Original) -> list[str]:
    """The mix, then the tracks beside the original one."""
    is_mixed = original != "drop" and bool(streams.layouts)
    # Matroska cannot say where AAC's padding ends
    coder = ["flac"] if container == "matroska" else aac(streams.num_channels if is_mixed else 1)
    arguments = ["-map", "[out]", "-c:a:0", *coder, "-disposition:a:0", "default"]
    if not is_mixed:
        return arguments
    for number in range(1, len(streams.layouts)):
        arguments += ["-map", f"0:a:{number}", f"-c:a:{number}", "copy", f"-disposition:a:{number}", "0"]
    for name in ("language", "title"):
        if name in streams.sound_tags:
            arguments += ["-metadata:s:a:0", f"{name}={streams.sound_tags[name]}"]
    return arguments


def _subtitles(streams: Streams, container: str) -> list[str]:
    """Every subtitle track, in the container's own form of text where it cannot hold the video's."""
    arguments = []
    for number, codec in enumerate(streams.subtitles):
        own = "mov_text" if container != "matroska" else "srt" if codec == "mov_text" else "copy"
        arguments += ["-map", f"0:s:{number}", f"-c:s:{number}", own]
    return arguments
