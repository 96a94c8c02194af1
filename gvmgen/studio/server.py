"""The studio over HTTP: one page, its files, and a few routes of JSON. No torch.

GET    /                                the page
GET    /api/studio                      limits, the engine's state, all videos
POST   /api/videos?name=holiday.mp4     upload; the body is the file
GET    /api/videos/KEY                  one video with its orders of music
DELETE /api/videos/KEY                  with all that was made for it
POST   /api/videos/KEY/orders           order music; the body is JSON
DELETE /api/videos/KEY/orders/NUMBER    cancel it, or delete what came of it
GET    /files/KEY/…                     videos, pictures, music, films
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from gvmgen.encoders.process import MediaError
from gvmgen.finish.mastering import LOUDNESS
from gvmgen.studio import looking
from gvmgen.studio.asking import MAX_TAKES, missing_extras, read_job
from gvmgen.studio.guard import Guard
from gvmgen.studio.shelf import Order, Shelf, Video
from gvmgen.studio.waiting import Line

PAGE = Path(__file__).with_name("page")
SPARE_BYTES = 1 << 30  # that an upload leaves free on the disk, for what is made of it
MAX_ASKED_BYTES = 1 << 16  # of JSON

mimetypes.add_type("audio/mp4", ".m4a")
mimetypes.add_type("video/x-matroska", ".mkv")


@dataclass(frozen=True, kw_only=True)
class Limits:
    upload_mb: float
    length_min: float


class Studio:
    """The routes, over a shelf and its line of orders."""

    def __init__(self, shelf: Shelf, line: Line, limits: Limits) -> None:
        self.shelf, self.line, self.limits = shelf, line, limits
        self._looking = asyncio.Semaphore(1)  # one video at a time is looked through
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._start(self.line.run())
        for video in self.shelf.videos.values():
            if video.cuts is None and not video.trouble:
                self._start(self._look(video))
        yield
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Routes

    async def page(self, _: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    async def studio(self, _: Request) -> Response:
        videos = sorted(self.shelf.videos.values(), key=lambda video: -video.created)
        return JSONResponse(
            {
                "engine": self.line.engine,
                "limits": {"upload_mb": self.limits.upload_mb, "length_min": self.limits.length_min},
                "max_takes": MAX_TAKES,
                "loudness": LOUDNESS,
                "missing": missing_extras(),
                "videos": [self._short(video) for video in videos],
            }
        )

    async def upload(self, request: Request) -> Response:
        name = Path(request.query_params.get("name", "")).name or "video"
        path = self.shelf.upload_path()
        try:
            await self._receive(request, path, name)
            video = await run_in_threadpool(self._taken_in, path, name)
        finally:
            path.unlink(missing_ok=True)
        self._start(self._look(video))
        return JSONResponse(self._whole(video), 201)

    async def video(self, request: Request) -> Response:
        return JSONResponse(self._whole(self._video(request)))

    async def delete_video(self, request: Request) -> Response:
        video = self._video(request)
        for order in list(video.orders.values()):
            self.line.cancel(video, order)
        self.shelf.remove(video)
        return Response(status_code=204)

    async def order(self, request: Request) -> Response:
        video = self._video(request)
        body = await self._body(request)
        job = await run_in_threadpool(read_job, body, video.name, video.duration_s)
        order = self.shelf.order(video, job)
        self.line.add(video, order)
        return JSONResponse(self._order(order), 201)

    async def delete_order(self, request: Request) -> Response:
        video = self._video(request)
        order = video.orders.get(request.path_params["number"])
        if order is None:
            raise HTTPException(404, "no such order; it may have been cancelled")
        self.line.cancel(video, order)
        return Response(status_code=204)

    # What they stand on

    def _video(self, request: Request) -> Video:
        video = self.shelf.videos.get(request.path_params["key"])
        if video is None:
            raise HTTPException(404, "no such video; it may have been deleted")
        return video

    @staticmethod
    async def _body(request: Request) -> Any:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_ASKED_BYTES:
                raise HTTPException(413, f"more than {MAX_ASKED_BYTES} bytes of settings")
        return json.loads(body)

    async def _receive(self, request: Request, path: Path, name: str) -> None:
        """Write the body to a file. Refused is what is too big, at once where its size is told."""
        told = int(request.headers.get("content-length", 0))
        self._check_size(told, name)
        if shutil.disk_usage(self.shelf.folder).free < told + SPARE_BYTES:
            raise HTTPException(507, f"{name}: the disk is full. Delete videos here, or free some space")
        size = 0
        async with await anyio.open_file(path, "wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                self._check_size(size, name)
                await file.write(chunk)

    def _check_size(self, size: int, name: str) -> None:
        if size > self.limits.upload_mb * 1e6:
            limit = f"{self.limits.upload_mb:g} MB"
            raise HTTPException(
                413, f"{name}: is bigger than {limit}. Make it smaller, or start gvm-studio with --max-upload"
            )

    def _taken_in(self, path: Path, name: str) -> Video:
        """The upload as a video on the shelf. Raises ValueError, with the uploader's own name of the file."""
        try:
            about = looking.about(path)
        except MediaError as error:
            raise ValueError(str(error).replace(str(path), name)) from error
        length_min = about["duration_s"] / 60
        if length_min > self.limits.length_min:
            raise ValueError(
                f"{name}: lasts {length_min:.1f} minutes, more than {self.limits.length_min:g}. "
                "Cut it, or start gvm-studio with --max-length"
            )
        return self.shelf.add(path, name, **about)

    async def _look(self, video: Video) -> None:
        """Find what the page shows of a video, piece by piece; the page does not wait for it."""
        source, folder = self.shelf.source(video), self.shelf.place(video)
        async with self._looking:
            try:
                video.frames = await run_in_threadpool(
                    looking.small_pictures, source, video.duration_s, folder / "frames"
                )
                video.play = await run_in_threadpool(looking.playable, source, folder)
                video.cuts = await run_in_threadpool(looking.cuts, source)
            except (MediaError, OSError) as error:
                video.trouble = " ".join(str(error).replace(str(source), video.name).split())
            if video.key in self.shelf.videos:  # it may have been deleted in between
                self.shelf.save(video)

    # As JSON

    def _short(self, video: Video) -> dict[str, Any]:
        states = [order.state for order in video.orders.values()]
        return {
            "key": video.key,
            "name": video.name,
            "duration_s": video.duration_s,
            "picture": f"frames/{video.frames[len(video.frames) // 3]}" if video.frames else "",
            "num_takes": sum(len(order.takes) for order in video.orders.values()),
            "is_busy": "queued" in states or "running" in states,
        }

    def _whole(self, video: Video) -> dict[str, Any]:
        return {
            "key": video.key,
            "name": video.name,
            "duration_s": video.duration_s,
            "width": video.width,
            "height": video.height,
            "has_audio": video.has_audio,
            "frames": [f"frames/{name}" for name in video.frames],
            "cuts": video.cuts,
            "play": video.play,
            "trouble": video.trouble,
            "orders": [self._order(order) for order in reversed(video.orders.values())],
        }

    def _order(self, order: Order) -> dict[str, Any]:
        is_running = order.state == "running" and self.line.clock is not None
        return {
            "number": order.number,
            "state": order.state,
            "error": order.error,
            "takes": order.takes,
            "wanted": {
                "takes": order.job.takes,
                "seed": order.job.seed,
                "from_s": order.job.start_s,
                "to_s": order.job.stop_s,
                "ending": order.job.ending,
                "loudness": order.job.loudness,
                "original": order.job.original,
            },
            "ahead": self.line.ahead(order) if order.state == "queued" else 0,
            "progress": self.line.clock.as_json() if is_running and self.line.clock else None,
        }


async def _told(_: Request, error: Exception) -> Response:
    """Expected errors as one line of JSON, as a command prints them."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)
    status = 422 if isinstance(error, ValueError) else 507
    return JSONResponse({"error": " ".join(str(error).split())}, status)


def create_app(studio: Studio, bound: str, allowed: list[str]) -> Starlette:
    """The application. bound: the host it listens on. allowed: more names that it may be called by."""
    return Starlette(
        routes=[
            Route("/", studio.page),
            Route("/api/studio", studio.studio),
            Route("/api/videos", studio.upload, methods=["POST"]),
            Route("/api/videos/{key}", studio.video, methods=["GET"]),
            Route("/api/videos/{key}", studio.delete_video, methods=["DELETE"]),
            Route("/api/videos/{key}/orders", studio.order, methods=["POST"]),
            Route("/api/videos/{key}/orders/{number:int}", studio.delete_order, methods=["DELETE"]),
            Mount("/page", StaticFiles(directory=PAGE)),
            Mount("/files", StaticFiles(directory=studio.shelf.folder)),
        ],
        middleware=[Middleware(Guard, bound=bound, allowed=allowed)],
        exception_handlers=dict.fromkeys((HTTPException, ClientDisconnect, ValueError, OSError), _told),
        lifespan=studio.lifespan,
    )
