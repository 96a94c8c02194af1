"""The publication's table 5: what each part of the network is worth, trained and measured by one command.

F video frames, P patches, D width, K codebooks, T code frames.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gvmgen.checkpoint import load_model, save_model
from gvmgen.config import TrainConfig
from gvmgen.decoding import SamplingConfig, generate_codes
from gvmgen.evaluation.agreement import Agreement, measure
from gvmgen.evaluation.evaluator import Evaluator, load_evaluator
from gvmgen.evaluation.extras import needed
from gvmgen.evaluation.seconds import Pair, make_pair, video_seconds
from gvmgen.fast.choice import Engines, choose_engines
from gvmgen.model import GVMGen
from gvmgen.runs import RunFolder, step_of, write_text
from gvmgen.train import train
from shards.reader import ShardSet, record_files
from shards.record import ShardRecord
from shards.spec import CODE_RATE, Sample, fingerprint_differences
from shards.writer import write_shard

BASE = "base"
RESULT = "figures.json"
ROWS_AT_ONCE = 16
MEASURES = {
    "loss": "test loss (nats)",
    "accuracy": "pairs found",
    "cmr": "CMR",
    "ta": "TA",
    "accuracy_shuffled": "pairs found, shuffled",
}
PAIRED = ("loss", "cmr")  # whose difference to the base is told, too

Runs = dict[int, dict[str, float]]  # figures by seed


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table: what differs from the base, the publication's network with our time axis."""

    title: str
    model: dict[str, Any] = field(default_factory=dict)  # ModelConfig settings
    video_level: bool = False


VARIANTS = {
    BASE: Variant(title="base: 16 queries, average, time axis"),
    **{
        f"queries_{n}": Variant(title=f"{n} quer{'y' if n == 1 else 'ies'}", model={"num_queries": n})
        for n in (1, 2, 4, 8, 32)
    },
    "sum": Variant(title="queries summed", model={"pooling": "sum"}),
    "preserve": Variant(title="queries preserved", model={"pooling": "preserve"}),
    "no_spatial": Variant(title="no spatial cross-attention", model={"spatial_cross_attention_every": 0}),
    "no_temporal": Variant(title="no temporal cross-attention", model={"temporal_cross_attention": False}),
    "no_time_axis": Variant(title="no time axis, as published", model={"frame_positions": False}),
    "video_level": Variant(title="one feature a video, no frames", video_level=True),
    "frame_changes": Variant(title="frames that tell what changed, ours", model={"frame_changes": True}),
}


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What is trained and measured, and where it is kept."""

    base: (
        TrainConfig  # its data, preset and recipe; `run`, `runs`, `seed` and `init` are set for each training
    )
    evaluator: Path
    out: Path
    variants: Sequence[str] = tuple(VARIANTS)
    num_seeds: int = 3
    num_pieces: int = 4  # composed for each test video
    guidance: float = 3.0
    init: Path | None = None  # a model folder; each variant starts from those of its weights that fit

    def __post_init__(self) -> None:
        unknown = sorted(set(self.variants) - set(VARIANTS))
        if unknown:
            raise ValueError(f"unknown variants {unknown}; known: {', '.join(VARIANTS)}")
        for option, number in (("--seeds", self.num_seeds), ("--pieces", self.num_pieces)):
            if number < 1:
                raise ValueError(f"{option} {number}: it must be at least 1")

    @property
    def runs(self) -> list[tuple[str, int]]:
        return [(name, seed) for seed in range(self.num_seeds) for name in self.variants]

    def folder(self, name: str, seed: int) -> Path:
        return self.out / f"{name}_{seed}"


def ablate(ablation: Ablation) -> bool:
    """Train and measure what is not there yet, seed after seed, and write the table.

    Returns whether all is there; not when a training was asked to stop. Raises what training raises.
    """
    evaluator = load_evaluator(ablation.evaluator)
    test_set = ShardSet.open(Path(ablation.base.data) / "shards", "test")
    differences = fingerprint_differences(test_set.fingerprint, evaluator.info.encoder_fingerprint)
    if differences:
        raise ValueError(
            f"{ablation.evaluator}: learned from other encoders than made the shards: "
            f"{'; '.join(differences)}. "
            f"Train one on these: gvm-eval train --data {ablation.base.data}"
        )
    truth = {"true music": measure(evaluator.model, list(true_pairs(evaluator, test_set))).to_json()}
    for name, seed in ablation.runs:
        result = ablation.folder(name, seed) / RESULT
        if result.exists():
            continue
        checkpoint = train_variant(ablation, name, seed)
        if checkpoint is None:
            return False
        figures = measure_variant(ablation, evaluator, test_set, checkpoint, VARIANTS[name], seed)
        write_text(result, json.dumps(figures | test_loss(ablation.folder(name, seed)), indent=2) + "\n")
        write_table(ablation, truth)
    write_table(ablation, truth)
    return True


def train_variant(ablation: Ablation, name: str, seed: int) -> Path | None:
    """The checkpoint after the last step; None where the training was asked to stop before."""
    variant, base = VARIANTS[name], ablation.base
    model = {"frame_changes": False, "frame_codes": False} | base.model | variant.model
    data = (
        video_level_data(Path(base.data), ablation.out / "video_level") if variant.video_level else base.data
    )
    config = replace(
        base, data=str(data), runs=str(ablation.out), run=f"{name}_{seed}", model=model, seed=seed, init=None
    )
    if ablation.init is not None:
        start = ablation.out / "starts" / f"{name}_{seed}"
        config = replace(config, init=str(fitting_start(ablation.init, config, start)))
    train(config)
    latest = RunFolder(config.run_folder).latest()
    return latest if latest is not None and step_of(latest) == config.steps else None


def fitting_start(init: Path, config: TrainConfig, folder: Path) -> Path:
    """A model folder for a variant to start from: the weights of `init` that fit, random ones elsewhere."""
    source, info = load_model(init, dtype=torch.float32)
    torch.manual_seed(config.seed)
    network = GVMGen(config.model_config)
    own = network.state_dict()
    fitting = {
        name: tensor
        for name, tensor in source.state_dict().items()
        if name in own and own[name].shape == tensor.shape
    }
    network.load_state_dict(own | fitting)
    save_model(folder, network, info)
    return folder


def video_level_data(data: Path, out: Path) -> Path:
    """A copy of the shards in which every frame's features are the mean over the video's frames."""
    for path in record_files(data / "shards"):
        record = ShardRecord.load(path)
        if (out / "shards" / path.name).exists():
            continue
        one = ShardSet([(path.with_suffix(".tar"), record)])
        samples = (averaged(one.read(index)) for index in range(len(one)))
        write_shard(
            out / "shards", record.shard, samples, plan_hash=record.plan_hash, fingerprint=record.fingerprint
        )
    return out


def averaged(sample: Sample) -> Sample:
    mean = sample.features.mean(axis=0, dtype=np.float32).astype(np.float16)
    return replace(sample, features=np.broadcast_to(mean, sample.features.shape).copy())


def true_pairs(evaluator: Evaluator, test_set: ShardSet) -> Iterator[Pair]:
    for index in range(len(test_set)):
        sample = test_set.read(index)
        codes = torch.from_numpy(sample.codes.astype(np.int64))[None]
        video = video_seconds(torch.from_numpy(sample.features))
        yield make_pair(sample.key, video, evaluator.hear_codes(codes))


def measure_variant(
    ablation: Ablation,
    evaluator: Evaluator,
    test_set: ShardSet,
    checkpoint: Path,
    variant: Variant,
    seed: int,
) -> dict[str, float]:
    """Compose for every video of the test split from its cached features, and measure the fit.

    The mean over `num_pieces` pieces a video: one piece of a few videos is mostly chance.
    """
    network, _ = load_model(checkpoint, dtype=torch.float32)
    samples = [test_set.read(index) for index in range(len(test_set))]
    videos = [video_seconds(torch.from_numpy(sample.features)) for sample in samples]
    seen = [watch(network.eval(), sample, variant) for sample in samples]
    lengths = [min(sample.codes.shape[1], network.config.window_s * CODE_RATE) for sample in samples]
    engines = choose_engines(network)
    sampling = SamplingConfig(guidance=ablation.guidance)
    rounds = []
    for piece in range(ablation.num_pieces):
        seeds = [(seed << 48) + (piece << 32) + index for index in range(len(samples))]
        tasks = [Task(*each) for each in zip(seen, lengths, seeds, strict=True)]
        composed = compose_all(network, engines, sampling, tasks)
        music = [evaluator.hear_codes(codes) for codes in composed]
        pairs = [
            make_pair(sample.key, video, heard)
            for sample, video, heard in zip(samples, videos, music, strict=True)
        ]
        rounds.append(fit(measure(evaluator.model, pairs)))
    return {name: float(np.mean([found[name] for found in rounds])) for name in rounds[0]}


def fit(agreement: Agreement) -> dict[str, float]:
    """Of the figures, those in the table."""
    figures = agreement.figures
    found = {name: figures[name]["true"].value for name in ("accuracy", "cmr", "ta")}
    return found | {"accuracy_shuffled": figures["accuracy"]["shuffled"].value}


class Task(NamedTuple):
    """A piece to compose."""

    conditions: Tensor  # [1, M, dim]
    num_code_frames: int
    seed: int


def compose_all(
    network: GVMGen, engines: Engines, sampling: SamplingConfig, tasks: Sequence[Task]
) -> list[Tensor]:
    """Codes int64 [1, K, T] of each task.

    Several of one length at a time; each has random numbers of its own, so it does not matter which.
    """
    composed: dict[int, Tensor] = {}
    lengths = sorted({task.num_code_frames for task in tasks})
    groups = [[i for i, task in enumerate(tasks) if task.num_code_frames == length] for length in lengths]
    chunks = [group[i : i + ROWS_AT_ONCE] for group in groups for i in range(0, len(group), ROWS_AT_ONCE)]
    for chunk in tqdm(chunks, "composing", unit="batch"):
        rows = torch.cat([tasks[i].conditions for i in chunk])
        length, seeds = tasks[chunk[0]].num_code_frames, [tasks[i].seed for i in chunk]
        with engines.at_work():
            codes = generate_codes(network, rows, length, sampling, seeds, make_engine=engines.make)
        composed |= dict(zip(chunk, codes.split(1), strict=True))
    return [composed[i] for i in range(len(tasks))]


@torch.inference_mode()
def watch(network: GVMGen, sample: Sample, variant: Variant) -> Tensor:
    """Conditions [1, M, dim] of a sample's features, as the variant was trained to see them."""
    seen = averaged(sample) if variant.video_level else sample
    return network.conditions(torch.from_numpy(seen.features)[None, : network.config.window_s])


def test_loss(run: Path) -> dict[str, float]:
    """The last validation of a training."""
    lines = [json.loads(line) for line in RunFolder(run).metrics.read_text().splitlines()]
    return {"loss": next(line["loss"] for line in reversed(lines) if line["split"] == "test")}


def write_table(ablation: Ablation, truth: Mapping[str, Any]) -> None:
    """`table.md` and `table.json` of what is measured so far."""
    rows = {name: results(ablation, name) for name in ablation.variants}
    write_text(ablation.out / "table.json", json.dumps({"runs": rows, **truth}, indent=2) + "\n")
    write_text(ablation.out / "table.md", markdown(rows, truth["true music"]) + "\n")


def results(ablation: Ablation, name: str) -> Runs:
    paths = {seed: ablation.folder(name, seed) / RESULT for seed in range(ablation.num_seeds)}
    return {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.exists()}


def markdown(rows: Mapping[str, Runs], truth: Mapping[str, Any]) -> str:
    """A row a variant: means over seeds with 95 % intervals, and the true music's figures last.

    Of loss and CMR also the difference to the base with the same seed: a seed's batches are the same for all,
    and how lucky they are moves the figures more than most variants do.
    """
    lines = [
        f"{truth['num_pairs']} test videos, batches of {truth['batch_size']}; chance: pairs found and CMR "
        f"{truth['chance']:.3f}, TA {truth['ta_chance']:.3f}. Mean over seeds ± 95 % interval (Student's t).",
        "",
        "| | seeds | "
        + " | ".join([*MEASURES.values(), *(f"{MEASURES[m]} - base's" for m in PAIRED)])
        + " |",
        "|---|---|" + "---|" * (len(MEASURES) + len(PAIRED)),
    ]
    base = rows.get(BASE, {})
    for name, runs in rows.items():
        cells = [interval([run[measure] for run in runs.values()]) for measure in MEASURES]
        shared = [] if name == BASE else sorted(runs.keys() & base.keys())
        cells += [interval([runs[seed][m] - base[seed][m] for seed in shared]) for m in PAIRED]
        lines.append(f"| {VARIANTS[name].title} | {len(runs)} | " + " | ".join(cells) + " |")
    true = {name: truth["figures"][name]["true"]["value"] for name in ("accuracy", "cmr", "ta")}
    true["accuracy_shuffled"] = truth["figures"]["accuracy"]["shuffled"]["value"]
    cells = [f"{true[name]:.3f}" if name in true else "" for name in MEASURES] + [""] * len(PAIRED)
    return "\n".join([*lines, "| the videos' own music | | " + " | ".join(cells) + " |"])


def interval(values: Sequence[float]) -> str:
    """Mean and half the 95 % interval of a few values."""
    if not values:
        return ""
    mean = float(np.mean(values))
    if len(values) == 1:
        return f"{mean:.3f}"
    quantile = float(needed("scipy.stats").t.ppf(0.975, len(values) - 1))
    return f"{mean:.3f} ± {quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values)):.3f}"
