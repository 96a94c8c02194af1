"""A video file in, a music file out: picture encoder, network and codec in a row.

B batch, F video frames, P patches, D width, K codebooks, T code frames, N waveform samples.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from gvmgen.checkpoint import ModelInfo, load_model, weights_file
from gvmgen.decoding import SamplingConfig, check_follow
from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.fingerprint import encoder_fingerprint
from gvmgen.encoders.media import read_frames, read_waveform
from gvmgen.encoders.presets import encoder_config
from gvmgen.encoders.probe import probe
from gvmgen.encoders.video import VideoEncoder
from gvmgen.fast.choice import Engines, choose_engines
from gvmgen.finish.film import Original, check_output, write_film
from gvmgen.finish.mastering import SOUND_SUFFIXES, Mastering, write_sound
from gvmgen.finish.sound import Sound
from gvmgen.machine import check_device
from gvmgen.model import GVMGen
from gvmgen.part import SHORTEST_S, part_duration
from gvmgen.resuming import Unkept, file_digest
from gvmgen.runs import find_model
from gvmgen.windows import CARRIED_S, UNKEPT, Progress, compose, no_lead, planned, play, silent
from shards.spec import (
    CODE_RATE,
    FRAME_RATE,
    SAMPLE_RATE,
    fingerprint_differences,
    num_code_frames,
    num_frames,
)

FRAMES_AT_ONCE = 8
FRAMES_KEPT = 64  # are kept together, where work is kept
MAX_SEED = 2**32 - 1
GOING_ON = {"guidance": 4.0, "follow": 0.5}  # at most: pocket's own 8 and 1.5 drown the key of music before

Look = Callable[[Tensor], Tensor]  # features [F, P, D] -> what somebody wants to know of them [F, D']


@dataclass(frozen=True, eq=False)
class Music:
    """A composed piece, exactly as long as its video or the part of it that was scored."""

    sound: Sound  # mono, as the codec gives it; it may exceed -1 … 1
    video: Path
    start_s: float  # where in the video it begins
    seed: int
    model: str  # which model composed it
    compose_s: float  # seconds it took; for several takes, all of them together
    tags: Mapping[str, Any]  # model, its licence, seed and settings, as they go into the file
    codes: Tensor | None = None  # int64 [K, T]; what the sound was decoded from
    seen: Tensor | None = None  # [F, D']; what was to be known of the video's frames

    @property
    def waveform(self) -> np.ndarray:
        """float32 [N], mono, on disk: an hour takes no memory until it is touched."""
        return self.sound.samples

    @property
    def sample_rate(self) -> int:
        return self.sound.sample_rate

    @property
    def duration_s(self) -> float:
        return self.sound.duration_s

    def save(self, path: str | Path, mastering: Mastering | None = None, original: Original = "drop") -> Path:
        """Write a sound file, or the video with this music, as the suffix says; the picture is copied.

        mastering: ending, loudness, sample rate, stereo; by default faded out, at -14 LUFS.
        original: what becomes of the video's own sound in a film: drop, keep, or duck the music under speech.
        Raises ValueError for the video itself as the path, and for kinds of files that are not known.
        """
        path, mastering = Path(path), mastering or Mastering()
        check_output(path, self.video, original)
        if path.suffix.lower() in SOUND_SUFFIXES:
            write_sound(self.sound, path, mastering, self.tags)
        else:
            write_film(
                self.video,
                self.sound,
                path,
                mastering,
                original=original,
                start_s=self.start_s,
                tags=self.tags,
            )
        return path


class Composer:
    """A model and the encoders it was trained with. `gvmgen.GVMGen` is this class.

    >>> GVMGen.load().score("video.mp4").save("out.wav")
    """

    def __init__(
        self,
        model: GVMGen,
        info: ModelInfo,
        video: VideoEncoder,
        codec: AudioCodec,
        engines: Engines,
        name: str,
        weights: Path | None = None,
    ) -> None:
        """weights: the network's file; None where it comes from none."""
        self.model, self.info, self.video, self.codec = model, info, video, codec
        self.engines, self.name, self.weights = engines, name, weights

    @classmethod
    def load(
        cls,
        model: str | None = None,
        *,
        preset: str | None = None,
        runs: str = "runs",
        device: str | None = None,
        precision: str = "auto",
    ) -> Self:
        """Load `model`, else the newest checkpoint in `runs`, else the model in the box.

        precision: of the decoding, as `choose_engines` takes it.
        Raises ValueError where there is none, where `preset` is another than the model's, and where this
        machine's encoders differ from those that the model was trained with; MissingWeightsError where they
        cannot be had.
        """
        folder = find_model(model, Path(runs), preset)
        device = device or best_device()
        check_device(device)
        network, info = load_model(folder, device)
        if device == "cpu":  # few processors multiply float16: the others take eight times as long
            for part in filter(None, (network.transformation, network.frame_codes)):
                part.float()
        if preset is not None and info.preset != preset:
            raise ValueError(
                f"{folder} is of preset {info.preset}, not {preset}. Leave out --preset {preset}"
            )
        encoders = encoder_config(info.preset)
        if info.codec is not None:
            encoders = replace(encoders, codec=info.codec)
        composer = cls(
            network.eval(),
            info,
            VideoEncoder.load(encoders, device, _feature_dtype(info)),
            AudioCodec.load(encoders, device),
            choose_engines(network, precision),
            f"{folder} (step {info.step})",
            weights_file(folder),
        )
        composer.check_encoders()
        return composer

    def warnings(self) -> list[str]:
        """What a user of this model must know before using its music."""
        lines = []
        if not self.info.trained:
            lines.append("this model is untrained: its music is noise. Train one: gvm-train")
        if "NC" in self.info.licence:
            lines.append(f"not for commercial use: the licence of the model's weights is {self.info.licence}")
        return lines

    @cached_property
    def encoders(self) -> dict[str, Any]:
        """The fingerprint of picture encoder and codec."""
        return encoder_fingerprint(self.video, self.codec)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What, with a piece's own settings, its codes depend on.

        Not in it: the processor and the threads of the picture encoder, which may change features' last bits.
        """
        return {
            "weights": None if self.weights is None else file_digest(self.weights),
            "encoders": self.encoders,
            "device": str(self.model.decoder.heads.weight.device),
            "decoded_in": self.engines.description,
            "window": [self.model.config.window_s, self.model.config.anchor_s, CARRIED_S],
            "program": f"gvmgen {version('gvmgen')}, torch {torch.__version__}",
        }

    def check_encoders(self) -> None:
        """Raise ValueError where the encoders differ from those that the model was trained with."""
        if self.info.encoder_fingerprint is None:  # weights of others do not say
            return
        here = self.encoders
        # How features lay in the shards is no matter here: int8 was made of what these encoders make.
        trained = {name: part for name, part in self.info.encoder_fingerprint.items() if name in here}
        differences = fingerprint_differences(here, trained)
        if differences:
            raise ValueError(
                f"{self.name} was trained with other encoders: {'; '.join(differences)}. "
                "Use the weights it was trained with, or train anew on shards made with these"
            )

    def score(
        self,
        video: str | Path,
        *,
        seed: int = 0,
        start_s: float = 0.0,
        duration_s: float | None = None,
        preview_s: float | None = None,
        sampling: SamplingConfig | None = None,
        continue_from: str | Path | None = None,
        progress: Progress = silent,
    ) -> Music:
        """Compose music exactly as long as a video, or as the part of it from `start_s` for `duration_s`.

        preview_s: compose only the first seconds of that same music. The same seed gives the same music.
        continue_from: music, or a film with it, whose end the new music goes on from.
        An exception that `progress` raises ends the work.
        Raises MediaError where the file cannot be read as a video, ValueError for a part it does not have.
        """
        return self.takes(
            video,
            1,
            seed=seed,
            start_s=start_s,
            duration_s=duration_s,
            preview_s=preview_s,
            sampling=sampling,
            continue_from=continue_from,
            progress=progress,
        )[0]

    @torch.inference_mode()
    def takes(
        self,
        video: str | Path,
        count: int,
        *,
        seed: int = 0,
        start_s: float = 0.0,
        duration_s: float | None = None,
        preview_s: float | None = None,
        sampling: SamplingConfig | None = None,
        continue_from: str | Path | None = None,
        look: Look | None = None,
        kept: Unkept = UNKEPT,
        progress: Progress = silent,
    ) -> list[Music]:
        """Several pieces for one video, of the seeds `seed`, `seed` + 1 …, composed side by side.

        Each is the piece that `score` gives for its seed. Arguments and errors as `score`.
        look: what is to be known of the frames' features besides; it becomes `Music.seen`.
        kept: where frames and windows that are done are kept, to go on from.
        """
        seeds = _seeds(seed, count)
        started = time.perf_counter()
        path, sampling = Path(video), sampling or self.sampling(goes_on=continue_from is not None)
        check_follow(self.model, sampling)
        duration_s = part_duration(path, start_s, duration_s)
        if preview_s is not None and not preview_s >= SHORTEST_S:
            raise ValueError(f"a preview of {preview_s:g} s; give {SHORTEST_S:g} s or more")
        heard_s = duration_s if preview_s is None else min(preview_s, duration_s)
        lead = no_lead(self.model) if continue_from is None else self._end_of(Path(continue_from))
        lead_s, config = lead.shape[1] // CODE_RATE, self.model.config
        whole, heard = (lead.shape[1] + num_code_frames(each) for each in (duration_s, heard_s))
        plan = planned(whole, config.window_s, heard, config.anchor_s)
        seen_s = min(duration_s, plan[-1].frames_and_next.stop / FRAME_RATE - lead_s)
        watched = self._watch(path, start_s, seen_s, look, kept, progress)
        with self.engines.at_work():
            codes = compose(
                self.model,
                after_first(watched["conditions"], lead_s * FRAME_RATE),
                plan,
                sampling,
                seeds,
                progress,
                self.engines.make,
                kept,
                lead,
                after_first(watched["glimpses"], lead_s * FRAME_RATE) if "glimpses" in watched else None,
                self.engines.num_groups,
            )
        sounds = play(self.codec, codes, round(heard_s * SAMPLE_RATE), progress, lead.shape[1])
        codes = codes[:, :, lead.shape[1] :]
        compose_s = time.perf_counter() - started
        origin = {} if continue_from is None else {"continues": Path(continue_from).name}
        return [
            Music(
                sound,
                path,
                start_s,
                seed,
                self.name,
                compose_s,
                self._tags(seed, sampling) | origin,
                row,
                watched.get("seen"),
            )
            for seed, sound, row in zip(seeds, sounds, codes, strict=True)
        ]

    def sampling(self, *, goes_on: bool = False, **chosen: Any) -> SamplingConfig:
        """What these weights do best with, but for what is chosen.

        goes_on: from other music (`continue_from`), whose key a picture that pulls harder would drown.
        """
        own = SamplingConfig(**self.info.sampling)
        if goes_on:
            own = replace(own, **{name: min(getattr(own, name), most) for name, most in GOING_ON.items()})
        return replace(own, **chosen)

    def _end_of(self, music: Path) -> Tensor:
        """Codes int64 [K, T'] of the last whole seconds, at most a third of a window."""
        end_s = probe(music, needs_picture=False).audio_end_s
        num_seconds = min(self.model.config.window_s // 3, int(end_s))
        if num_seconds < 1:
            raise ValueError(
                f"{music}: holds {end_s:.2f} s of sound; music to go on from takes a second or more"
            )
        waveform = read_waveform(music, end_s - num_seconds, num_seconds)
        return self.codec.encode(torch.from_numpy(waveform)[None])[0].cpu()

    def _tags(self, seed: int, sampling: SamplingConfig) -> dict[str, Any]:
        """What a file says of its music's origin."""
        return {
            "music": f"gvmgen {version('gvmgen')}",
            "model": f"{self.info.preset}, step {self.info.step}",  # not its folder: files travel
            "weights_licence": self.info.licence or "not known",
            "seed": seed,
            "settings": asdict(sampling) | {"decoded_in": self.engines.description},
        }

    def _watch(
        self,
        path: Path,
        start_s: float,
        duration_s: float,
        look: Look | None,
        kept: Unkept,
        progress: Progress,
    ) -> dict[str, Tensor]:
        """Of the video's frames: `conditions` [F, M, dim], `glimpses` [F, 2 D] where the network has
        `frame_codes`, and what `look` makes of them, `seen` [F, D'].

        M a frame: 1, or Q where the queries are preserved. What is made of a frame depends on no other
        than the one before it, so a long video passes through in small batches.
        """
        total = num_frames(duration_s)
        frames = enumerate(read_frames(path, start_s, duration_s))
        parts: list[dict[str, Tensor]] = []
        progress("watching", 0, total)
        for first in range(0, total, FRAMES_KEPT):
            last = min(first + FRAMES_KEPT, total)

            def advance(done: int, first: int = first) -> None:
                progress("watching", first + done, total)

            before = parts[-1]["last"][None] if parts else None
            make = partial(self._see, frames, first, last, before, look, advance)
            name = "frames" if look is None else "frames_looked_at"
            parts.append(kept.once(f"{name}_{first:06d}", make))
            advance(last - first)
        device = self.model.decoder.heads.weight.device
        names = parts[0].keys() - {"last"}
        return {name: torch.cat([part[name] for part in parts]).to(device) for name in names}

    def _see(
        self,
        frames: Iterator[tuple[int, np.ndarray]],
        first: int,
        last: int,
        before: Tensor | None,
        look: Look | None,
        advance: Callable[[int], None],
    ) -> dict[str, Tensor]:
        """Frames `first` to `last` as `_watch` gives them, and the features of the last.

        frames: passed over up to `first`.
        before: features [1, 1, P, D] of the frame before the first; None: there is none.
        """
        wanted = itertools.islice((frame for number, frame in frames if number >= first), last - first)
        found: dict[str, list[Tensor]] = defaultdict(list)
        frame_codes = self.model.frame_codes
        while batch := list(itertools.islice(wanted, FRAMES_AT_ONCE)):
            pixels = torch.stack([self.video.preprocess(frame) for frame in batch])  # [F, 3, H, W]
            features = self.video.encode(pixels)  # [F, P, D]
            made = self.model.conditions(features[None], before)  # [1, F * M, dim]
            found["conditions"].append(made.unflatten(1, (len(batch), -1))[0])
            if frame_codes is not None:
                found["glimpses"].append(frame_codes.glimpses(features[None], before)[0])
            if look is not None:
                found["seen"].append(look(features))
            before = features[None, -1:]
            advance(sum(map(len, found["conditions"])))
        return {name: torch.cat(parts) for name, parts in found.items()} | {"last": features[-1:]}


def after_first(frames: Tensor, count: int) -> Tensor:
    """[F, ...] after `count` more of the first.

    What went before the video was for a picture that is not known: the video's first one stands for it.
    """
    return torch.cat([frames[:1].expand(count, *frames.shape[1:]), frames])


def _seeds(first: int, count: int) -> range:
    if count < 1:
        raise ValueError(f"{count} takes; give 1 or more")
    if not 0 <= first <= MAX_SEED - (count - 1):
        raise ValueError(f"seed {first} is outside 0 … {MAX_SEED - (count - 1)}")
    return range(first, first + count)


def _feature_dtype(info: ModelInfo) -> torch.dtype | None:
    """What the picture encoder computed in when the model was trained; None where that is not known."""
    if info.encoder_fingerprint is None:
        return None
    dtype = getattr(torch, info.encoder_fingerprint["video"]["dtype"])
    assert isinstance(dtype, torch.dtype)
    return dtype


def best_device() -> str:
    """CUDA where there is one, else the CPU. Apple's MPS lacks operators that the codec needs."""
    return "cuda" if torch.cuda.is_available() else "cpu"
