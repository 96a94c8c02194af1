"""Orders wait in line for the one process that composes; it lives beside the server and may be killed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from gvmgen.studio.clock import Clock
from gvmgen.studio.shelf import Order, Shelf, Video

Ticket = tuple[Video, Order]
STAGES = ("watching", "composing", "decoding", "ranking", "finishing")
_LINE_BYTES = 1 << 20  # a report with all takes and their waveforms is one line


class Line:
    """First come, first served. Everything here runs in the server's event loop."""

    def __init__(self, shelf: Shelf, model: dict[str, Any]) -> None:
        """model: the arguments of `Composer.load`. Orders that a restart interrupted are made again."""
        self.shelf, self.model = shelf, model
        self.engine: dict[str, Any] = {"state": "loading"}
        self.running: Ticket | None = None
        self.clock: Clock | None = None
        self.waiting: list[Ticket] = self._unfinished()
        self._pace = self._last_pace()
        self._news = asyncio.Event()
        self._process: Process | None = None

    def _orders(self) -> list[Ticket]:
        every = [(video, order) for video in self.shelf.videos.values() for order in video.orders.values()]
        return sorted(every, key=lambda ticket: ticket[1].created)

    def _unfinished(self) -> list[Ticket]:
        tickets = [ticket for ticket in self._orders() if ticket[1].state in ("queued", "running")]
        for video, order in tickets:
            order.state = "queued"
            self.shelf.save(video, order)
        return tickets

    def _last_pace(self) -> dict[str, float]:
        return {stage: value for _, order in self._orders() for stage, value in order.pace.items()}

    def add(self, video: Video, order: Order) -> None:
        self.waiting.append((video, order))
        self._news.set()

    def ahead(self, order: Order) -> int:
        """How many orders come before this one."""
        place = next((i for i, ticket in enumerate(self.waiting) if ticket[1] is order), 0)
        return place + (self.running is not None)

    def cancel(self, video: Video, order: Order) -> None:
        """Take an order out of the line. If it is being composed, the process is killed at once."""
        self.waiting = [ticket for ticket in self.waiting if ticket[1] is not order]
        if self.running is not None and self.running[1] is order:
            self.running = None
            self._kill()
        self.shelf.remove(video, order)

    async def run(self) -> None:
        """Serve for ever."""
        try:
            while True:
                await self._load()
                await self._someone()
                await self._load()  # again, where it could not load before
                if self.waiting:
                    await self._serve_anyway(*self.waiting.pop(0))
        finally:
            self._kill()

    async def _someone(self) -> None:
        while not self.waiting:
            self._news.clear()
            await self._news.wait()

    async def _load(self) -> None:
        """Start the process that composes, unless it runs; it takes seconds to load its model."""
        if self._process is not None and self._process.returncode is not None:
            await self._bury()  # it died while it had nothing to do
        if self._process is not None:
            return
        self.engine = {"state": "loading"}
        shutil.rmtree(self.shelf.scratch, ignore_errors=True)  # what a killed one left
        self.shelf.scratch.mkdir()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gvmgen.studio.worker", json.dumps(self.model)),
            stdin=PIPE,
            stdout=PIPE,
            limit=_LINE_BYTES,
            env=os.environ | {"TMPDIR": str(self.shelf.scratch)},
            start_new_session=True,  # so that its ffmpeg dies with it, and ctrl-C reaches only the server
        )
        event = await self._report()
        self.engine = {"state": "ready" if event.pop("event") == "ready" else "broken", **event}
        if self.engine["state"] == "broken":
            await self._bury()

    async def _report(self) -> dict[str, Any]:
        """The process's next report; its end is a report, too."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if line.endswith(b"\n"):  # else it was killed, perhaps in the middle of a line
            report: dict[str, Any] = json.loads(line)
            return report
        code = await self._process.wait()
        how = f"was killed (signal {-code}); is memory short?" if code < 0 else f"ended with exit code {code}"
        return {"event": "ended", "error": f"the process that composes {how}; try again"}

    async def _serve_anyway(self, video: Video, order: Order) -> None:
        """Serve, and go on with the line where the disk refuses what is known of the order."""
        try:
            await self._serve(video, order)
        except OSError as error:
            order.state, order.error = "failed", str(error)
            self.running = self.clock = None
            if self._process is not None:
                await self._bury()

    async def _serve(self, video: Video, order: Order) -> None:
        if self._process is None:
            self._end(video, order, {"event": "failed", "error": self.engine.get("error", "")})
            return
        self.running = (video, order)
        order.state = "running"
        self.shelf.save(video, order)
        stages = [stage for stage in STAGES if stage != "ranking" or order.job.takes > 1]
        size = order.job.takes * (order.job.length_s or video.duration_s - order.job.start_s)
        self.clock = Clock(stages, self._pace, size)
        await self._send(video, order)
        while (event := await self._report())["event"] == "progress":
            self.clock.note(event["stage"], event["done"], event["total"])
        is_cancelled = self.running is None
        if event["event"] == "ended" or is_cancelled:
            await self._bury()
        if is_cancelled:
            shutil.rmtree(self.shelf.place(video, order), ignore_errors=True)  # written while it was killed
        else:
            self._end(video, order, event)
        self.running = self.clock = None

    async def _send(self, video: Video, order: Order) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        wanted = {
            "job": asdict(order.job),
            "video": str(self.shelf.source(video)),
            "folder": str(self.shelf.place(video, order)),
        }
        self._process.stdin.write((json.dumps(wanted) + "\n").encode())
        with suppress(ConnectionError):  # it died: its end is the next report
            await self._process.stdin.drain()

    def _end(self, video: Video, order: Order, event: dict[str, Any]) -> None:
        if event["event"] == "done":
            assert self.clock is not None
            order.state, order.takes = "done", event["takes"]
            order.pace = self._pace = self.clock.pace()
        else:
            order.state = "failed"
            order.error = event["error"].replace(str(self.shelf.source(video)), video.name)
        self.shelf.save(video, order)

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _bury(self) -> None:
        """Forget a process that is ending; the next one is started by whoever needs it."""
        assert self._process is not None
        self._kill()
        await self._process.wait()
        self._process = None
