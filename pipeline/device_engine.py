"""The local engine where this machine has several devices: one process a device."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from itertools import islice
from multiprocessing import get_context, parent_process
from multiprocessing.queues import Queue
from typing import Any, TypeVar

import torch

from pipeline.folder import DataFolder
from pipeline.manifest import Segment
from pipeline.place import rank_on_machine
from pipeline.selection import EncodeConfig
from pipeline.workers import Done, Job, WorkerEngine, run_job, worker_fingerprint

T = TypeVar("T")
JOBS_AHEAD = 2  # jobs handed out for each device: none waits for the next
_device = ""  # of this worker


def own_devices(asked: str | None) -> list[str]:
    """The devices to encode on: as asked for (`cuda:0,cuda:1`), else this process's GPU among its machine's
    processes, else all GPUs, else the CPU."""
    if asked is not None:
        return asked.split(",")
    num_gpus, rank = torch.cuda.device_count(), rank_on_machine()
    if num_gpus and rank is not None:
        return [f"cuda:{rank % num_gpus}"]
    return [f"cuda:{gpu}" for gpu in range(num_gpus)] or ["cpu"]


class DeviceEngine(WorkerEngine):
    """One worker a device; each takes the next shard when it has made one."""

    def __init__(
        self, data: DataFolder, rows: Mapping[str, Segment], config: EncodeConfig, devices: Sequence[str]
    ) -> None:
        super().__init__(data, rows, config)
        context = get_context("spawn")  # a forked process cannot use CUDA
        free = context.Queue()
        for device in devices:
            free.put(device)
        self._num_workers = len(devices)
        self._workers = ProcessPoolExecutor(len(devices), context, _settle, (free, len(devices)))

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        return self._result(self._workers.submit(_fingerprint, self.config), "the first shard")

    def run_all(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Done]]:
        waiting = iter(jobs)
        running: dict[Future[Done], Job] = {}
        while True:
            for job in islice(waiting, JOBS_AHEAD * self._num_workers - len(running)):
                running[self._workers.submit(_run, job)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                yield job, self._result(future, f"shard {job.shard.shard}")

    def close(self) -> None:
        self._workers.shutdown(cancel_futures=True)

    def _result(self, future: Future[T], what: str) -> T:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise OSError(
                f"{what}: a worker process died. Is there memory enough? What is complete stays; run again"
            ) from error


def _settle(free: Queue[str], num_workers: int) -> None:
    """Take a device, and a share of the cores where that is the CPU; end when the parent ends."""
    global _device
    _device = free.get()
    if _device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // num_workers))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # killed as it was: the shard under way stays absent


def _fingerprint(config: EncodeConfig) -> dict[str, Any]:
    return worker_fingerprint(config.on(_device))


def _run(job: Job) -> Done:
    return run_job(job.on(_device))
