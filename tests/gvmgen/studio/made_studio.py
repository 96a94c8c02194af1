"""A real gvm-studio in a process of its own, and videos for it."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from gvmgen.encoders.process import ffmpeg_path

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 500.0  # a model is loaded, on a machine that does much else
_COMMAND = "from gvmgen.studio.cli import studio_main; studio_main()"


class StudioProcess:
    """`gvm-studio` with small limits and the model in the box, on a free port."""

    def __init__(self, folder: Path, *more: str) -> None:
        settings = [
            "--folder",
            str(folder),
            "--port",
            "0",
            "--preset",
            "pocket",
            "--runs",
            str(folder / "none"),
        ]
        limits = ["--max-upload", "1", "--max-length", "1"]
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *settings, *limits, *more],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.address = line.split()[0]
        self.port = int(self.address.rsplit(":", 1)[1].strip("/"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer. The path goes out as it is, dots and all."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON."""
        data = json.dumps(body) if isinstance(body, dict) else body
        status, _, found = self.request(method, path, data)
        return status, json.loads(found) if found else None

    def upload(self, path: Path) -> tuple[int, Any]:
        return self.ask("POST", f"/api/videos?name={quote(path.name)}", path.read_bytes())

    def order(self, key: str, **wanted: Any) -> int:
        status, order = self.ask("POST", f"/api/videos/{key}/orders", wanted)
        assert status == 201, order
        return int(order["number"])

    def state(self, key: str, number: int) -> dict[str, Any]:
        """What the studio tells of an order; empty where it is gone."""
        _, video = self.ask("GET", f"/api/videos/{key}")
        found = [order for order in video["orders"] if order["number"] == number]
        return dict(found[0]) if found else {}

    def wait_for(self, key: str, number: int, *states: str) -> dict[str, Any]:
        wait(lambda: self.state(key, number)["state"] in states, f"{states} of order {number}")
        return self.state(key, number)


def wait(is_true: Callable[[], object], what: str) -> None:
    deadline = monotonic() + PATIENCE_S
    while not is_true():
        assert monotonic() < deadline, f"waited in vain for {what}"
        sleep(0.2)


def make_film(path: Path, seconds: float = 3.0, codec: str = "libx264") -> Path:
    """Two shots, a moving pattern and its negative, with a tone; the cut is in the middle."""
    picture = f"testsrc=size=160x120:rate=10:duration={seconds},negate=enable='gte(t,{seconds / 2})'"
    inputs = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", f"sine=frequency=330:duration={seconds}"]
    coders = ["-c:v", codec, "-pix_fmt", "yuv420p", "-c:a", "aac", "-shortest"]
    command = [ffmpeg_path(), "-nostdin", "-v", "error", "-y", *inputs, *coders, str(path)]
    subprocess.run(command, check=True, timeout=120)
    return path
