"""Models on the Hugging Face hub: pushed with a card that says what they are, and found there by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData, snapshot_download

from gvmgen.checkpoint import CONFIG, WEIGHTS, ModelInfo, read_config
from gvmgen.config import ModelConfig

CARD = "README.md"
LICENCES = {
    "CC-BY-NC-4.0": "cc-by-nc-4.0",
    "CC-BY-4.0": "cc-by-4.0",
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
}

CARD_TEXT = """---
{metadata}
---

# {name}

Video in, music out: a GVMGen (arXiv 2501.09972) of preset `{preset}`, trained by gvm-train for {step}
steps.

    gvm-gen video.mp4 -o out.wav --model "$(hf download {name})"

## Data

{segments} segments; their plan has the hash `{data}`. These frozen encoders made the features and codes it
learned from, and composing needs them, too:

```json
{encoders}
```

## Licence

{licence}

## Metrics

{metrics}

## How it was trained

```json
{recipe}
```
"""


def push_to_hub(model: Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Publish a model folder, in one commit, with its card; returns the commit's address.

    model: a checkpoint, a run's `best`, any folder of ours. Training state stays at home.
    Raises ValueError where a model has a codec of its own, which lies elsewhere.
    """
    config, info = read_config(model)
    if info.codec is not None:
        raise ValueError(f"{model}: its codec {info.codec} is no part of the folder, so nobody could use it")
    files: dict[str, Path | bytes] = {
        CARD: model_card(model, repo_id, config, info).encode(),
        CONFIG: model / CONFIG,
        WEIGHTS: model / WEIGHTS,
    }
    hub = HfApi(token=token)
    hub.create_repo(repo_id, private=private, exist_ok=True)
    commit = hub.create_commit(
        repo_id,
        [
            CommitOperationAdd(name, str(file) if isinstance(file, Path) else file)
            for name, file in files.items()
        ],
        commit_message=f"GVMGen {info.preset}, step {info.step}",
    )
    return commit.commit_url


def from_pretrained(model: str, *, revision: str | None = None) -> Path:
    """The folder of a model: `model` itself where it is one, else what the hub has by this name."""
    if (Path(model) / CONFIG).is_file():
        return Path(model)
    return Path(snapshot_download(model, revision=revision, allow_patterns=[CARD, CONFIG, WEIGHTS]))


def model_card(model: Path, name: str, config: ModelConfig, info: ModelInfo) -> str:
    """What a reader must know: data, licence of what it started from, metrics, settings."""
    licence = next((tag for word, tag in LICENCES.items() if word in info.licence), "other")
    data = ModelCardData(license=licence, library_name="gvmgen", tags=["video-to-music", "music-generation"])
    return CARD_TEXT.format(
        metadata=data.to_yaml(),
        name=name,
        preset=info.preset,
        step=info.step,
        segments=info.provenance.get("segments", "An unknown number of"),
        data=info.provenance.get("data", "unknown"),
        encoders=json.dumps(info.encoder_fingerprint, indent=2),
        licence=info.licence or "The publisher has not stated one: ask before you use it.",
        metrics=_metrics(model, info.step),
        recipe=json.dumps(info.provenance.get("train", {}), indent=2),
    )


def _metrics(model: Path, step: int) -> str:
    """The validation of this step, where the model still lies in its run."""
    log = model.resolve().parent.parent / "metrics.jsonl"
    found: list[dict[str, Any]] = (
        [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    )
    tests = [line for line in found if line["split"] == "test" and line["step"] == step]
    if not tests:
        return "None measured."
    rows = [f"| {name} | {value:.4f} |" for name, value in tests[-1].items() if name.startswith("loss")]
    return "\n".join(["| on the test split | nats a code |", "|---|---|", *rows])
