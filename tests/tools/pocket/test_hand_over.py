"""A network goes on after its picture encoder has changed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from gvmgen.checkpoint import ModelInfo, load_model, save_model
from gvmgen.model import GVMGen
from shards.reader import ShardSet
from shards.spec import Sample
from shards.writer import write_shard
from tests.gvmgen.networks import make_network
from tests.gvmgen.tiny_runs import make_sample

HAND_OVER = Path(__file__).parents[3] / "tools" / "pocket" / "hand_over.py"


def as_seen_by_another_encoder(sample: Sample) -> Sample:
    return replace(sample, features=-sample.features)


def test_the_new_features_come_to_give_the_conditions_of_the_old(tmp_path: Path) -> None:
    samples = [make_sample(number, 8, "train") for number in range(4)]
    before, after, out = tmp_path / "before", tmp_path / "after", tmp_path / "out"
    write_shard(before / "shards", 0, samples, plan_hash="plan", fingerprint={"video": "old"})
    changed = [as_seen_by_another_encoder(sample) for sample in samples]
    write_shard(after / "shards", 0, changed, plan_hash="plan", fingerprint={"video": "new"})
    teacher = make_network()
    save_model(tmp_path / "model", teacher, ModelInfo(preset="pocket"))
    folders = [
        "--model",
        str(tmp_path / "model"),
        "--data",
        str(before),
        "--new",
        str(after),
        "--out",
        str(out),
    ]
    subprocess.run([sys.executable, HAND_OVER, *folders, "--steps", "60", "--batch-size", "2"], check=True)
    student, info = load_model(out)

    def error(network: GVMGen) -> float:
        pairs = zip(samples, changed, strict=True)
        with torch.no_grad():
            differences = [
                teacher.conditions(torch.from_numpy(old.features)[None])
                - network.conditions(torch.from_numpy(new.features)[None])
                for old, new in pairs
            ]
        return float(torch.cat(differences).square().mean())

    assert error(student) < 0.5 * error(teacher)
    assert info.encoder_fingerprint == ShardSet.open(after / "shards").fingerprint
    assert all(map(torch.equal, student.decoder.parameters(), teacher.decoder.parameters()))
