"""Packages that only scoring needs: `pip install 'gvmgen[eval]'`, and `gvmgen[midi]` for MIDI files."""

from __future__ import annotations

import importlib
from typing import Any

_EXTRA_OF = {
    "librosa": "eval",
    "pyloudnorm": "eval",
    "scipy": "eval",
    "symusic": "midi",
}


class MissingExtraError(ValueError):
    """A package that this command needs is not installed. Names the command that installs it."""


def needed(module: str) -> Any:
    """The module, submodules too. Raises MissingExtraError where its package is not installed."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtraError(
            f"needs {package}. Run: pip install 'gvmgen[{_EXTRA_OF[package]}]'"
        ) from error
