"""GVMGen (arXiv 2501.09972): music for a video. Importing this package loads no torch.

>>> from gvmgen import GVMGen
>>> GVMGen.load().score("video.mp4").save("out.wav")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gvmgen.generate import Composer as GVMGen

__all__ = ["GVMGen"]


def __getattr__(name: str) -> Any:
    """`gvmgen.GVMGen`, loaded when it is first asked for."""
    if name == "GVMGen":
        from gvmgen.generate import Composer

        return Composer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
