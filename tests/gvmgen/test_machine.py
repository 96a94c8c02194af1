"""What this process asks of the machine."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from gvmgen.machine import check_device

FAULTS = """
import resource, sys, torch
from gvmgen.machine import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
linear, gelu = torch.nn.Linear(1024, 1024), torch.nn.GELU()

def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    gelu(linear(gelu(linear(torch.ones(10_000, 1024))))).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min([faults_of_a_step() for _ in range(8)][4:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' memory stays as it is")
def test_once_steps_have_settled_they_ask_the_system_for_no_more_pages_where_memory_is_kept() -> None:
    def faults(kept: str) -> int:
        run = [sys.executable, "-c", FAULTS, kept]
        return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)

    assert 10 * faults("kept") < faults("returned")


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    check_device("cpu")
    for name in ("foo", f"cuda:{torch.cuda.device_count()}"):
        with pytest.raises(ValueError, match=f"device {name}: not on this machine, which has cpu"):
            check_device(name)
