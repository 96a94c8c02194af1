"""gvm-train under FSDP2 on CPUs, settings from a JSON file: `python fsdp_run.py SETTINGS`.

Accelerate shards on GPUs only, so this run is told that it may; what follows is Accelerate's and ours.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from gvmgen import start
from gvmgen import train as training
from gvmgen.config import TrainConfig


def make_sharded(config: TrainConfig) -> Accelerator:
    accelerator = start.make_accelerator(config)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    assert accelerator.is_fsdp2
    return accelerator


if __name__ == "__main__":
    training.make_accelerator = make_sharded
    training.train(TrainConfig(**json.loads(Path(sys.argv[1]).read_text())))
