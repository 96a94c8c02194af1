"""The command `gvm-studio`. Heavy imports wait until it runs."""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from gvmgen import options
from gvmgen.console import run

studio_app = typer.Typer(add_completion=False, rich_markup_mode=None)


def studio_main() -> None:
    run(studio_app, "gvm-studio")


@studio_app.command()
def studio_command(
    folder: Annotated[
        Path, typer.Option(help="Where videos and their music are kept, also over restarts.")
    ] = Path("runs/studio"),
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in, who then see all videos.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8484,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name that browsers may call this machine by.")
    ] = None,
    max_upload: Annotated[float, typer.Option(min=0, help="Megabytes of a video.")] = 4000,
    max_length: Annotated[float, typer.Option(min=0, help="Minutes of a video.")] = 60,
    model: options.Model = None,
    preset: options.Preset = None,
    runs: options.Runs = "runs",
    device: options.Device = None,
    precision: options.Precision = "auto",
) -> None:
    """Compose music for videos on a web page of this machine.

    \b
    gvm-studio
    gvm-studio --folder ~/scores --port 9000
    """
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"needs {package}. Run: pip install 'gvmgen[studio]'")
    import uvicorn

    from gvmgen.studio.server import Limits, Studio, create_app
    from gvmgen.studio.shelf import Shelf
    from gvmgen.studio.waiting import Line

    wanted = preset or (os.environ.get("GVM_PRESET") if model is None else None)
    settings = {"model": model, "preset": wanted, "runs": runs, "device": device, "precision": precision}
    shelf = Shelf(folder)
    listening = listen(host, port)
    studio = Studio(shelf, Line(shelf, settings), Limits(upload_mb=max_upload, length_min=max_length))
    app = create_app(studio, host, allow_host or [])
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    shown = f"[{shown}]" if ":" in shown else shown
    print(f"http://{shown}:{listening.getsockname()[1]}/   files in {folder}, ctrl-C stops", flush=True)
    uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OSError that says what to do where it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}:{port} ({error.strerror}). Give another --port or --host"
        ) from error
