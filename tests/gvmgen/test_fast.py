"""The compiled decoder against the plain one. R rows of an engine, K codebooks, S steps, V codebook size."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gvmgen.decoding import DecodingEngine, PlainEngine, SamplingConfig, generate_codes
from gvmgen.fast import abi, build
from gvmgen.fast.choice import choose_engines
from gvmgen.fast.engine import PRECISIONS, PackedDecoder, Precision
from gvmgen.model import GVMGen
from tests.gvmgen.networks import make_codes, make_features, make_network

SIZES: dict[str, Any] = {"dim": 128, "num_heads": 2}  # heads of 64, as all presets have
NUM_STEPS = 70  # more than a block of positions
VARIANTS: list[dict[str, Any]] = [
    {},
    {"pooling": "preserve"},
    {"temporal_cross_attention": False},
    {"frame_positions": False},
    {"code_rate": 5},
]
all_precisions = pytest.mark.parametrize("precision", PRECISIONS)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    try:
        build.library()
    except build.BuildError as error:
        pytest.skip(f"the decoder cannot be compiled here: {error}")


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.inference_mode():
        yield


def make_conditions(network: GVMGen, num_rows: int) -> Tensor:
    return network.conditions(make_features(num_rows, 3))


def compiled(network: GVMGen, precision: Precision, num_threads: int = 2) -> PackedDecoder:
    return PackedDecoder(network, precision, num_threads, release=False)


def run(engine: DecodingEngine, codes: Tensor, num_prefilled: int = 1) -> Tensor:
    """Logits [R, K, S, V] of the last prefilled step and all after it."""
    logits = [engine.prefill(codes[:, :, :num_prefilled])]
    logits += [engine.step(codes[:, :, step]) for step in range(num_prefilled, codes.shape[2])]
    return torch.stack(logits, dim=2)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_in_fp32_the_logits_are_the_plain_ones(changes: dict[str, Any]) -> None:
    network = make_network(**SIZES | changes)
    conditions, codes = make_conditions(network, 3), make_codes(3, NUM_STEPS)
    plain = run(PlainEngine(network, conditions, NUM_STEPS), codes)
    ours = run(compiled(network, "fp32").engine(conditions, NUM_STEPS), codes)
    torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.01), ("int8", 0.03)])
@pytest.mark.parametrize("sharpness", [1.0, 5.0])
def test_rounded_weights_leave_the_logits_near(
    precision: Precision, tolerance: float, sharpness: float
) -> None:
    """Also where attention is sharp, and many small weights stand beside a large one."""
    network = make_network(**SIZES)
    for layer in network.decoder.layers:
        layer.self_attention.query_key_value.weight[: 2 * SIZES["dim"]] *= sharpness**0.5
    conditions, codes = make_conditions(network, 2), make_codes(2, NUM_STEPS)
    plain = run(PlainEngine(network, conditions, NUM_STEPS), codes)
    ours = run(compiled(network, precision).engine(conditions, NUM_STEPS), codes)
    assert (ours - plain).abs().mean() < tolerance * plain.std()


@all_precisions
def test_rows_do_not_depend_on_their_company_or_on_threads(precision: Precision) -> None:
    network = make_network(**SIZES)
    conditions, codes = make_conditions(network, 37), make_codes(37, 12)  # more rows than one call takes
    together = run(compiled(network, precision, num_threads=3).engine(conditions, 12), codes)
    for row in (0, 20, 36):
        engine = compiled(network, precision, num_threads=1).engine(conditions[row : row + 1], 12)
        assert torch.equal(run(engine, codes[row : row + 1])[0], together[row])


def test_takes_of_one_video_share_its_keys_and_values_and_hear_what_they_would_alone() -> None:
    network = make_network(**SIZES)
    seen, codes = make_conditions(network, 3)[[2, 0, 2, 1, 0]], make_codes(5, 6)
    packed = compiled(network, "fp32")
    engine = packed.engine(seen, 6)
    assert list(engine.memory[0].shape[:2]) == [network.config.num_layers, 3]
    together = run(engine, codes)
    for row in range(5):
        alone = run(packed.engine(seen[row : row + 1], 6), codes[row : row + 1])
        assert torch.equal(alone[0], together[row])


@all_precisions
def test_prefilling_is_the_same_as_stepping(precision: Precision) -> None:
    network = make_network(**SIZES)
    conditions, codes = make_conditions(network, 2), make_codes(2, NUM_STEPS)
    packed = compiled(network, precision)
    stepped = run(packed.engine(conditions, NUM_STEPS), codes)
    prefilled = run(packed.engine(conditions, NUM_STEPS), codes, num_prefilled=66)
    assert torch.equal(prefilled, stepped[:, :, 65:])


def test_greedy_music_is_the_plain_engines() -> None:
    network = make_network(**SIZES)
    conditions, greedy = make_conditions(network, 2), SamplingConfig(temperature=0.0)
    plain = generate_codes(network, conditions, 30, greedy, seeds=[1, 2])
    make_engine = compiled(network, "fp32").engine
    assert torch.equal(
        generate_codes(network, conditions, 30, greedy, seeds=[1, 2], make_engine=make_engine), plain
    )


def test_no_step_passes_the_end_of_the_caches() -> None:
    network = make_network(**SIZES)
    engine = compiled(network, "fp32").engine(make_conditions(network, 1), 5)
    with pytest.raises(ValueError, match="hold 5 steps, not 6"):
        engine.prefill(make_codes(1, 6))


def test_packed_weights_are_not_kept_twice() -> None:
    network = make_network(**SIZES)
    before = make_conditions(network, 1)
    PackedDecoder(network, "int8")
    matrices = [p for p in network.decoder.layers.parameters() if p.dim() == 2 or p.numel() == 0]
    assert len(matrices) == 2 * 7
    assert not any(matrix.numel() for matrix in matrices)
    assert torch.equal(make_conditions(network, 1), before)


def test_a_step_reads_a_byte_a_number_in_int8() -> None:
    """Of the weights, and of each position's keys and values, which have a scale a head besides."""
    network = make_network(**SIZES)
    read = [p.numel() for name, p in network.decoder.named_parameters() if p.dim() == 2]
    unread = (
        network.decoder.embedding.weight.numel() + 2 * 2 * SIZES["dim"] ** 2
    )  # and the memory's projections
    engine = compiled(network, "int8").engine(make_conditions(network, 2), NUM_STEPS)
    run(engine, make_codes(2, 5))
    past = 2 * 5 * 2 * 2 * (SIZES["dim"] + 4 * SIZES["num_heads"])  # rows, steps, layers, keys and values
    assert sum(tensor.nbytes for tensor in engine.read_by_a_step()) == sum(read) - unread + past


def test_without_a_compiler_pytorch_decodes_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("GVM_CACHE", str(tmp_path))
    build._library.cache_clear()
    try:
        engines = choose_engines(make_network(**SIZES), "bf16")
        assert engines.description.startswith("bf16, PyTorch (no C++ compiler")
        with pytest.raises(ValueError, match="int8 cannot be had: no C"):
            choose_engines(make_network(**SIZES), "int8")
    finally:
        build._library.cache_clear()


def test_what_was_begun_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls, compiler = tmp_path / "calls", tmp_path / "g++"
    compiler.write_text(f'#!/bin/sh\nsleep 0.2\necho "$@" >> {calls}\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("GVM_CACHE", str(tmp_path))
    build._library.cache_clear()
    try:
        build.begin()
        assert build.library().max_rows() > 0
        assert len([call for call in calls.read_text().splitlines() if "-shared" in call]) == 1
    finally:
        build._library.cache_clear()


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'error: no such processor' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("GVM_CACHE", str(tmp_path))
    build._library.cache_clear()
    try:
        with pytest.raises(build.BuildError, match="no such processor"):
            build.library()
        assert not list((tmp_path / "gvmgen").iterdir())
    finally:
        build._library.cache_clear()


def test_engines_are_chosen_by_what_the_network_is() -> None:
    assert choose_engines(make_network(**SIZES)).description == "int8, compiled, 1 thread"  # it is little
    assert choose_engines(make_network(**SIZES), "bf16").description == "bf16, compiled, 1 thread"
    assert choose_engines(make_network(**SIZES)).num_groups == torch.get_num_threads()
    plain = "fp32, PyTorch (the compiled decoder wants heads of width 64, not"
    assert choose_engines(make_network()).description.startswith(plain)
    with pytest.raises(ValueError, match="wants heads of width 64"):
        choose_engines(make_network(), "int8")
    with pytest.raises(ValueError, match="'int3' is unknown; known: auto, fp32, bf16, int8"):
        choose_engines(make_network(), "int3")


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for other processors of this family")
@pytest.mark.parametrize("processor", ["x86-64", "haswell"])
def test_older_processors_compute_the_same(
    processor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make_network(**SIZES)
    conditions, codes = make_conditions(network, 2), make_codes(2, 20)
    here = {p: run(compiled(network, p).engine(conditions, 20), codes) for p in PRECISIONS}
    flags = [f"-march={processor}" if flag == "-march=native" else flag for flag in build.FLAGS]
    path = tmp_path / "decoder.so"
    subprocess.run(["g++", *flags, "-o", str(path), str(build.SOURCE)], check=True)
    monkeypatch.setattr(abi, "library", lambda: ctypes.CDLL(str(path)))
    for precision in PRECISIONS:
        there = run(compiled(network, precision).engine(conditions, 20), codes)
        torch.testing.assert_close(there, here[precision], atol=0.02, rtol=0.02)
