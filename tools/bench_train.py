"""The trainer against what one would do without it: a cache, audiocraft's LM, this machine's limits.

    python tools/bench_train.py [--json FILE] [--only small,large,loop,loader]

Weights and data are random, of the real shapes; rivals run one after another in each round, so that a busy
machine slows them alike. `large` has no optimiser, which would not fit this machine: its step is forward and
backward. `small` takes 12 GB and about a minute a step on two cores, `large` 18 GB.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import open_clip
import torch
import typer
from bench_loader import make_data, measure
from torch import Tensor, nn

from gvmgen.config import ModelConfig, TrainConfig, model_config
from gvmgen.encoders.presets import ENCODER_PRESETS
from gvmgen.encoders.video import VideoEncoder
from gvmgen.flops import forward_flops, matrix_rate
from gvmgen.model import GVMGen, code_loss
from shards.reader import ShardSet
from shards.spec import CODE_RATE, NUM_PATCHES

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SIDE = 336  # pixels of a frame
FRAMES_AT_ONCE = 8
MATRIX = 4096  # size of the product that is the machine's limit
PARTS = ("small", "large", "loop", "loader")
# A network of the real classes in which every part runs within seconds, to try the benchmark itself.
TINY_SIZES = {"feature_dim": 1024, "dim": 64, "num_layers": 2, "num_heads": 2, "transformation_num_layers": 2}
Figures = dict[str, float]


def main(
    only: Annotated[str, typer.Option(help="Parts to run, with commas between them.")] = ",".join(PARTS),
    seconds: Annotated[int, typer.Option(help="Length of a segment.")] = 30,
    rounds: Annotated[int, typer.Option(help="Steps that are timed.")] = 2,
    samples: Annotated[int, typer.Option(help="Samples for the loader, 35 MB each.")] = 96,
    tiny: Annotated[bool, typer.Option("--tiny", help="Tiny networks: does the benchmark run?")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write flat keys here.")] = None,
) -> None:
    figures: Figures = {}
    for part in only.split(","):
        changes = TINY_SIZES if tiny else {}
        if part in ("small", "large"):
            figures |= bench_step(part, changes, seconds, rounds, has_optimiser=part == "small")
        elif part == "loop":
            figures |= bench_loop(changes, seconds, rounds)
        elif part == "loader":
            figures |= bench_loader(samples, rounds)
        else:
            raise typer.BadParameter(f"{part!r} is unknown; known: {', '.join(PARTS)}")
    for name, value in figures.items():
        typer.echo(f"{name:32} {value:10.4g}")
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


def bench_step(
    preset: str, changes: dict[str, Any], seconds: int, rounds: int, has_optimiser: bool
) -> Figures:
    """One segment a step in bfloat16: from cached features, with CLIP in the loop, with audiocraft's LM."""
    config = ModelConfig.from_json(model_config(preset).to_json() | changes)
    batch = one_segment(config, seconds)
    rivals: dict[str, Callable[[], object]] = {}
    network = GVMGen(config).train()
    network.decoder.recompute_layers = not has_optimiser
    cached = step_of(network, lambda *inputs: code_loss(*logits_of(network, inputs)), has_optimiser)
    rivals["cached"] = lambda: cached(*batch)
    frames = torch.randint(0, 256, (seconds, 3, SIDE, SIDE), dtype=torch.uint8)
    plain, ours = towers()
    rivals["uncached"] = lambda: cached(plain(frames)[None], batch[1])
    rivals["uncached_fast_clip"] = lambda: cached(ours(frames)[None], batch[1])
    if preset == "small":
        theirs = step_of(*audiocraft_lm(config, network), has_optimiser)
        rivals["audiocraft"] = lambda: theirs(*batch)
    taken = alternating(rivals, rounds)
    flops = 3 * forward_flops(config, seconds, NUM_PATCHES, seconds * CODE_RATE)
    figures = {f"{preset}.{name}.step_s": statistics.median(times) for name, times in taken.items()}
    for name in taken:
        if name != "cached":
            figures[f"{preset}.cached_vs_{name}"] = ratio(taken[name], taken["cached"])
    if preset == "small":
        figures["small.bf16.vs_audiocraft"] = figures.pop("small.cached_vs_audiocraft")
        rate = matrix_rate(CPU, torch.bfloat16, MATRIX)
        figures["machine.bf16.gflop_per_s"] = rate / 1e9
        figures["small.bf16.flop_utilisation"] = flops / figures["small.cached.step_s"] / rate
    return figures


def one_segment(config: ModelConfig, seconds: int) -> tuple[Tensor, Tensor]:
    features = torch.randn(1, seconds, NUM_PATCHES, config.feature_dim).half()
    codes = torch.randint(config.codebook_size, (1, config.num_codebooks, seconds * CODE_RATE))
    return features, codes


def logits_of(network: GVMGen, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    features, codes = inputs
    logits, mask = network(features, codes)
    return logits, codes, mask


def step_of(
    model: nn.Module, loss_of: Callable[..., Tensor], has_optimiser: bool
) -> Callable[[Tensor, Tensor], None]:
    """A whole training step: forward, backward, clipping, AdamW."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5) if has_optimiser else None

    def step(features: Tensor, codes: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(features, codes)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if optimiser is not None:
            optimiser.step()
        model.zero_grad()

    return step


def towers() -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """ViT-L/14@336 on uint8 [F, 3, 336, 336]: open_clip's own in bfloat16, and ours; [F, P, D] each."""
    visual = open_clip.CLIP(**open_clip.get_model_config(ENCODER_PRESETS["small"].clip_model)).visual.eval()
    ours = VideoEncoder(visual, CPU, torch.bfloat16)
    theirs = open_clip.CLIP(**open_clip.get_model_config(ENCODER_PRESETS["small"].clip_model)).visual.eval()
    theirs.to(torch.bfloat16)

    @torch.inference_mode()
    def plain(frames: Tensor) -> Tensor:
        pixels = (piece.to(torch.bfloat16) / 255 for piece in frames.split(FRAMES_AT_ONCE))
        return torch.cat([theirs.transformer(theirs._embeds(piece)) for piece in pixels]).half()

    def fast(frames: Tensor) -> Tensor:
        return torch.cat([ours.encode(piece) for piece in frames.split(FRAMES_AT_ONCE)]).half()

    return lambda frames: plain(frames).clone(), lambda frames: fast(frames).clone()


def audiocraft_lm(config: ModelConfig, network: GVMGen) -> tuple[nn.Module, Callable[..., Tensor]]:
    """The same step with audiocraft's LM in the decoder's place, and our feature transformation before it."""
    from audiocraft.models.lm import LMModel
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
    from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider

    fuser = {"cross": ["description"], "sum": [], "prepend": [], "input_interpolate": []}
    lm = LMModel(
        DelayedPatternProvider(config.num_codebooks),
        ConditioningProvider({}),
        ConditionFuser(fuser),
        n_q=config.num_codebooks,
        card=config.codebook_size,
        dim=config.dim,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        hidden_scale=config.feed_forward_scale,
        cross_attention=True,
        norm="layer_norm",
        norm_first=True,
        bias_proj=False,
        bias_ff=False,
        bias_attn=False,
        causal=True,
        positional_embedding="sin",
        activation="gelu",
    ).train()
    whole = nn.ModuleDict({"transformation": network.transformation, "lm": lm})

    def loss_of(features: Tensor, codes: Tensor) -> Tensor:
        conditions = network.conditions(features)
        seen = torch.ones(conditions.shape[:2], dtype=torch.long)
        output = lm.compute_predictions(codes, [], condition_tensors={"description": (conditions, seen)})
        return code_loss(output.logits, codes, output.mask)

    return whole, loss_of


def alternating(rivals: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each rival in each round, after a round to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds + 1):
        for name, run in rivals.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in taken.items()}


def ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def bench_loop(changes: dict[str, Any], seconds: int, rounds: int) -> Figures:
    """The real command on shards of full-size samples: waiting for data, saving, resuming."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_data(folder / "shards", 12)
        config = TrainConfig(
            data=scratch,
            runs=scratch,
            run="bench",
            model=changes,
            batch_size=6,
            grad_accum=6,
            crop_s=min(seconds, 30),
            precision="bf16",
            steps=2 * rounds,
            warmup_steps=0,
            save_every=rounds,
            eval_every=0,
            log_every=1,
            tracker="none",
        )
        run_command(config, folder)
        lines = [json.loads(line) for line in (folder / "bench" / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["split"] == "train"]
        resume_s = seconds_to_resume(replace(config, steps=2 * rounds + 1), folder)
    step_s = statistics.median(line["step_s"] for line in steps)
    return {
        "loop.step_s": step_s,
        "save.stall_in_steps": max(line["save_s"] for line in steps) / step_s,
        "data_wait_share": statistics.median(line["data_wait"] for line in steps),
        "resume_s": resume_s,
    }


def run_command(config: TrainConfig, folder: Path) -> None:
    subprocess.run(command(config, folder), check=True, stderr=subprocess.DEVNULL)


def command(config: TrainConfig, folder: Path) -> list[str]:
    settings = folder / "settings.json"
    settings.write_text(json.dumps(asdict(config)))
    return [sys.executable, str(ROOT / "gvm-train"), "--config", str(settings), "--accept-changes"]


def seconds_to_resume(config: TrainConfig, folder: Path) -> float:
    """From the command to where its first step begins."""
    start = time.perf_counter()
    with subprocess.Popen(command(config, folder), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "Resumes at step" in line:
                taken = time.perf_counter() - start
                process.kill()
    return taken


def bench_loader(samples: int, rounds: int) -> Figures:
    with tempfile.TemporaryDirectory() as scratch:
        make_data(Path(scratch), samples)
        figures = measure(ShardSet.open(Path(scratch)), Path(scratch), rounds, threads=4)
    return {name: value for name, value in figures.items() if ".vs_" in name}


if __name__ == "__main__":
    typer.run(main)
