"""What starting `gvm-gen` costs: what it loads, and how many threads it takes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from gvmgen.checkpoint import load_model
from gvmgen.fast.choice import choose_engines
from gvmgen.generate import Composer
from gvmgen.runs import MODEL_IN_THE_BOX

SECONDS_TO_LOAD = {
    "transformers",
    "open_clip",
    "timm",
    "torchvision",
    "accelerate",
    "scipy",
    "sklearn",
    "librosa",
}


def test_the_model_in_the_box_loads_without_the_libraries_that_take_seconds() -> None:
    script = (
        "import sys, gvmgen.batch\n"
        "from gvmgen import GVMGen\n"
        f"GVMGen.load({str(MODEL_IN_THE_BOX)!r}, device='cpu')\n"
        f"print(*sorted({SECONDS_TO_LOAD} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_on_a_processor_what_watches_computes_in_float32() -> None:
    network = Composer.load(str(MODEL_IN_THE_BOX), device="cpu").model
    assert load_model(MODEL_IN_THE_BOX)[0].transformation.output.weight.dtype == torch.float16
    assert network.transformation.output.weight.dtype == torch.float32
    assert network.frame_codes is not None
    assert network.frame_codes.heads.weight.dtype == torch.float32


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gvmgen.fast.choice.why_plain", lambda _: "no compiler")


@pytest.mark.usefixtures("two_threads", "no_compiler")
def test_in_pytorch_a_little_network_composes_in_one_thread_and_leaves_the_rest_as_it_was() -> None:
    engines = choose_engines(load_model(MODEL_IN_THE_BOX)[0])
    with engines.at_work():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with contextlib.suppress(KeyboardInterrupt), engines.at_work():
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads", "no_compiler")
def test_in_pytorch_a_large_network_composes_in_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gvmgen.fast.choice.LITTLE", 0)
    with choose_engines(load_model(MODEL_IN_THE_BOX)[0]).at_work():
        assert torch.get_num_threads() == 2
