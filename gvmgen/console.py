"""What every command shares: one line for an error, a documented exit code. No torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import IntEnum
from io import TextIOWrapper
from typing import NoReturn

from gvmgen.encoders.presets import MissingWeightsError


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1  # the command ran, and some of its work failed: a segment, a check
    USAGE = 2  # unknown option or argument (typer's own)
    INPUT = 3  # a file, a shard, a checkpoint or a setting cannot be used
    WEIGHTS = 4  # pretrained weights are neither on disk nor reachable
    SYSTEM = 5  # disk full, no permission, ffmpeg missing
    INTERRUPTED = 130


def run(command: Callable[[], object], name: str) -> NoReturn:
    """Run a typer app; turn expected errors into one stderr line. A traceback means a bug of ours."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        command()
        sys.exit(ExitCode.OK)
    except MissingWeightsError as error:
        _stop(name, error, ExitCode.WEIGHTS)
    except (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        _stop(name, error, ExitCode.INPUT)
    except OSError as error:
        _stop(name, error, ExitCode.SYSTEM)
    except KeyboardInterrupt:
        _stop(name, "interrupted", ExitCode.INTERRUPTED)
    except SystemExit as stop:
        if stop.code == ExitCode.INTERRUPTED:  # typer's own way of ending at ctrl-C says nothing
            _stop(name, "interrupted", ExitCode.INTERRUPTED)
        raise


def _stop(name: str, error: object, code: ExitCode) -> NoReturn:
    print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)
