"""The trainer against what one would do without it: a cache, audiocraft's LM, this machine's limits.

    python tools/bench_train.py [--parts small,large,audiocraft,loop,loader] [--json FILE]

small, large   a step from cached features, and the same step with CLIP ViT-L/14@336 before it
audiocraft     a step with our decoder and with audiocraft's, in bf16 and in fp32; ours in shares of this
               machine's matrix rate in that precision. Which is faster depends on the processor
loop           the real command: waiting for data, saving, resuming
loader         batches out of shards, as tools/bench_loader.py

A part takes two to ten minutes on two cores and up to 18 GB; --json adds what is measured to the file, so
the parts may run one by one. Weights and data are random, of the real shapes, one segment of 30 s a step, in
bfloat16 unless said. Rivals run in turn in each round, so that a busy machine slows them alike. `large` has
bfloat16 weights and no optimiser, as more does not fit this machine: its step is forward, backward and
clipping. audiocraft's decoder has MusicGen's own settings.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import open_clip
import torch
import typer
from bench_loader import make_data, measure
from torch import Tensor, nn

from gvmgen.config import ModelConfig, TrainConfig, model_config
from gvmgen.encoders.presets import ENCODER_PRESETS
from gvmgen.encoders.video import VideoEncoder
from gvmgen.flops import forward_flops
from gvmgen.machine import keep_freed_memory, matrix_rate
from gvmgen.model import GVMGen, code_loss
from shards.reader import ShardSet
from shards.spec import CODE_RATE, NUM_PATCHES

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SIDE = 336  # pixels of a frame
FRAMES_AT_ONCE = 8
MATRIX = 4096  # size of the product that is the machine's limit
LOOP_CROP_S = (
    5  # six such stretches are one segment's work: a step of the whole batch in a fraction of its time
)
LOOP_STEPS = 4
SETTLING, SETTLED = 2, 3  # steps before those that count, and how many count
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
PARTS = ("small", "large", "audiocraft", "loop", "loader")
# A network of the real classes in which every part runs within seconds, to try the benchmark itself.
TINY_SIZES = {"feature_dim": 1024, "dim": 64, "num_layers": 2, "num_heads": 2, "transformation_num_layers": 2}
Figures = dict[str, float]
Step = Callable[[Tensor, Tensor], None]


def main(
    parts: Annotated[str, typer.Option(help="What to measure, with commas between.")] = ",".join(PARTS),
    seconds: Annotated[int, typer.Option(help="Length of a segment.")] = 30,
    rounds: Annotated[int, typer.Option(help="Steps that are timed.")] = 2,
    samples: Annotated[int, typer.Option(help="Samples for the loader, 35 MB each.")] = 48,
    tiny: Annotated[bool, typer.Option("--tiny", help="Tiny networks: does the benchmark run?")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Add flat keys to this file.")] = None,
) -> None:
    changes: dict[str, Any] = TINY_SIZES if tiny else {}
    benches: dict[str, Callable[[], Figures]] = {
        "small": lambda: bench_cache("small", changes, seconds, rounds),
        "large": lambda: bench_cache("large", changes, seconds, rounds),
        "audiocraft": lambda: bench_audiocraft(changes, seconds, rounds),
        "loop": lambda: bench_loop(changes),
        "loader": lambda: bench_loader(samples, rounds),
    }
    if unknown := set(parts.split(",")) - set(benches):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: unknown; known: {', '.join(PARTS)}")
    for part in parts.split(","):
        figures = benches[part]()
        for name, value in figures.items():
            typer.echo(f"{name:36} {value:10.4g}")
        if json_file:
            known = json.loads(json_file.read_text()) if json_file.exists() else {}
            json_file.write_text(json.dumps(known | figures, indent=2) + "\n")


def bench_cache(preset: str, changes: dict[str, Any], seconds: int, rounds: int) -> Figures:
    """A step whose features are there already, and the same step behind CLIP: an uncached one is both."""
    config = ModelConfig.from_json(model_config(preset).to_json() | changes)
    network = GVMGen(config).train().to(torch.bfloat16 if preset == "large" else torch.float32)
    step = step_of(network, our_loss(network), has_optimiser=preset != "large")
    frames = torch.randint(0, 256, (seconds, 3, SIDE, SIDE), dtype=torch.uint8)
    plain, ours = towers()
    clips = {"uncached": plain} | ({"uncached_fast_clip": ours} if preset == "small" else {})
    for clip in clips.values():
        clip(frames[:FRAMES_AT_ONCE])
    features, codes = one_segment(config, seconds)
    step(features[:, :2], codes[..., : 2 * CODE_RATE])  # warms up: memory for gradients and moments
    cached_s: list[float] = []
    clip_s: dict[str, list[float]] = {name: [] for name in clips}
    for _ in range(rounds):
        for name, clip in clips.items():
            clip_s[name].append(timed(partial(encode_into, features, clip, frames)))
        cached_s.append(timed(lambda: step(features, codes)))
    figures = {f"{preset}.cached.step_s": median(cached_s)}
    for name, times in clip_s.items():
        ratios = [(a + b) / b for a, b in zip(times, cached_s, strict=True)]
        figures[f"{preset}.{name}.step_s"] = median(times) + median(cached_s)
        figures[f"{preset}.cached_vs_{name}"] = median(ratios)
    return figures


def encode_into(features: Tensor, clip: Callable[[Tensor], Tensor], frames: Tensor) -> None:
    """frames: uint8 [F, 3, 336, 336]; features: [1, F, P, D]."""
    features[0].copy_(clip(frames))


def bench_audiocraft(changes: dict[str, Any], seconds: int, rounds: int) -> Figures:
    """Steps of `small` with our decoder and with audiocraft's, each in a process of its own, in turn."""
    config = ModelConfig.from_json(model_config("small").to_json() | changes)
    flops = 3 * forward_flops(config, seconds, NUM_PATCHES, seconds * CODE_RATE)
    figures: Figures = {}
    for name, dtype in PRECISIONS.items():
        ours: list[tuple[float, float]] = []
        theirs: list[tuple[float, float]] = []
        for _ in range(rounds):
            ours.append(in_new_process(step_with_our_decoder, config, seconds, dtype))
            theirs.append(in_new_process(step_with_audiocraft, config, seconds, dtype))
        figures |= {
            f"small.{name}.step_s": median(step_s for step_s, _ in ours),
            f"small.{name}.audiocraft.step_s": median(step_s for step_s, _ in theirs),
            f"small.{name}.vs_audiocraft": median(b / a for (a, _), (b, _) in zip(ours, theirs, strict=True)),
            f"machine.{name}.gflop_per_s": median(rate for _, rate in ours) / 1e9,
            f"small.{name}.flop_utilisation": median(flops / step_s / rate for step_s, rate in ours),
        }
    return figures


def in_new_process(function: Callable[..., Any], *arguments: object) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def step_with_our_decoder(config: ModelConfig, seconds: int, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of a step, and FLOP/s of matrix products beside it, with the trainer's hold on memory."""
    keep_freed_memory()
    network = GVMGen(config).train()
    return settled_step(step_of(network, our_loss(network), dtype), config, seconds, dtype)


def step_with_audiocraft(config: ModelConfig, seconds: int, dtype: torch.dtype) -> tuple[float, float]:
    return settled_step(step_of(*audiocraft_lm(config), dtype), config, seconds, dtype)


def settled_step(step: Step, config: ModelConfig, seconds: int, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of a step once steps have settled, and the matrix rate after it.

    A process's first steps still ask the system for memory: each takes longer than the one after it.
    """
    batch = one_segment(config, seconds)
    times = [timed(lambda: step(*batch)) for _ in range(SETTLING + SETTLED)]
    return median(times[SETTLING:]), matrix_rate(CPU, dtype, MATRIX)


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def one_segment(config: ModelConfig, seconds: int) -> tuple[Tensor, Tensor]:
    features = torch.randn(1, seconds, NUM_PATCHES, config.feature_dim).half()
    codes = torch.randint(config.codebook_size, (1, config.num_codebooks, seconds * CODE_RATE))
    return features, codes


def our_loss(network: GVMGen) -> Callable[[Tensor, Tensor], Tensor]:
    def loss_of(features: Tensor, codes: Tensor) -> Tensor:
        logits, mask = network(features, codes)
        return code_loss(logits, codes, mask)

    return loss_of


def step_of(
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    dtype: torch.dtype = torch.bfloat16,
    has_optimiser: bool = True,
) -> Step:
    """A whole training step: forward, backward, clipping, AdamW. dtype: of the products; float32 for all."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True) if has_optimiser else None

    def step(features: Tensor, codes: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
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
    theirs = copy.deepcopy(visual).to(torch.bfloat16)
    ours = VideoEncoder(visual, CPU, torch.bfloat16)

    @torch.inference_mode()
    def plain(frames: Tensor) -> Tensor:
        pixels = (piece.to(torch.bfloat16) / 255 for piece in frames.split(FRAMES_AT_ONCE))
        return torch.cat([theirs.transformer(theirs._embeds(piece)) for piece in pixels])

    def fast(frames: Tensor) -> Tensor:
        return torch.cat([ours.encode(piece) for piece in frames.split(FRAMES_AT_ONCE)])

    return plain, fast


def audiocraft_lm(config: ModelConfig) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    """The same step with audiocraft's LM in the decoder's place, and our feature transformation before it."""
    from audiocraft.models.lm import LMModel
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
    from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider
    from audiocraft.modules.transformer import set_efficient_attention_backend

    set_efficient_attention_backend("torch")
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
        memory_efficient=True,  # as MusicGen's own configuration
        dropout=config.dropout,
        positional_embedding="sin",
        activation="gelu",
    ).train()
    transformation = GVMGen(replace(config, num_layers=1)).transformation.train()
    whole = nn.ModuleDict({"transformation": transformation, "lm": lm})

    def loss_of(features: Tensor, codes: Tensor) -> Tensor:
        conditions = transformation(features)
        seen = torch.ones(conditions.shape[:2], dtype=torch.long)
        output = lm.compute_predictions(codes, [], condition_tensors={"description": (conditions, seen)})
        return code_loss(output.logits, codes, output.mask)

    return whole, loss_of


def bench_loop(changes: dict[str, Any]) -> Figures:
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
            crop_s=LOOP_CROP_S,
            precision="bf16",
            steps=LOOP_STEPS,
            warmup_steps=0,
            save_every=LOOP_STEPS // 2,
            eval_every=0,
            log_every=1,
            tracker="none",
        )
        subprocess.run(command(config, folder), check=True, stderr=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (folder / "bench" / "metrics.jsonl").read_text().splitlines()]
        steps = lines[1:]  # the first one warms up
        resume_s = seconds_to_resume(replace(config, steps=LOOP_STEPS + 1), folder)
    step_s = median(line["step_s"] for line in steps)
    return {
        "loop.step_s": step_s,
        "save.stall_in_steps": max(line["save_s"] for line in steps) / step_s,
        "data_wait_share": mean(line["data_wait"] for line in steps),
        "resume_s": resume_s,
    }


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
