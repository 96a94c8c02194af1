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

def faults_of_a_large_tensor():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(50_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of_a_large_tensor()
print(faults_of_a_large_tensor())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' memory stays as it is")
def test_memory_that_is_freed_and_asked_for_again_costs_no_page_faults_where_it_is_kept() -> None:
    def faults(kept: str) -> int:
        run = [sys.executable, "-c", FAULTS, kept]
        return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)

    assert faults("kept") < 100 < faults("returned")


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    check_device("cpu")
    for name in ("foo", f"cuda:{torch.cuda.device_count()}"):
        with pytest.raises(ValueError, match=f"device {name}: not on this machine, which has cpu"):
            check_device(name)
