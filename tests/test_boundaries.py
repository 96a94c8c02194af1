"""Who may import whom, what a command may load to answer `--help`, and which flags commands have."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parents[1]
ENTRY_POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
HEAVY = {"torch", "av", "zarr", "transformers", "accelerate"}
TORCH_FREE_ENCODERS = {"gvmgen.encoders.presets", "gvmgen.encoders.probe"}
MEDIA_PACKAGES = {"open_clip", "transformers", "ffmpeg", "imageio_ffmpeg", "av", "PIL", "audiocraft"}


def modules() -> dict[str, Path]:
    """Every module of the house by its dotted name."""
    paths = [path for room in ("shards", "gvmgen", "pipeline") for path in (ROOT / room).rglob("*.py")]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
    }


def imports(source: str) -> Iterator[str]:
    """The modules that a source imports anywhere in it, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "imports name the whole path here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(module: str, *rooms: str) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


def may_import(importer: str, imported: str) -> bool:
    """The arrows between the rooms. `imported` is a module of the house."""
    if is_in(importer, "shards"):
        return is_in(imported, "shards")
    if is_in(importer, "pipeline"):
        return is_in(imported, "pipeline", "shards", "gvmgen.encoders", "gvmgen.console", "gvmgen.machine")
    if is_in(importer, "gvmgen.encoders"):
        return is_in(imported, "gvmgen.encoders", "shards")
    if is_in(imported, "gvmgen.encoders"):
        return imported in TORCH_FREE_ENCODERS or is_in(
            importer,
            "gvmgen.generate",
            "gvmgen.windows",
            "gvmgen.finish",
            "gvmgen.evaluation",
            "gvmgen.studio",
        )
    return is_in(imported, "gvmgen", "shards")


def arrows() -> Iterator[tuple[str, str]]:
    known = modules()
    for importer, path in known.items():
        for name in imports(path.read_text()):
            if name in known:
                yield importer, name


def test_rooms_import_only_what_the_plan_of_the_house_allows() -> None:
    wrong = [f"{a} -> {b}" for a, b in arrows() if not may_import(a, b)]
    assert not wrong


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("shards.reader", "gvmgen.config"),
        ("pipeline.encode", "gvmgen.model"),
        ("gvmgen.train", "gvmgen.encoders.video"),
        ("gvmgen.train", "pipeline.plan"),
        ("gvmgen.encoders.audio", "gvmgen.model"),
    ],
)
def test_the_rule_refuses_a_wrong_arrow(importer: str, imported: str) -> None:
    assert not may_import(importer, imported)


def reachable(start: str) -> set[str]:
    """All modules, also of others, that importing `start` may load."""
    known, found, waiting = modules(), set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += imports(known[name].read_text()) if name in known else []
    return found


def packages(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_training_needs_neither_clip_nor_ffmpeg() -> None:
    assert not packages(reachable("gvmgen.train")) & MEDIA_PACKAGES
    assert packages(reachable("gvmgen.generate")) & MEDIA_PACKAGES  # the walk does find them


def test_shards_need_no_torch() -> None:
    needed = set().union(*(packages(reachable(name)) for name in modules() if is_in(name, "shards")))
    assert needed - set(sys.stdlib_module_names) == {"shards", "numpy", "webdataset", "fsspec", "isal"}


APPS = {
    "gvm-prep": "pipeline.cli:app",
    "gvm-train": "gvmgen.cli:train_app",
    "gvm-gen": "gvmgen.generate_cli:generate_app",
    "gvm-studio": "gvmgen.studio.cli:studio_app",
    "gvm-eval": "gvmgen.evaluation.cli:eval_app",
}
FLAGS = {  # of every command, in any order: scripts and habits hang on them. Who adds one, adds it here
    "gvm-train": (
        "--data --runs --run --preset --init --train --lora --lr --lr-decay --weight-decay --optimizer "
        "--batch-size --epochs --steps --warmup-steps --guidance-dropout --max-grad-norm --ema --crop-s "
        "--precision --seed --grad-accum --recompute --compile --on-corrupt --save-every --keep-last "
        "--eval-every --log-every --samples-every --tracker --config --accept-changes --dry-run --estimate"
    ),
    "gvm-studio": (
        "--folder --host --port --allow-host --max-upload --max-length --model --preset --runs --device "
        "--precision"
    ),
    "gvm-gen": (
        "--output -o --suffix --seed --takes --evaluator --from --to --duration --preview --continue-from "
        "--ending --loudness --sample-rate --stereo --original --guidance --follow --top-k --top-p "
        "--temperature --model --preset --runs --device --precision --fresh --json"
    ),
    "gvm-prep crawl-manifest": (
        "--out --segment-s --stride-s --min-s --num-shards --test-share --seed --append "
        "--published-splits --cookies --allow-private --max-gb --max-hours"
    ),
    "gvm-prep filter": "--data --score --keep --tagger --threads",
    "gvm-prep report": "--data --out --samples",
    "gvm-prep plan": "--data",
    "gvm-prep encode": (
        "--shards --data --out --preset --device --retry --force --cache --feature-codec --cache-gb "
        "--precision --deadline-s --stop-after --engine --task-cpus --task-gpus --dry-run"
    ),
    "gvm-prep slurm-script": "--data --preset --elements --gpus --cpus --memory-gb --hours --partition",
    "gvm-prep status": "--data",
    "gvm-prep repair": "--data --deep --preset --device",
    "gvm-prep verify": "--data --deep",
    "gvm-eval train": (
        "--data --videos --music --run --preset --dim --num-layers --steps --batch-size --lr --warmup-steps "
        "--seed --held-out --save-every --accept-changes --soundfont --workers"
    ),
    "gvm-eval score": (
        "--videos --system --reference --evaluator --embedder --out --examples --soundfont --workers"
    ),
    "gvm-eval ablate": (
        "--data --evaluator --out --preset --only --seeds --steps --batch-size --lr --warmup-steps --crop-s "
        "--init --precision --pieces --guidance"
    ),
    "gvm-eval listen": "--videos --system --out --films --seconds --seed --soundfont",
    "gvm-eval listen-results": "--key --out",
}


def flags() -> dict[str, set[str]]:
    """The flags of every command."""
    found = {}
    for name, place in APPS.items():
        module, app = place.split(":")
        command = typer.main.get_command(getattr(importlib.import_module(module), app))
        for part, each in getattr(command, "commands", {"": command}).items():
            options = (p for p in each.params if p.param_type_name == "option")
            found[f"{name} {part}".strip()] = {flag for option in options for flag in option.opts}
    return found


def test_every_command_is_in_the_table_of_flags_and_is_installed() -> None:
    assert set(flags()) == set(FLAGS)
    assert set(APPS) == set(ENTRY_POINTS)


@pytest.mark.parametrize("command", FLAGS)
def test_a_command_has_the_flags_that_users_know(command: str) -> None:
    assert flags()[command] == set(FLAGS[command].split())


@pytest.mark.parametrize("command", FLAGS)
def test_help_loads_no_torch_and_shows_an_example(command: str) -> None:
    name, *arguments = command.split()
    module, function = ENTRY_POINTS[name].split(":")
    script = (
        f"import sys; from {module} import {function} as main; sys.argv = {[name, *arguments, '--help']}\n"
        f"try: main()\nfinally: print('LOADED', *{HEAVY} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("LOADED\n")
    assert re.search(rf"\n  {command}\s", done.stdout)
