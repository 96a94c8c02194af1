"""Measure decoding beside its peers and this machine's limit, in one run.

Run: python tools/bench_decoding.py [--sizes small,large] [--no-peers] [--model FOLDER] [--json FILE]
A step is one of 50 a second, for two rows (guidance), with its sampling. `steps_per_s` is the average over
30 s of music, from steps around 50, 800 and 1400: their mean is the piece's middle, and a step's time grows
evenly. `piece_30s_seconds` is a whole piece. The limit is what a step must read of weights and caches, over
the rate at which this machine reads memory, measured between the steps. Weights are random, of the real
sizes; `--model` names trained ones for the quality of int8 on `--data`. audiocraft and transformers compute
the same shape; where one is not installed, its figures are left out.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gvmgen.checkpoint import load_model
from gvmgen.config import ModelConfig, model_config
from gvmgen.decoding import PlainEngine, SamplingConfig, generate_codes, guided_conditions, sample_codes
from gvmgen.delay import decoder_inputs
from gvmgen.fast import abi
from gvmgen.fast.engine import CompiledEngine, PackedDecoder, Precision, large_empty
from gvmgen.model import GVMGen
from shards.reader import ShardSet

POSITIONS = (50, 800, 1400)
PIECE_FRAMES = 1500  # 30 s; 1503 steps with the delays
MEMORY_LENGTH = 30  # frames
NUM_TAKES = 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SAMPLING = SamplingConfig()

Figures = dict[str, float]


def shown(figures: Figures) -> Figures:
    """The same, printed as soon as it is known: the whole takes minutes."""
    for name, value in figures.items():
        print(f"{name:44} {value:10.4g}", flush=True)
    return figures


class Clock:
    """Times between calls of itself, as a progress callback."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.ticks.append(time.perf_counter())
        return False  # to transformers: not done yet

    def step_seconds(self) -> float:
        return median(b - a for a, b in zip(self.ticks, self.ticks[1:], strict=False))


class Peer(Protocol):
    def __call__(self, position: int, num_steps: int) -> float:
        """Median seconds of some steps after `position`."""
        ...


class Machine:
    """How fast memory is read here, by the threads that decode."""

    def __init__(self) -> None:
        self.buffer = large_empty(1 << 28, dtype=torch.uint8).fill_(1)  # far more than the processor's caches

    def bytes_per_s(self) -> float:
        begin = time.perf_counter()
        abi.load().read_all(self.buffer.data_ptr(), self.buffer.nbytes, torch.get_num_threads())
        return self.buffer.nbytes / (time.perf_counter() - begin)


def random_network(size: str) -> GVMGen:
    """A network whose decoder has the real size; decoding does not run the feature transformation."""
    torch.manual_seed(0)
    return GVMGen(replace(model_config(size), transformation_num_layers=1)).eval()


def random_conditions(dim: int, num_takes: int = 1) -> Tensor:
    """[R, M, dim]: takes that see a video, then the same takes without."""
    return guided_conditions(torch.randn(num_takes, MEMORY_LENGTH, dim), SAMPLING.guidance)


# ---- ours --------------------------------------------------------------------------------------------------


def filled_engine(packed: PackedDecoder, num_takes: int = 1) -> CompiledEngine:
    """An engine whose caches hold a piece, so that steps can be taken anywhere in it."""
    engine = packed.engine(random_conditions(packed.config.dim, num_takes), PIECE_FRAMES + 16)
    for tensor in engine.kept:
        tensor.fill_(1)  # memory that was never written is not read from memory either
    return engine


def our_step(engine: CompiledEngine, position: int, num_steps: int) -> float:
    """Median seconds of a step with its sampling, after `position`."""
    engine.num_read, clock = position, Clock()
    seeds = list(range(engine.num_rows // 2))
    prompt = torch.empty(len(seeds), engine.config.num_codebooks, 0, dtype=torch.int64)
    sample_codes(
        engine, num_steps, SAMPLING, seeds, prompt=prompt, pad_id=engine.config.pad_id, progress=clock
    )
    return clock.step_seconds()


def bench_ours(network: GVMGen, name: str, precision: Precision, machine: Machine, num_steps: int) -> Figures:
    """Steps a second, and the fraction of the limit, at each position."""
    packed = PackedDecoder(network, precision, release=False)
    engine, figures, seconds = filled_engine(packed), {}, []
    for position in POSITIONS:
        times, rates = [], []
        for _ in range(3):  # memory's speed changes with what the neighbours do, so it is measured in between
            times.append(our_step(engine, position, num_steps))
            rates.append(machine.bytes_per_s())
        seconds.append(median(times))
        limit = (packed.bytes_per_step + engine.cache_bytes) / median(rates)
        figures[f"{name}.steps_per_s_at_{position}"] = 1 / seconds[-1]
        figures[f"{name}.limit_fraction_at_{position}"] = limit / seconds[-1]
        figures["machine.read_gb_per_s"] = median(rates) / 1e9
    return figures | {f"{name}.steps_per_s": 1 / mean(seconds)}


def bench_piece(network: GVMGen) -> float:
    """Seconds for 30 s of music in int8, with the packing of the weights left out."""
    packed = PackedDecoder(network, "int8", release=False)
    conditions = torch.randn(1, MEMORY_LENGTH, network.config.dim)
    begin = time.perf_counter()
    generate_codes(network, conditions, PIECE_FRAMES, SAMPLING, seeds=[0], make_engine=packed.engine)
    return time.perf_counter() - begin


def bench_takes(network: GVMGen, num_steps: int) -> float:
    """What eight takes cost against one, averaged over a piece."""
    packed = PackedDecoder(network, "int8", release=False)
    costs = []
    for num_takes in (NUM_TAKES, 1):
        engine = filled_engine(packed, num_takes)
        costs.append(mean(our_step(engine, position, num_steps) for position in POSITIONS))
    return costs[0] / costs[1]


# ---- peers -------------------------------------------------------------------------------------------------


def bench_peer(peer: Peer, name: str, num_steps: int) -> Figures:
    seconds = [peer(position, num_steps) for position in POSITIONS]
    figures = {f"{name}.steps_per_s_at_{p}": 1 / s for p, s in zip(POSITIONS, seconds, strict=True)}
    return figures | {f"{name}.steps_per_s": 1 / mean(seconds)}


def audiocraft_peer(config: ModelConfig, dtype: torch.dtype) -> Peer:
    from audiocraft.models.lm import LMModel
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
    from audiocraft.modules.conditioners import (
        ConditionFuser,
        ConditioningAttributes,
        ConditioningProvider,
        TextConditioner,
    )
    from audiocraft.modules.transformer import set_efficient_attention_backend

    # as MusicGen is set; otherwise each step projects all that came before anew
    set_efficient_attention_backend("torch")

    class Frames(TextConditioner):
        """A visual memory in the place of a text."""

        def tokenize(self, x: list[str | None]) -> Tensor:
            return torch.randn(len(x), MEMORY_LENGTH, config.dim, dtype=dtype)

        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return inputs, torch.ones(inputs.shape[:2], dtype=dtype)

    model = LMModel(
        DelayedPatternProvider(config.num_codebooks),
        ConditioningProvider({"description": Frames(config.dim, config.dim)}),
        ConditionFuser({"cross": ["description"], "sum": [], "prepend": [], "input_interpolate": []}),
        n_q=config.num_codebooks,
        card=config.codebook_size,
        dim=config.dim,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        hidden_scale=config.feed_forward_scale,
        norm="layer_norm",
        norm_first=True,
        bias_proj=False,
        bias_ff=False,
        bias_attn=False,
        causal=True,
        activation="gelu",
        cross_attention=True,
        memory_efficient=True,
        cfg_coef=SAMPLING.guidance,
    )
    model = model.eval().to(dtype)

    def steps(position: int, num_steps: int) -> float:
        clock = Clock()
        prompt = torch.randint(config.codebook_size, (1, config.num_codebooks, position))
        conditions = [ConditioningAttributes(text={"description": ""})]
        model.generate(prompt, conditions, max_gen_len=position + num_steps, callback=clock)
        return clock.step_seconds()

    return steps


def transformers_peer(config: ModelConfig, dtype: torch.dtype) -> Peer:
    from transformers import MusicgenConfig, MusicgenForConditionalGeneration, StoppingCriteriaList
    from transformers.modeling_outputs import BaseModelOutput

    little = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    decoder = {
        "vocab_size": config.codebook_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "ffn_dim": config.dim * config.feed_forward_scale,
        "num_codebooks": config.num_codebooks,
        "pad_token_id": config.pad_id,
        "bos_token_id": config.pad_id,
    }
    settings = MusicgenConfig(
        text_encoder={"model_type": "t5", **little},
        audio_encoder={"model_type": "encodec", "num_filters": 2, "hidden_size": 8},
        decoder={"model_type": "musicgen_decoder", **decoder},
    )
    model = MusicgenForConditionalGeneration(settings).eval().to(dtype)
    # generate() ends in the codec, which is no part of a decoder's step and refuses the ids of random weights
    model.audio_encoder.decode = lambda codes, **_: SimpleNamespace(audio_values=codes)

    def steps(position: int, num_steps: int) -> float:
        clock = Clock()
        prompt = torch.randint(config.codebook_size, (config.num_codebooks, position))
        memory = torch.randn(1, MEMORY_LENGTH, little["d_model"], dtype=dtype)
        model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=memory),
            attention_mask=torch.ones(1, MEMORY_LENGTH, dtype=torch.long),
            decoder_input_ids=prompt,
            max_new_tokens=num_steps,
            do_sample=True,
            top_k=SAMPLING.top_k,
            guidance_scale=SAMPLING.guidance,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        return clock.step_seconds()

    return steps


PEERS: dict[str, Callable[[ModelConfig, torch.dtype], Peer]] = {
    "audiocraft": audiocraft_peer,
    "transformers": transformers_peer,
}


def bench_peers(size: str, num_steps: int) -> Figures:
    figures: Figures = {}
    for library, make_peer in PEERS.items():
        if importlib.util.find_spec(library) is None:
            print(f"{library} is not installed: its figures are left out", flush=True)
            continue
        for precision, dtype in DTYPES.items():
            name, peer = f"{library}.{size}.{precision}", make_peer(model_config(size), dtype)
            figures |= shown(bench_peer(peer, name, num_steps))
            del peer
            gc.collect()
    return figures


def ratios(size: str, figures: Figures) -> Figures:
    """How many times as fast as each peer we are, on average over a piece."""
    pairs = [("fp32", "fp32"), ("bf16", "bf16"), ("int8", "fp32"), ("int8", "bf16")]
    result = {}
    for library in PEERS:
        for ours, theirs in pairs:
            peer = figures.get(f"{library}.{size}.{theirs}.steps_per_s")
            if peer is not None:
                suffix = "" if ours == theirs else f"_{theirs}"
                ratio = figures[f"{size}.{ours}.steps_per_s"] / peer
                result[f"{size}.{ours}.vs_{library}{suffix}"] = ratio
    return result


# ---- quality -----------------------------------------------------------------------------------------------


def bench_quality(network: GVMGen, name: str, conditions: Tensor, codes: Tensor) -> Figures:
    """What rounding does to the logits of given codes int64 [R, K, T]; conditions: [R, M, dim]."""
    inputs, targets = decoder_inputs(codes, network.config.pad_id), codes[:, 0]
    exact = stepwise(PlainEngine(network, conditions, inputs.shape[2]), inputs)
    figures = {}
    for precision in ("bf16", "int8"):
        packed = PackedDecoder(network, precision, release=False)
        rounded = stepwise(packed.engine(conditions, inputs.shape[2]), inputs)
        agreement = (rounded.argmax(-1) == exact.argmax(-1)).float().mean()
        figures[f"{name}.{precision}.top1_agreement"] = float(agreement)
        figures[f"{name}.{precision}.logit_error"] = float((rounded - exact).abs().mean())
        figures[f"{name}.{precision}.logit_error_relative"] = float(
            (rounded - exact).abs().mean() / exact.std()
        )
        change = surprise(rounded, targets) - surprise(exact, targets)
        figures[f"{name}.{precision}.cross_entropy_change"] = change
    return figures


def stepwise(engine: Any, inputs: Tensor) -> Tensor:
    """Logits [R, K, S, V] of every step."""
    return torch.stack([engine.prefill(inputs[:, :, step, None]) for step in range(inputs.shape[2])], dim=2)


def surprise(logits: Tensor, codes: Tensor) -> float:
    """Mean cross entropy of the first codebook's codes [R, T], which no delay moves; nats."""
    return float(nn.functional.cross_entropy(logits[:, 0].flatten(0, 1), codes.flatten()))


def bench_trained(model: Path, data: Path, num_segments: int = 2) -> Figures:
    """Quality on real sequences: a trained model, and segments of the test split."""
    network, info = load_model(model)
    shards = ShardSet.open(data, split="test")
    figures: list[Figures] = []
    for index in range(min(num_segments, len(shards))):
        sample = shards.read(index)
        features, codes = torch.from_numpy(sample.features), torch.from_numpy(sample.codes).long()
        conditions = network.conditions(features[None].float())
        figures.append(bench_quality(network, info.preset, conditions, codes[None]))
    return {name: mean(f[name] for f in figures) for name in figures[0]}


# ---- all of it ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def bench_size(size: str, num_steps: int, machine: Machine) -> Figures:
    network = random_network(size)
    figures: Figures = {}
    for precision in ("int8", "bf16", "fp32"):
        figures |= shown(bench_ours(network, f"{size}.{precision}", precision, machine, num_steps))
        gc.collect()
    figures |= shown({f"{size}.fastest.piece_30s_seconds": bench_piece(network)})
    if size == "small":
        figures |= shown({"takes8.cost_ratio": bench_takes(network, num_steps)})
        codes = torch.randint(network.config.codebook_size, (1, network.config.num_codebooks, 64))
        conditions = random_conditions(network.config.dim)[:1]
        figures |= shown(bench_quality(network, size, conditions, codes))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="small,large", help="presets, with commas; default small,large")
    parser.add_argument("--steps", type=int, default=16, help="steps timed at each position; default 16")
    parser.add_argument("--no-peers", action="store_true", help="leave audiocraft and transformers out")
    parser.add_argument("--model", type=Path, help="a trained model's folder, for the quality of int8")
    parser.add_argument("--data", type=Path, default=Path("data/shards"), help="shards for --model")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    machine = Machine()
    figures: Figures = {}
    for size in options.sizes.split(","):
        figures |= bench_size(size, options.steps, machine)
        if not options.no_peers:
            figures |= bench_peers(size, options.steps)
            figures |= shown(ratios(size, figures))
    if options.model:
        figures |= shown(bench_trained(options.model, options.data))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
