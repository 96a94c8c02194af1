"""What identifies frozen weights, whatever file format they came in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from gvmgen.encoders.audio import AudioCodec
    from gvmgen.encoders.video import VideoEncoder


def encoder_fingerprint(video: VideoEncoder, audio: AudioCodec) -> dict[str, Any]:
    """Plain JSON that names all that shapes the data: goes into commit records and checkpoints."""
    return {"video": video.fingerprint, "audio": audio.fingerprint}


def weights_sha256(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, shapes and float32 values, in the order of the names.

    Of the values, not of a file: the same weights in another format have the same hash.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
