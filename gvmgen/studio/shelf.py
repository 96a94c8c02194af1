"""Videos and their music on disk: a folder a video, a folder an order of music in it. No torch.

    FOLDER/20261122-163500-holiday-3f9a1c/
      video.mp4, video.json      as it was uploaded, and what we know of it
      frames/00.jpg …            what the page shows of it; play.mp4 where browsers cannot play the upload
      1/order.json               the first order: what was wanted, what came of it
      1/seed_0.wav, .mp4, .m4a   a take: its music, the film with it, the film's sound for the page

A folder counts from the moment its JSON file is there, until that file is removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from gvmgen.jobs import VIDEO_SUFFIXES, Job

State = Literal["queued", "running", "done", "failed"]


@dataclass(kw_only=True)
class Order:
    """Music that someone wants for a video, and what came of it."""

    number: int
    job: Job
    state: State = "queued"
    error: str = ""
    takes: list[dict[str, Any]] = field(default_factory=list)  # as the worker reports them, the best first
    pace: dict[str, float] = field(
        default_factory=dict
    )  # seconds of work by stage, a take and second of music
    created: float = field(default_factory=time.time)  # s since 1970


@dataclass(kw_only=True)
class Video:
    """An uploaded video."""

    key: str
    name: str  # as its owner calls it
    file: str
    duration_s: float
    width: int
    height: int
    has_audio: bool
    frames: list[str] = field(default_factory=list)  # small pictures, at even distances
    cuts: list[float] | None = None  # seconds; None: not looked for yet
    play: str = ""  # the file that a browser plays; empty: not there yet
    trouble: str = ""  # what went wrong when it was looked through
    created: float = field(default_factory=time.time)
    num_ordered: int = 0  # orders so far; a number is never given twice, as what it was of may still go away
    orders: dict[int, Order] = field(default_factory=dict)


class Shelf:
    """All videos of a folder. What it returns is alive: change it, then `save`."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where the folder cannot be used, or another studio uses it."""
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"{folder}: another gvm-studio uses it. Stop that, or give --folder") from error
        self.scratch = self.folder / ".scratch"
        self._sweep()
        self.videos = {
            video.key: video for video in map(self._read, self._folders(self.folder, "video.json"))
        }

    def _sweep(self) -> None:
        """Remove what an earlier process began and could not finish: only names that we give."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        for path in self.folder.glob(".upload-*"):
            path.unlink()

    @staticmethod
    def _folders(parent: Path, record: str) -> list[Path]:
        return sorted(path.parent for path in parent.glob(f"*/{record}"))

    def _read(self, folder: Path) -> Video:
        path = folder / "video.json"
        try:
            video = Video(**json.loads(path.read_text("utf-8")) | {"key": folder.name})
            for place in self._folders(folder, "order.json"):
                path = place / "order.json"
                values = json.loads(path.read_text("utf-8"))
                order = Order(**values | {"job": Job(**values["job"])})
                video.orders[order.number] = order
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: is damaged ({error}). Repair it, or move {folder} away") from error
        return video

    def upload_path(self) -> Path:
        """A name for bytes that are still coming."""
        return self.folder / f".upload-{secrets.token_hex(8)}"

    def add(self, upload: Path, name: str, **about: Any) -> Video:
        """Take an upload in. about: the fields of Video that its probe told."""
        key = f"{time.strftime('%Y%m%d-%H%M%S')}-{_slug(name)}-{secrets.token_hex(3)}"
        suffix = Path(name).suffix.lower()
        file = "video" + (suffix if suffix in VIDEO_SUFFIXES else "")
        video = Video(key=key, name=name, file=file, **about)
        self.place(video).mkdir()
        upload.replace(self.place(video) / file)
        self.videos[key] = video
        self.save(video)
        return video

    def order(self, video: Video, job: Job) -> Order:
        video.num_ordered = max(video.num_ordered, *video.orders, 0) + 1
        self.save(video)
        order = Order(number=video.num_ordered, job=job)
        place = self.place(video, order)
        shutil.rmtree(place, ignore_errors=True)  # left by an order that a crash removed halfway
        place.mkdir()
        video.orders[order.number] = order
        self.save(video, order)
        return order

    def save(self, video: Video, order: Order | None = None) -> None:
        """Write what is known of a video, or of one of its orders."""
        if order is None:
            values = {name: value for name, value in asdict(video).items() if name not in ("key", "orders")}
            _write(self.place(video) / "video.json", values)
        else:
            _write(self.place(video, order) / "order.json", asdict(order))

    def remove(self, video: Video, order: Order | None = None) -> None:
        """Delete a video with all that was made for it, or one of its orders. The record goes first."""
        place = self.place(video, order)
        (place / ("order.json" if order else "video.json")).unlink(missing_ok=True)
        if order is None:
            del self.videos[video.key]
        else:
            del video.orders[order.number]
        shutil.rmtree(place, ignore_errors=True)

    def place(self, video: Video, order: Order | None = None) -> Path:
        folder = self.folder / video.key
        return folder if order is None else folder / str(order.number)

    def source(self, video: Video) -> Path:
        return self.place(video) / video.file


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", Path(name).stem.lower()).strip("-")[:40] or "video"


def _write(path: Path, values: dict[str, Any]) -> None:
    """The file is always whole, the old one or the new one, also after a power cut."""
    aside = path.with_suffix(".tmp")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
