"""Packages that only some filters need."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


class MissingExtraError(ValueError):
    """A filter needs a package that is not installed. Names the command that installs it."""


def needed(module: str, extra: str) -> ModuleType:
    """The module, or MissingExtraError."""
    if not is_there(module):
        raise MissingExtraError(f"needs {module}. Run: pip install 'gvmgen[{extra}]'")
    return importlib.import_module(module)


def is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
