"""A submit script for Slurm: one array element, one share of the shards."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from gvmgen.encoders.presets import encoder_config


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What each element of the array asks for."""

    data: Path
    preset: str
    elements: int = 8
    gpus: int = 1
    cpus: int = 8
    memory_gb: int = 32
    hours: int = 24
    partition: str | None = None  # None: the cluster's default

    def __post_init__(self) -> None:
        encoder_config(self.preset)  # what nobody knows is refused before it waits in a queue


def slurm_script(config: SlurmConfig) -> str:
    """The script. It names this Python's `gvm-prep` and the data folder by their full paths."""
    asked = {
        "job-name": "gvm-encode",
        "array": f"0-{config.elements - 1}",
        "ntasks": "1",
        "cpus-per-task": str(config.cpus),
        "gres": f"gpu:{config.gpus}" if config.gpus else None,
        "mem": f"{config.memory_gb}G",
        "time": f"{config.hours}:00:00",
        "partition": config.partition,
        "output": "%x-%A_%a.log",
        "requeue": "",
    }
    lines = [
        f"#SBATCH --{name}{'=' if value else ''}{value}" for name, value in asked.items() if value is not None
    ]
    program = shlex.quote(str(Path(sys.executable).with_name("gvm-prep")))
    data = shlex.quote(str(config.data.absolute()))
    return "\n".join(
        [
            "#!/bin/bash",
            "# Encode a data set: each element of the array makes its share of the shards.",
            f"# First, once: {program} plan --data {data}",
            "# Then: sbatch THIS_FILE. Submitted again it goes on where it ended.",
            *lines,
            "",
            "set -euo pipefail",
            'export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"',
            f"exec {program} encode --shards auto --data {data} --preset {shlex.quote(config.preset)}",
            "",
        ]
    )
