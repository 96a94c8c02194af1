"""The engine for a Ray cluster: one task a shard. A task that loses its node runs again on another.

Every node needs this package, the data folder at the same path, and the sources.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, NoReturn

from pipeline.folder import DataFolder
from pipeline.manifest import Segment
from pipeline.selection import EncodeConfig
from pipeline.workers import Done, Job, WorkerEngine, run_job, worker_fingerprint

MAX_RETRIES = 5  # of a task whose worker or node died
TASK_CPUS = 4  # one decodes ahead, the others resize; without a GPU CLIP runs on them
KNOCK_S = 20.0
TASKS_AHEAD = 2  # tasks handed out for each that can run: no node waits for the next


class RayEngine(WorkerEngine):
    """Connects to $RAY_ADDRESS, else to the cluster on this machine, else starts one here."""

    def __init__(self, data: DataFolder, rows: Mapping[str, Segment], config: EncodeConfig) -> None:
        super().__init__(data, rows, config)
        self._ray = _connect()
        self._need = _task_need(self._nodes(), config)
        if not self._num_slots():
            raise ValueError(
                f"no node of the Ray cluster has {self._need['CPU']:g} CPUs and {self._need['GPU']:g} GPUs "
                "for a task. Ask for less: --task-cpus, --task-gpus"
            )
        if not self._need["GPU"]:
            self.config = config.on("cpu")

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What the workers' encoders are; they stay loaded for the first jobs."""
        return self._result(self._task(worker_fingerprint).remote(self.config), "the first task")

    def run_all(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Done]]:
        """The jobs' results as they come; a bounded number is handed out at a time."""
        waiting = iter(jobs)
        running: dict[Any, Job] = {}
        task = self._task(run_job)
        while True:
            room = max(1, TASKS_AHEAD * self._num_slots()) - len(running)
            for job in islice(waiting, max(0, room)):
                running[task.remote(job)] = job
            if not running:
                return
            finished, _ = self._ray.wait(list(running))
            for reference in finished:
                job = running.pop(reference)
                yield job, self._result(reference, f"shard {job.shard.shard}")

    def close(self) -> None:
        """Leave the cluster; tasks that still run are stopped, and their shards stay absent."""
        self._ray.shutdown()

    def _task(self, function: Callable[..., Any]) -> Any:
        return self._ray.remote(
            num_cpus=self._need["CPU"],
            num_gpus=self._need["GPU"],
            max_retries=MAX_RETRIES,
            scheduling_strategy="SPREAD",
        )(function)

    def _result(self, reference: Any, what: str) -> Any:
        from ray.exceptions import RayError, RayTaskError

        try:
            return self._ray.get(reference)
        except RayTaskError as error:
            _raise_cause(error)
        except RayError as error:
            raise OSError(
                f"{what}: its worker died {1 + MAX_RETRIES} times ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}). Is there memory enough? What is complete stays; run again"
            ) from error

    def _nodes(self) -> list[dict[str, float]]:
        """What each node that is alive offers."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _num_slots(self) -> int:
        """Tasks that can run at a time, as the cluster is now: nodes come and go."""
        return sum(_slots(node, self._need) for node in self._nodes())


def _connect() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        import ray
    except ImportError as error:
        raise ValueError("--engine ray needs Ray. Run: pip install 'gvmgen[ray]'") from error
    address = os.environ.get("RAY_ADDRESS", "this machine")
    try:
        _knock(address)
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConnectionError(
            f"{address}: no Ray cluster answers there ({str(error).splitlines()[0]}). "
            "Start one: ray start --head; or unset RAY_ADDRESS"
        ) from error
    return ray


def _knock(address: str) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray itself tries for ten minutes and more."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=KNOCK_S).close()


def _task_need(nodes: Sequence[Mapping[str, float]], config: EncodeConfig) -> dict[str, float]:
    """CPUs and GPUs of a task: as asked for, else what the cluster's nodes can give."""
    has_gpu = any(node.get("GPU") for node in nodes) and config.device != "cpu"
    gpus = config.task_gpus if config.task_gpus is not None else float(has_gpu)
    able = [node["CPU"] for node in nodes if node.get("CPU") and node.get("GPU", 0) >= gpus]
    cpus = config.task_cpus or min([TASK_CPUS, *able])
    return {"CPU": cpus, "GPU": gpus}


def _slots(node: Mapping[str, float], need: Mapping[str, float]) -> int:
    return int(min(node.get(name, 0) // amount for name, amount in need.items() if amount))


def _raise_cause(error: Any) -> NoReturn:
    """The task's own error, as if it had run here."""
    if isinstance(error.cause, Exception):
        raise error.cause from error
    raise error
