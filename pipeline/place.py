"""Which of how many equal processes this one is, from what Slurm, torchrun and MPI set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

# (rank, number of processes, rank on its machine) of who may have started the process; the innermost first
LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "MPICH, Intel MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    # Not SLURM_NTASKS: a batch script sees it, too, without being one of so many.
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
}
ARRAY = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class Place:
    index: int  # from 0
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"process {self.index} of {self.count}: there is no such process")

    @property
    def share(self) -> str:
        """As `--shards` reads it: 1/4 … 4/4."""
        return f"{self.index + 1}/{self.count}"


def own_share(environ: Mapping[str, str] = os.environ) -> str:
    """The share of the shards that falls to this process, as `--shards` reads it.

    An element of a Slurm array has its share, and each of several processes inside it a part of that. Raises
    ValueError where nobody says, or where the array's numbers are no range.
    """
    array, process = _array_place(environ), _process_place(environ)
    if array is None and process is None:
        raise ValueError(
            f"--shards auto: this process is no element of a Slurm array, and {', '.join(LAUNCHERS)} did not "
            "start it. Name a share: --shards 1/4; or print a script for Slurm: gvm-prep slurm-script"
        )
    array, process = array or Place(0, 1), process or Place(0, 1)
    return Place(array.index * process.count + process.index, array.count * process.count).share


def rank_on_machine(environ: Mapping[str, str] = os.environ) -> int | None:
    """Which process of its machine this one is; None where it is not one of several."""
    place = _process_place(environ)
    if place is None or place.count == 1:
        return None
    return next(int(environ[name]) for _, _, name in LAUNCHERS.values() if name in environ)


def _process_place(environ: Mapping[str, str]) -> Place | None:
    for rank, count, _ in LAUNCHERS.values():
        if rank in environ and count in environ:
            return Place(int(environ[rank]), int(environ[count]))
    return None


def _array_place(environ: Mapping[str, str]) -> Place | None:
    if ARRAY + "ID" not in environ:
        return None
    try:
        number, first, last, count = (int(environ[ARRAY + name]) for name in ("ID", "MIN", "MAX", "COUNT"))
    except KeyError as error:
        raise ValueError(
            f"--shards auto: {ARRAY}ID is set, {error.args[0]} is not. Name a share: --shards 1/4"
        ) from error
    step = int(environ.get(ARRAY + "STEP", "1"))
    if range(first, last + 1, step)[-1] != last or len(range(first, last + 1, step)) != count:
        raise ValueError(
            f"--shards auto: the array's {count} elements do not run from {first} to {last} in steps of "
            f"{step}, so that nobody knows whose turn this is. Submit a range: --array=0-{count - 1}"
        )
    return Place((number - first) // step, count)
