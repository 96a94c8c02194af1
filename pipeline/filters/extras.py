"""Packages that only some filters need."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

HOW_TO_INSTALL = "Run: pip install 'gvmgen[filters]'"


class MissingExtraError(ValueError):
    """A filter needs a package that is not installed. Names the command that installs it."""


def needed(module: str) -> ModuleType:
    """The module, or MissingExtraError."""
    if not is_there(module):
        raise MissingExtraError(f"needs {module}. {HOW_TO_INSTALL}")
    return importlib.import_module(module)


def is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
