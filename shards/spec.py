"""Every number the data fixes. The encoder writes them, the trainer relies on them.

Dimensions: F video frames, P patches, D feature width, K codebooks, T code frames.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shards.remote import Folder

SPEC_VERSION = 1

SAMPLE_RATE = 32_000  # Hz, mono waveform; EnCodec 32 kHz
CODE_RATE = 50  # Hz; EnCodec's stride of 640 samples
FRAME_RATE = 1  # Hz; the publication samples one frame a second
NUM_CODEBOOKS = 4
CODEBOOK_SIZE = 2048
NUM_PATCHES = 577  # (336 / 14)^2 patches and the class token

FEATURES = "features.npy"  # float16 [F, P, D]; int8 where the commit record holds a feature codec
CODES = "codes.npy"  # int16 [K, T]
META = "meta.json"
FIELDS = (FEATURES, CODES, META)

# A dot would split the key in a WebDataset reader; a plain tar header holds a name of 100 bytes.
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")

Fingerprint = Mapping[str, Any]  # plain JSON: what made the data; see gvmgen.encoders


class ShardError(ValueError):
    """A shard, a commit record or a sample breaks the contract. Says which, where, and what to run."""


class ShardBusyError(ShardError):
    """Another live process is writing this shard."""


@dataclass(frozen=True)
class Sample:
    """One segment of a source video, encoded."""

    key: str
    features: np.ndarray  # float16 [F, P, D]
    codes: np.ndarray  # int16 [K, T]
    meta: dict[str, Any] = field(default_factory=dict)  # the manifest row, frame times in seconds


def tar_path(directory: Folder, shard: int) -> Folder:
    """`000042.tar`; its commit record and failures lie beside it."""
    if not 0 <= shard <= 999_999:
        raise ShardError(f"shard {shard}: a shard number lies in 0 … 999999")
    return directory / f"{shard:06d}.tar"


def record_path(directory: Folder, shard: int) -> Folder:
    return tar_path(directory, shard).with_suffix(".json")


def failures_path(directory: Folder, shard: int) -> Folder:
    return tar_path(directory, shard).with_suffix(".failures.jsonl")


def num_frames(duration_s: float) -> int:
    """Frames of a segment: one at 0 s, 1 s, 2 s … before its end."""
    return max(1, int(np.ceil(round(duration_s * FRAME_RATE, 6))))


def num_code_frames(duration_s: float) -> int:
    """Code frames that cover a segment: its samples over EnCodec's stride, rounded up."""
    num_samples = round(duration_s * SAMPLE_RATE)
    stride = SAMPLE_RATE // CODE_RATE
    return max(1, -(-num_samples // stride))


def check_sample(sample: Sample, where: str) -> None:
    """Raise ShardError unless the sample keeps the contract. `where` opens the message."""

    def refuse(what: str) -> None:
        raise ShardError(f"{where}: sample {sample.key}: {what}")

    if not KEY_PATTERN.fullmatch(sample.key):
        refuse("a key is 1 to 80 letters, digits, '_' and '-'")
    features, codes = sample.features, sample.codes
    if features.dtype != np.float16 or features.ndim != 3 or features.shape[1] != NUM_PATCHES:
        refuse(
            f"{FEATURES} is {features.dtype} {features.shape}, "
            f"spec {SPEC_VERSION} wants float16 (F, {NUM_PATCHES}, D)"
        )
    if codes.dtype != np.int16 or codes.ndim != 2 or codes.shape[0] != NUM_CODEBOOKS:
        refuse(
            f"{CODES} is {codes.dtype} {codes.shape}, spec {SPEC_VERSION} wants int16 ({NUM_CODEBOOKS}, T)"
        )
    if "duration_s" in sample.meta:
        duration_s = sample.meta["duration_s"]
        wanted = (num_frames(duration_s), num_code_frames(duration_s))
        if (features.shape[0], codes.shape[1]) != wanted:
            refuse(
                f"holds {features.shape[0]} frames and {codes.shape[1]} code frames, "
                f"spec {SPEC_VERSION} wants {wanted[0]} and {wanted[1]} for {duration_s} s"
            )
    if not _all_finite(features):
        refuse(f"{FEATURES} holds values that are not finite")
    if codes.size and (codes.min() < 0 or codes.max() >= CODEBOOK_SIZE):
        refuse(f"{CODES} holds ids outside 0 … {CODEBOOK_SIZE - 1}")


def _all_finite(features: np.ndarray) -> bool:
    """Whether no float16 is infinite or NaN: all exponent bits set. Ten times np.isfinite's pace on 35 MB."""
    exponent = np.uint16(0x7C00)
    return not any(((frame.view(np.uint16) & exponent) == exponent).any() for frame in features)


def fingerprint_differences(found: Fingerprint, wanted: Fingerprint, prefix: str = "") -> list[str]:
    """What differs between two fingerprints, one `name: found … wanted …` an entry, nested names dotted."""
    differences = []
    for name in sorted(set(found) | set(wanted)):
        a, b = found.get(name), wanted.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            differences += fingerprint_differences(a, b, f"{prefix}{name}.")
        elif a != b:
            differences.append(f"{prefix}{name}: found {a!r}, wanted {b!r}")
    return differences
