"""A real S3 server: moto's, a process of its own on loopback, which forgets all when it ends."""

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
        self.process = _start(self.port)
        make_bucket()


@contextmanager
def serving_s3() -> Iterator[Store]:
    """A server with an empty bucket; this process's environment leads to it."""
    s3fs = pytest.importorskip("s3fs", reason="needs the extra: pip install 'gvmgen[remote]'")
    pytest.importorskip("moto", reason="needs the development tools: pip install 'gvmgen[dev]'")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = Store(port, _start(port))
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


def _start(port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
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
    raise AssertionError("the S3 server did not start")
