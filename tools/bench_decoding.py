"""Measure decoding beside its peers and this machine's limit, in one run.

Run: python tools/bench_decoding.py [--sizes small,large] [--parts ours,audiocraft,transformers] [--json FILE]
A step is one of 50 a second, for two rows (guidance), with its sampling. `steps_per_s` is the average over
30 s of music, from steps around 50, 800 and 1400: their mean is the piece's middle, and a step's time grows
evenly. `piece_30s_seconds` is a whole piece. The limit: after each step the same threads read the very memory
that the step had to read, weights and past, and do nothing else; `limit_fraction` is the median, over the
steps, of the reading's time before and after a step over the step's own. Each take has a past of its own, so
eight must read `takes8.bytes_ratio` times what one must. `beyond_mb` is what a process that loads a model
and composes takes at most beyond its packed weights and caches; `import_mb` of it came with PyTorch itself.
`beyond_anonymous_mb` leaves out what is mapped from files, mostly libraries: the system can drop that.

Weights are random, of the real sizes; `--model` names trained ones for the quality of int8 on `--data`.
audiocraft and transformers compute the same shape; where one is not installed, or memory does not hold a
part, its figures are left out, with the reason. Peers of `large` are timed in the middle of the piece alone,
since they read all that comes before it first, for minutes. Each part says how long it took. `--json` adds
to what the file holds, so that the parts may run one by one on one machine.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from types import SimpleNamespace
from typing import Any, Protocol, cast

import psutil
import torch
from torch import Tensor, nn

from gvmgen.checkpoint import ModelInfo, load_model, save_model
from gvmgen.config import ModelConfig, model_config
from gvmgen.decoding import PlainEngine, SamplingConfig, generate_codes, guided_conditions, sample_codes
from gvmgen.delay import decoder_inputs
from gvmgen.fast import abi
from gvmgen.fast.engine import CompiledEngine, PackedDecoder, Precision
from gvmgen.model import GVMGen
from shards.reader import ShardSet

POSITIONS = (50, 800, 1400)
PIECE_FRAMES = 1500  # 30 s; 1503 steps with the delays
MEMORY_LENGTH = 30  # frames
NUM_TAKES = 8
PEER_STEPS = 6  # timed at each position; transformers wants more than codebooks
PEER_POSITIONS = {"large": POSITIONS[1:2]}  # else all
SPARE_BYTES = 1.5e9  # of free memory, for all that is not weights and caches
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SAMPLING = SamplingConfig()

Figures = dict[str, float]


def part(name: str, num_bytes: float, work: Callable[[], Figures]) -> Figures:
    """One part of the bench, if memory holds what it needs; its figures are shown when they are known."""
    free = psutil.virtual_memory().available - SPARE_BYTES
    if num_bytes > free:
        print(
            f"{name} is left out: it needs {num_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free", flush=True
        )
        return {}
    begin = time.perf_counter()
    figures = work()
    gc.collect()
    print(f"{name} ({time.perf_counter() - begin:.0f} s)", flush=True)
    for key, value in figures.items():
        print(f"  {key:44} {value:10.4g}", flush=True)
    return figures


class Clock:
    """Times between calls of itself, as a progress callback; `between` is called then, and timed apart."""

    def __init__(self, between: Callable[[], object] = lambda: None) -> None:
        self.between = between
        self.step_times: list[float] = []
        self.between_times: list[float] = []  # before the first step, … after the last
        self.began: float | None = None

    def __call__(self, *_: Any, **__: Any) -> Any:
        now = time.perf_counter()
        if self.began is not None:
            self.step_times.append(now - self.began)
        self.between()
        self.began = time.perf_counter()
        self.between_times.append(self.began - now)
        return False  # to transformers: not done yet

    def step_seconds(self) -> float:
        return median(self.step_times)

    def limit_fraction(self) -> float:
        """What comes between over a step's own time. Neighbours: a machine's speed changes by the second."""
        before, after = self.between_times, self.between_times[1:]
        return median((b + a) / 2 / s for b, a, s in zip(before, after, self.step_times, strict=False))


class Peer(Protocol):
    def __call__(self, position: int, num_steps: int) -> float:
        """Median seconds of some steps after `position`."""
        ...


class Reading:
    """Reads what an engine's next step has to read, with the same threads, and nothing else."""

    def __init__(self, engine: CompiledEngine) -> None:
        self.tensors = engine.read_by_a_step()
        self.num_bytes = sum(tensor.nbytes for tensor in self.tensors)
        self.num_threads = engine.weights.num_threads
        self.spans = (abi.Span * len(self.tensors))(*(abi.Span(t.data_ptr(), t.nbytes) for t in self.tensors))

    def __call__(self) -> None:
        abi.load().read_all(self.spans, len(self.spans), self.num_threads)


def random_network(size: str) -> GVMGen:
    """A network whose decoder has the real size; decoding does not run the feature transformation."""
    torch.manual_seed(0)
    return GVMGen(replace(model_config(size), transformation_num_layers=1)).eval()


def layered_network(size: str) -> GVMGen:
    """The same with one layer's weights in all layers: packed, each layer has its own all the same."""
    torch.manual_seed(0)
    config = replace(model_config(size), transformation_num_layers=1)
    network = GVMGen(replace(config, num_layers=1)).eval()
    network.config = network.decoder.config = config
    network.decoder.layers = cast(Any, nn.ModuleList([network.decoder.layers[0]] * config.num_layers))
    return network


def decoder_bytes(config: ModelConfig, precision: str, num_rows: int = 2) -> float:
    """What a decoder's weights and the caches of a piece take."""
    weights = (
        config.num_layers * 16 * config.dim**2 + 2 * config.num_codebooks * config.codebook_size * config.dim
    )
    cached = config.num_layers * 2 * num_rows * config.dim * PIECE_FRAMES
    return (weights + cached) * {"fp32": 4, "bf16": 2, "int8": 1}[precision]


def random_conditions(dim: int, num_takes: int = 1) -> Tensor:
    """[R, M, dim]: takes that see a video, then the same takes without."""
    return guided_conditions(torch.randn(num_takes, MEMORY_LENGTH, dim), SAMPLING.guidance)


# ---- ours --------------------------------------------------------------------------------------------------


def filled_engine(packed: PackedDecoder, num_takes: int = 1) -> CompiledEngine:
    """An engine whose caches hold a piece, so that steps can be taken anywhere in it."""
    engine = packed.engine(random_conditions(packed.config.dim, num_takes), PIECE_FRAMES + 16)
    for tensor in (*engine.past, *engine.memory):
        tensor.fill_(1)  # memory that was never written is not read from memory either
    return engine


def our_steps(engine: CompiledEngine, position: int, num_steps: int, clock: Clock) -> Clock:
    """Steps with their sampling, after `position`."""
    engine.num_read = position
    seeds = list(range(engine.num_rows // 2))
    prompt = torch.empty(len(seeds), engine.config.num_codebooks, 0, dtype=torch.int64)
    sample_codes(
        engine, num_steps, SAMPLING, seeds, prompt=prompt, pad_id=engine.config.pad_id, progress=clock
    )
    return clock


def bench_ours(packed: PackedDecoder, name: str, num_steps: int) -> Figures:
    """Steps a second, and the fraction of the limit, at each position."""
    engine, figures, seconds = filled_engine(packed), {}, []
    for position in POSITIONS:
        engine.num_read = position
        reading = Reading(engine)
        clock = our_steps(engine, position, num_steps, Clock(reading))
        seconds.append(clock.step_seconds())
        figures[f"{name}.steps_per_s_at_{position}"] = 1 / seconds[-1]
        figures[f"{name}.limit_fraction_at_{position}"] = clock.limit_fraction()
        figures[f"{name}.read_gb_per_s_at_{position}"] = reading.num_bytes / median(clock.between_times) / 1e9
    return figures | {f"{name}.steps_per_s": 1 / mean(seconds)}


def bench_piece(packed: PackedDecoder) -> float:
    """Seconds for 30 s of music, with the packing of the weights left out."""
    conditions = torch.randn(1, MEMORY_LENGTH, packed.config.dim)
    begin = time.perf_counter()
    generate_codes(packed.model, conditions, PIECE_FRAMES, SAMPLING, seeds=[0], make_engine=packed.engine)
    return time.perf_counter() - begin


def bench_takes(packed: PackedDecoder, num_steps: int) -> Figures:
    """What eight takes cost against one, over a whole piece, measured in turns, and what they must read."""
    engines = [filled_engine(packed, num_takes) for num_takes in (NUM_TAKES, 1)]
    costs, read = [0.0, 0.0], [0, 0]
    for position in POSITIONS:
        clocks = [Clock(), Clock()]
        for _ in range(4):
            for engine, clock in zip(engines, clocks, strict=True):
                clock.began = None
                our_steps(engine, position, num_steps // 2, clock)
        costs = [cost + clock.step_seconds() for cost, clock in zip(costs, clocks, strict=True)]
        read = [bytes_ + Reading(engine).num_bytes for bytes_, engine in zip(read, engines, strict=True)]
    return {"takes8.cost_ratio": costs[0] / costs[1], "takes8.bytes_ratio": read[0] / read[1]}


def bench_memory(size: str) -> Figures:
    """MB that a process which loads a model and composes takes beyond packed weights and caches."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), random_network(size), ModelInfo(preset=size))
        command = [sys.executable, "-c", COMPOSE, folder, str(MEMORY_LENGTH), str(PIECE_FRAMES)]
        taken = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return {f"{size}.int8.{name}_mb": num_bytes / 1e6 for name, num_bytes in taken.items()}


COMPOSE = r"""
import json, re, sys
from pathlib import Path
def memory(name):  # ru_maxrss would begin with the parent's
    return int(re.search(name + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
import torch
imported = memory("VmHWM")
from gvmgen.checkpoint import load_model
from gvmgen.decoding import SamplingConfig, generate_codes
from gvmgen.fast.engine import PackedDecoder
network, _ = load_model(Path(sys.argv[1]))
packed = PackedDecoder(network, "int8")
engines = []
def make_engine(conditions, _):
    engines.append(packed.engine(conditions, int(sys.argv[3]) + 3))
    for tensor in engines[0].past: tensor.zero_()
    return engines[0]
generate_codes(network, torch.randn(1, int(sys.argv[2]), network.config.dim), 8, SamplingConfig(), [0],
               make_engine=make_engine)
held = sum(t.nbytes for t in [*packed.kept, *engines[0].kept])
taken = {"beyond": memory("VmHWM") - held, "beyond_anonymous": memory("RssAnon") - held, "import": imported}
print(json.dumps(taken))
"""


# ---- peers -------------------------------------------------------------------------------------------------


def bench_peer(peer: Peer, name: str, positions: tuple[int, ...]) -> Figures:
    seconds = [peer(position, PEER_STEPS) for position in positions]
    figures = {f"{name}.steps_per_s_at_{p}": 1 / s for p, s in zip(positions, seconds, strict=True)}
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


def bench_library(library: str, size: str) -> Figures:
    figures: Figures = {}
    if importlib.util.find_spec(library) is None:
        print(f"{library} is not installed: its figures are left out", flush=True)
        return figures
    config, positions = model_config(size), PEER_POSITIONS.get(size, POSITIONS)
    for precision, dtype in DTYPES.items():
        name = f"{library}.{size}.{precision}"
        figures |= part(
            f"{name}, at step {', '.join(map(str, positions))}",
            decoder_bytes(config, "fp32"),  # in which it is made
            lambda: bench_peer(PEERS[library](config, dtype), name, positions),  # noqa: B023
        )
    return figures


def ratios(size: str, figures: Figures) -> Figures:
    """How many times as fast as each peer we are, on average over a piece."""
    pairs = [("fp32", "fp32"), ("bf16", "bf16"), ("int8", "fp32"), ("int8", "bf16")]
    result = {}
    for library in PEERS:
        for ours, theirs in pairs:
            own = figures.get(f"{size}.{ours}.steps_per_s")
            peer = figures.get(f"{library}.{size}.{theirs}.steps_per_s")
            if own is not None and peer is not None:
                suffix = "" if ours == theirs else f"_{theirs}"
                result[f"{size}.{ours}.vs_{library}{suffix}"] = own / peer
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
    shards = ShardSet.open(data / "shards", split="test")
    figures: list[Figures] = []
    for index in range(min(num_segments, len(shards))):
        sample = shards.read(index)
        features, codes = torch.from_numpy(sample.features), torch.from_numpy(sample.codes).long()
        conditions = network.conditions(features[None].float())
        figures.append(bench_quality(network, info.preset, conditions, codes[None]))
    return {name: mean(f[name] for f in figures) for name in figures[0]}


# ---- all of it ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def bench_size(size: str, num_steps: int) -> Figures:
    network = layered_network(size)
    figures = part(
        f"{size}.int8", decoder_bytes(network.config, "int8"), lambda: bench_fastest(network, size, num_steps)
    )
    for precision in ("bf16", "fp32"):
        name, needed = f"{size}.{precision}", decoder_bytes(network.config, precision)
        figures |= part(name, needed, lambda: bench_ours(unshared(network, precision), name, num_steps))  # noqa: B023
    return figures | (bench_small(network, num_steps) if size == "small" else {})


def unshared(network: GVMGen, precision: Precision) -> PackedDecoder:
    """Packed, with the network kept for the next precision."""
    return PackedDecoder(network, precision, release=False)


def bench_fastest(network: GVMGen, size: str, num_steps: int) -> Figures:
    packed = unshared(network, "int8")
    figures = bench_ours(packed, f"{size}.int8", num_steps)
    return figures | {f"{size}.fastest.piece_30s_seconds": bench_piece(packed)}


def bench_small(network: GVMGen, num_steps: int) -> Figures:
    """What one size is enough for: takes, memory, and rounding."""
    config = network.config
    needed = decoder_bytes(config, "int8", 2 * NUM_TAKES)
    figures = part("takes8", needed, lambda: bench_takes(unshared(network, "int8"), num_steps))
    needed = decoder_bytes(config, "fp32")
    figures |= part("memory", needed, lambda: bench_memory("small"))
    codes = torch.randint(config.codebook_size, (1, config.num_codebooks, 64))
    conditions = random_conditions(config.dim)[:1]
    return figures | part(
        "rounding", needed, lambda: bench_quality(random_network("small"), "small", conditions, codes)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="small,large", help="presets, with commas; default small,large")
    parser.add_argument("--steps", type=int, default=16, help="steps timed at each position; default 16")
    parser.add_argument(
        "--parts", default=",".join(["ours", *PEERS]), help="with commas; default all: %(default)s"
    )
    parser.add_argument("--model", type=Path, help="a trained model's folder, for the quality of int8")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder that holds shards/, for --model"
    )
    parser.add_argument("--json", type=Path, help="also add the figures to this file")
    options = parser.parse_args()
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    parts, figures = options.parts.split(","), Figures(known)
    if unknown := set(parts) - {"ours", *PEERS}:
        parser.error(f"--parts {', '.join(sorted(unknown))}: unknown; known: ours, {', '.join(PEERS)}")
    for size in filter(None, options.sizes.split(",")):
        if "ours" in parts:
            figures |= bench_size(size, options.steps)
        for library in PEERS:
            if library in parts:
                figures |= bench_library(library, size)
        figures |= part(f"{size} against peers", 0, partial(ratios, size, figures))
    if options.model:
        figures |= part("trained", 0, lambda: bench_trained(options.model, options.data))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
