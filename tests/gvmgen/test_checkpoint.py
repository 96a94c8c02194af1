"""Model folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gvmgen.checkpoint import ModelInfo, load_model, save_model
from gvmgen.model import GVMGen
from tests.gvmgen.networks import make_codes, make_features, make_network

INFO = ModelInfo(
    preset="pocket",
    encoder_fingerprint={"video": {"layer": 5}},
    step=7,
    trained=True,
    licence="CC-BY-4.0",
    provenance={"data": "own"},
)


def logits_of(network: GVMGen) -> torch.Tensor:
    with torch.inference_mode():
        return network(make_features(1, 2), make_codes(1, 8))[0]


def test_a_model_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    network = make_network(pooling="preserve")
    save_model(tmp_path / "model", network, INFO)
    loaded, info = load_model(tmp_path / "model")
    assert info == INFO
    assert loaded.config == network.config
    assert not loaded.training
    assert torch.equal(logits_of(loaded), logits_of(network))


def test_a_model_folder_holds_two_files_and_nothing_else(tmp_path: Path) -> None:
    save_model(tmp_path, make_network(), INFO)
    save_model(tmp_path, make_network(seed=1), INFO)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(logits_of(load_model(tmp_path)[0]), logits_of(make_network(seed=1)))


def test_a_failed_save_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path, make_network(), INFO)

    def fill_the_disk(tensors: object, path: Path) -> None:
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gvmgen.checkpoint.save_file", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(tmp_path, make_network(seed=1), INFO)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(logits_of(load_model(tmp_path)[0]), logits_of(make_network()))


def test_loading_converts_to_another_dtype(tmp_path: Path) -> None:
    save_model(tmp_path, make_network(), INFO)
    loaded, _ = load_model(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert load_model(tmp_path)[0].decoder.heads.weight.dtype == torch.float32


def test_a_loaded_model_can_be_trained_on(tmp_path: Path) -> None:
    save_model(tmp_path, make_network(), INFO)
    before = (tmp_path / "model.safetensors").read_bytes()
    loaded, _ = load_model(tmp_path)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    with torch.no_grad():
        loaded.decoder.heads.weight.zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    save_model(tmp_path, make_network(), INFO)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    del tensors["decoder.norm.bias"]
    tensors["decoder.norm.scale"] = torch.ones(1)
    tensors["decoder.norm.weight"] = torch.ones(3)
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit the model") as error:
        load_model(tmp_path)
    for problem in (
        "missing decoder.norm.bias",
        "unexpected decoder.norm.scale",
        "decoder.norm.weight is [3], wanted [32]",
    ):
        assert problem in str(error.value)
    assert str(error.value).count(";") == 2


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"format_version": 99}', "format_version is 99, this program reads 1"),
        ('{"format_version": 1', "is no JSON"),
        ('["a", "list"]', "is no configuration of a GVMGen model"),
        ('{"format_version": 1, "preset": "pocket"}', "has no 'model'"),
        ('{"format_version": 1, "model": {}}', "has no 'preset'"),
        (
            '{"format_version": 1, "model": {"dim": "wide"}, "preset": "pocket"}',
            "dim is 'wide'; it must be a whole number",
        ),
        ('{"format_version": 1, "model": {}, "preset": "pocket", "sampling": {"top": 1}}', "top_k, top_p"),
        ('{"format_version": 1, "model": {}, "preset": "pocket", "sampling": [8]}', "sampling is [8]; give"),
        ('{"format_version": 1, "model": {}, "preset": "pocket", "sampling": {"top_k": "8"}}', "of numbers"),
        ('{"format_version": 1, "model": {}, "preset": "pocket", "sampling": {"top_k": -1}}', "top_k is -1"),
    ],
)
def test_a_config_that_cannot_be_used_is_named(tmp_path: Path, text: str, named: str) -> None:
    save_model(tmp_path, make_network(), INFO)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json") as error:
        load_model(tmp_path)
    assert named in str(error.value)


def test_a_config_with_the_wrong_sizes_names_the_tensors(tmp_path: Path) -> None:
    save_model(tmp_path, make_network(), INFO)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model"]["num_layers"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"unexpected decoder\.layers\.1\.up\.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize("left", ["model.safetensors", "config.json"])
def test_half_a_model_folder_is_no_model(tmp_path: Path, left: str) -> None:
    save_model(tmp_path, make_network(), INFO)
    (tmp_path / left).unlink()
    with pytest.raises(FileNotFoundError, match=left):
        load_model(tmp_path)


def test_a_broken_weights_file_is_named(tmp_path: Path) -> None:
    save_model(tmp_path, make_network(), INFO)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_model(tmp_path)


# Memory of its own: pages of the mapped file are the system's, and `ru_maxrss` begins at the parent's value.
MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from gvmgen.checkpoint import load_model
def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
def watch():
    while not done.is_set():
        seen.append(own())
        time.sleep(0.001)
done, seen = threading.Event(), [own()]
watcher = threading.Thread(target=watch)
watcher.start()
model, _ = load_model(Path(sys.argv[1]), dtype=getattr(torch, sys.argv[2]))
done.set()
watcher.join()
print((max(seen) - seen[0]) / sum(parameter.nbytes for parameter in model.parameters()))
"""


@pytest.mark.parametrize(("dtype", "copies"), [("float32", 0.0), ("bfloat16", 1.0)])  # as in the file: mapped
def test_loading_makes_no_second_copy_of_the_weights(tmp_path: Path, dtype: str, copies: float) -> None:
    save_model(tmp_path, make_network(dim=768, num_layers=6), INFO)  # 170 MB
    command = [sys.executable, "-c", MEASURE, str(tmp_path), dtype]
    ratio = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert ratio < copies + 0.35
