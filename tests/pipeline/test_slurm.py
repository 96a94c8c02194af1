"""Sharing out shards among processes that Slurm, torchrun or MPI started."""

from __future__ import annotations

import os
import subprocess
from itertools import chain
from pathlib import Path

import pytest

from gvmgen.console import ExitCode
from gvmgen.encoders.presets import ENCODER_PRESETS
from pipeline.crawl import CrawlConfig, crawl
from pipeline.folder import choose
from pipeline.place import own_share, rank_on_machine
from pipeline.plan import Plan, ShardPlan
from pipeline.slurm import SlurmConfig, slurm_script
from shards.reader import ShardSet
from tests.pipeline.made_videos import make_video

PLAN: Plan = {number: ShardPlan(number, b"") for number in (0, 1, 2, 5, 7, 8, 11)}


def array(number: int, first: int, last: int, step: int = 1, count: int | None = None) -> dict[str, str]:
    count = len(range(first, last + 1, step)) if count is None else count
    values = {"ID": number, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("environ", "share"),
    [
        (array(0, 0, 15), "1/16"),
        (array(12, 10, 19), "3/10"),
        (array(9, 1, 9, step=4), "3/3"),
        (array(3, 3, 3), "1/1"),
        ({"RANK": "1", "WORLD_SIZE": "4"}, "2/4"),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, "1/2"),
        ({"PMI_RANK": "2", "PMI_SIZE": "3"}, "3/3"),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, "4/8"),
        (array(1, 0, 2) | {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}, "8/12"),
        (array(1, 0, 2) | {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "2/3"),  # a batch script, not a task
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "RANK": "1", "WORLD_SIZE": "2"}, "2/2"),
    ],
)
def test_each_launcher_says_which_share_is_a_process_s_own(environ: dict[str, str], share: str) -> None:
    assert own_share(environ) == share


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "no element of a Slurm array.*--shards 1/4"),
        (array(7, 1, 7, count=3), "nobody knows whose turn.*--array=0-2"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_MIN is not"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "process 4 of 4"),
    ],
)
def test_a_process_that_cannot_know_its_share_says_so(environ: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        own_share(environ)


def test_only_one_of_several_processes_on_a_machine_has_a_rank_there() -> None:
    assert rank_on_machine({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == 1
    assert rank_on_machine({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0"}) is None
    assert rank_on_machine({}) is None


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_the_shares_are_the_plan_each_shard_once_and_as_even_as_can_be(count: int) -> None:
    shares = [list(choose(PLAN, f"{number}/{count}")) for number in range(1, count + 1)]
    assert list(chain(*shares)) == list(PLAN)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("share", ["0/4", "5/4", "1/0"])
def test_a_share_that_is_none_is_refused(share: str) -> None:
    with pytest.raises(ValueError, match="shares are numbered"):
        choose(PLAN, share)


def test_the_script_names_what_an_element_asks_for(tmp_path: Path) -> None:
    config = SlurmConfig(
        data=tmp_path / "a set", preset="small", elements=16, gpus=0, hours=8, partition="long"
    )
    lines = slurm_script(config).splitlines()
    assert lines[0] == "#!/bin/bash"
    assert {"#SBATCH --array=0-15", "#SBATCH --time=8:00:00", "#SBATCH --partition=long"} <= set(lines)
    assert not any("gres" in line for line in lines)


def test_the_elements_of_the_printed_script_make_the_whole_set(tmp_path: Path) -> None:
    if not Path(ENCODER_PRESETS["pocket"].codec).is_dir():
        pytest.skip("pocket's weights are not in this checkout")
    data = tmp_path / "a set"  # a space, as folders have
    make_video(data / "videos" / "a.mp4", 8)
    crawl(
        [data / "videos"],
        data / "manifest.jsonl",
        CrawlConfig(segment_s=1, stride_s=1, min_s=1.0, num_shards=3),
    )
    script = tmp_path / "encode.sbatch"
    script.write_text(slurm_script(SlurmConfig(data=data, preset="pocket", elements=2, cpus=1)))
    subprocess.run(["bash", "-n", script], check=True)
    made = []
    for number in range(2):
        environ = {**os.environ, **array(number, 0, 1), "SLURM_CPUS_PER_TASK": "1"}
        done = subprocess.run(["bash", script], env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == ExitCode.OK, done.stderr
        made.append({path.name for path in (data / "shards").glob("*.json")})
    assert made[0] < made[1]
    assert len(ShardSet.open(data / "shards")) == 8
