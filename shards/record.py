"""The commit record of a shard: what makes it exist, what made it, where each field of each sample lies."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from shards.feature_codec import Int8Codec
from shards.remote import RemotePath
from shards.spec import CODES, FEATURES, SPEC_VERSION, Fingerprint, ShardError


@dataclass(frozen=True)
class FieldRecord:
    """Where one field of a sample lies in the tar, and what it is."""

    offset: int  # bytes from the start of the tar to the field's first byte
    size: int  # bytes
    crc32: int
    dtype: str | None = None  # None: JSON, not an array
    shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one step along the array's first axis."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape[1:])

    @property
    def array_offset(self) -> int:
        """Where the array's own bytes begin: an `.npy` file is a header, then the array."""
        return self.offset + self.size - self.row_bytes * self.shape[0]


@dataclass(frozen=True)
class SampleRecord:
    key: str
    split: str  # train or test
    duration_s: float
    fields: Mapping[str, FieldRecord]  # by name: features.npy, codes.npy, meta.json

    @property
    def num_frames(self) -> int:
        return self.fields[FEATURES].shape[0]

    @property
    def num_code_frames(self) -> int:
        return self.fields[CODES].shape[1]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        fields = {
            name: FieldRecord(**{**field, "shape": tuple(field["shape"])})
            for name, field in values["fields"].items()
        }
        return cls(**{**values, "fields": fields})


@dataclass(frozen=True)
class ShardRecord:
    """Written last, so a tar without its record does not exist for any reader."""

    spec_version: int
    shard: int
    plan_hash: str
    fingerprint: Fingerprint
    tar_bytes: int
    tar_sha256: str
    samples: tuple[SampleRecord, ...]  # in the tar's order
    left_out: tuple[dict[str, Any], ...] = ()  # planned segments that could not be encoded, and why
    feature_codec: Int8Codec | None = None  # None: features lie as float16
    num_saturated: int = 0  # values that the codec met beyond its calibrated range

    def to_json(self) -> dict[str, Any]:
        body = asdict(self)
        if self.feature_codec is None:
            del body["feature_codec"], body["num_saturated"]
        return body

    def to_bytes(self) -> bytes:
        """The record as it lies on disk: one canonical JSON object that carries its own checksum."""
        body = self.to_json()
        return canonical_json({**body, "record_sha256": _sha256(canonical_json(body))}) + b"\n"

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record. Raises FileNotFoundError, or ShardError where it is damaged or of another spec."""
        text = path.read_bytes()
        try:
            body = json.loads(text)
            stated = body.pop("record_sha256")
            intact = stated == _sha256(canonical_json(body))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ShardError(f"{path}: not a commit record ({error}). {_REPAIR}") from error
        if not intact:
            raise ShardError(f"{path}: the commit record is damaged: its own checksum differs. {_REPAIR}")
        if body["spec_version"] != SPEC_VERSION:
            raise ShardError(
                f"{path}: written to spec {body['spec_version']}, this program reads spec {SPEC_VERSION}. "
                f"{_REPAIR}"
            )
        samples = tuple(SampleRecord.from_json(sample) for sample in body.pop("samples"))
        if "feature_codec" in body:
            body["feature_codec"] = Int8Codec(tuple(body["feature_codec"]["scales"]))
        record = cls(**{**body, "samples": samples, "left_out": tuple(body["left_out"])})
        record._check_codec(path)
        return record

    def _check_codec(self, path: Path) -> None:
        codec = self.feature_codec
        for sample in self.samples:
            field = sample.fields[FEATURES]
            wanted = ("float16", field.shape[-1]) if codec is None else ("int8", len(codec.scales))
            if (field.dtype, field.shape[-1]) != wanted:
                raise ShardError(
                    f"{path}: sample {sample.key}: {FEATURES} is {field.dtype} of width {field.shape[-1]}, "
                    f"its codec wants {wanted[0]} of width {wanted[1]}. {remedy(path)}"
                )


def canonical_json(value: object) -> bytes:
    """One text for one value: sorted names, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


_REPAIR = "Run: gvm-prep repair"  # what needs the record, `encode --force` too, stops at it


def remedy(path: Path | RemotePath) -> str:
    """The command that remakes the shard a tar or record belongs to."""
    return f"Run: gvm-prep encode --shards {int(path.stem)} --force"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
