"""What the evaluation model reads: one vector a second of video, one a second of music.

F video frames, P patches, D width, K codebooks, T code frames, C codec latent width, t whole seconds.

The publication reads 768 numbers of CLIP and 128 of music a second. We read what shards hold, so that no
encoder has to run: of each frame the class token, and mean and deviation of the patches (3 x 1024); of the
50 code frames of a second the codec's latents: mean, deviation, and mean step from one to the next, which
tells how much happens (3 x 128; pocket's widths are 3 x 192 and 3 x 64).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.presets import encoder_config
from gvmgen.runs import sync
from shards.reader import ShardSet
from shards.spec import CODE_RATE, Fingerprint, fingerprint_differences

CACHE_VERSION = "1"
MIN_SECONDS = 4  # a shorter segment has next to nothing to align


def video_seconds(features: Tensor) -> Tensor:
    """Features [F, P, D] of any float dtype -> float32 [F, 3 D]."""
    patches = features[:, 1:].float()
    return torch.cat([features[:, 0].float(), patches.mean(dim=1), patches.std(dim=1)], dim=-1)


def music_seconds(latents: Tensor) -> Tensor:
    """Codec latents [T, C] -> float32 [t, 3 C], t = T / 50 rounded down."""
    num_seconds = len(latents) // CODE_RATE
    x = latents[: num_seconds * CODE_RATE].float().unflatten(0, (num_seconds, CODE_RATE))  # [t, 50, C]
    return torch.cat([x.mean(dim=1), x.std(dim=1), x.diff(dim=1).abs().mean(dim=1)], dim=-1)


@dataclass(frozen=True)
class Pair:
    """One segment: as many seconds of video as of music."""

    key: str
    video: Tensor  # float32 [t, video_dim]
    music: Tensor  # float32 [t, music_dim]

    @property
    def num_seconds(self) -> int:
        return len(self.video)

    def with_music(self, music: Tensor) -> Pair:
        """This video beside other music, both cut to the shorter one."""
        shorter = min(len(self.video), len(music))
        return Pair(self.key, self.video[:shorter], music[:shorter])


def make_pair(key: str, video: Tensor, music: Tensor) -> Pair:
    """A pair of the seconds that both sides have."""
    return Pair(key, video, music).with_music(music)


def read_pairs(shards: ShardSet, codec: AudioCodec) -> Iterator[Pair]:
    """The pairs of a set of shards, in its order, without those shorter than MIN_SECONDS."""
    for index in range(len(shards)):
        sample = shards.read(index)
        codes = torch.from_numpy(sample.codes.astype(np.int64))
        music = music_seconds(codec.dequantise(codes[None])[0].cpu())
        pair = make_pair(sample.key, video_seconds(torch.from_numpy(sample.features)), music)
        if pair.num_seconds >= MIN_SECONDS:
            yield pair


def load_pairs(data: Path, split: str, preset: str, cache: Path) -> list[Pair]:
    """The pairs of a split of `data`/shards; made once, and kept in the folder `cache`.

    Raises ShardError where there are no shards, ValueError where the preset's encoders did not make them.
    """
    shards = ShardSet.open(data / "shards", split)
    file = cache / f"{split}.safetensors"
    kept = _read_cache(file, shards.plan_hash)
    if kept is None:
        codec = load_codec(preset, shards.fingerprint, f"{data / 'shards'}")
        pairs = tqdm(read_pairs(shards, codec), f"reading {split}", len(shards), unit="segment")
        _write_cache(file, shards.plan_hash, list(pairs))
        kept = _read_cache(file, shards.plan_hash)
        assert kept is not None, file
    return kept


def load_codec(preset: str, made_by: Fingerprint, where: str) -> AudioCodec:
    """The preset's codec. Raises ValueError where it is not the one that made the codes."""
    codec = AudioCodec.load(encoder_config(preset))
    differences = fingerprint_differences(made_by.get("audio", {}), codec.fingerprint)
    if differences:
        raise ValueError(
            f"{where}: its codes were made by another codec than --preset {preset} has: "
            f"{'; '.join(differences)}. Name the preset that made them"
        )
    return codec


def _write_cache(file: Path, plan_hash: str, pairs: Sequence[Pair]) -> None:
    tensors = {f"{pair.key}/video": pair.video.contiguous() for pair in pairs}
    tensors |= {f"{pair.key}/music": pair.music.contiguous() for pair in pairs}
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    keys = "\n".join(pair.key for pair in pairs)
    try:
        save_file(tensors, aside, {"version": CACHE_VERSION, "plan_hash": plan_hash, "keys": keys})
        sync(aside)
        aside.rename(file)
    except SafetensorError as error:
        raise OSError(f"{file}: cannot be written: {error}") from error
    finally:
        aside.unlink(missing_ok=True)


def _read_cache(file: Path, plan_hash: str) -> list[Pair] | None:
    """The pairs of a cache; None where there is none of this data."""
    try:
        with safe_open(file, framework="pt") as tensors:
            about = tensors.metadata() or {}
            if (about.get("version"), about.get("plan_hash")) != (CACHE_VERSION, plan_hash):
                return None
            return [
                Pair(key, tensors.get_tensor(f"{key}/video"), tensors.get_tensor(f"{key}/music"))
                for key in about["keys"].split("\n")
                if key
            ]
    except (FileNotFoundError, SafetensorError):
        return None
