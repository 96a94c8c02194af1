"""Real S3 and GCS servers, processes of their own on loopback, which forget all when they end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

BUCKET = "set-of-ours"
PATIENCE_S = 120  # until the server listens; a guard, no measure


@dataclass
class Store:
    """The server, and how a program finds it."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def environ(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """At the same address, empty but for the bucket."""
        self.process = _start(_s3_command(self.port), self.port)
        make_bucket()


@contextmanager
def serving_s3() -> Iterator[Store]:
    """A server with an empty bucket; this process's environment leads to it."""
    s3fs = pytest.importorskip("s3fs", reason="needs the extra: pip install 'gvmgen[remote]'")
    pytest.importorskip("moto", reason="needs the development tools: pip install 'gvmgen[dev]'")
    port = _free_port()
    store = Store(port, _start(_s3_command(port), port))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environ.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # its clients go where the environment led to then
        try:
            make_bucket()
            yield store
        finally:
            store.kill()
            s3fs.S3FileSystem.clear_instance_cache()


def make_bucket() -> None:
    import s3fs

    s3fs.S3FileSystem().mkdir(BUCKET)


@contextmanager
def serving_gcs() -> Iterator[None]:
    """A Google Cloud Storage server with an empty bucket; this process's environment leads to it."""
    gcsfs = pytest.importorskip("gcsfs", reason="needs the extra: pip install 'gvmgen[remote]'")
    pytest.importorskip("gcp_storage_emulator", reason="needs the tools: pip install 'gvmgen[dev]'")
    port = _free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--in-memory"]
    process = _start([*command, "--port", str(port), "--default-bucket", BUCKET], port)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        gcsfs.GCSFileSystem.clear_instance_cache()
        try:
            yield
        finally:
            process.kill()
            process.wait()
            gcsfs.GCSFileSystem.clear_instance_cache()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _s3_command(port: int) -> list[str]:
    return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]


def _start(command: list[str], port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ}
    )
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return process
    raise AssertionError(f"{command[2]} did not start")
