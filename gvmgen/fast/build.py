"""Compiles decoder.cpp once for this processor and keeps the library on disk. No torch."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

SOURCE = Path(__file__).with_name("decoder.cpp")
HEADER = Path(__file__).with_name("precision.h")
FLAGS = ["-O3", "-march=native", "-std=c++17", "-Wno-psabi", "-pthread", "-shared", "-fPIC"]
COMPILE_TIMEOUT_S = 300
_BUILDING = threading.Lock()


class BuildError(RuntimeError):
    """The library cannot be had here. Says why; the plain PyTorch path is the way on."""


def begin() -> None:
    """Start to compile what `library` will ask for, if it must be, while this process goes on."""

    def build() -> None:
        with contextlib.suppress(BuildError):  # `library` says it to those who need it
            library()

    threading.Thread(target=build).start()


def library() -> ctypes.CDLL:
    """The compiled decoder; a machine's first call compiles it, for some seconds. Raises BuildError."""
    with _BUILDING:
        return _library()


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError("no C++ compiler: set CXX, or install g++ or clang++")
    path = cache_dir() / f"decoder-{_build_id(compiler)}.so"
    if not path.exists():
        _compile(compiler, path)
    return ctypes.CDLL(str(path))


def cache_dir() -> Path:
    """$GVM_CACHE, else the user's cache directory."""
    base = os.environ.get("GVM_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gvmgen"


def _build_id(compiler: str) -> str:
    """Differs with source, flags, compiler and processor: a home directory may serve many machines."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    parts = [
        SOURCE.read_bytes(),
        HEADER.read_bytes(),
        " ".join(FLAGS).encode(),
        version,
        _processor().encode(),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> str:
    """The processor's name and abilities."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    described = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return platform.machine() + platform.processor() + "".join(sorted(described))


def _compile(compiler: str, path: Path) -> None:
    """Written aside, then renamed: two processes may compile at once, and neither loads half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            command = [compiler, *FLAGS, "-o", str(fresh), str(SOURCE)]
            subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=True)
            fresh.rename(path)
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{compiler} cannot compile {SOURCE}: {error.stderr[-2000:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"cannot build {path}: {error}") from error
