"""Publishes a trained model on the Hugging Face hub, with a card that states data, licence and metrics.

    python tools/push_to_hub.py runs/small/best OWNER/NAME [--private]

Log in first: `hf auth login`. The card is printed before anything is sent; --dry-run sends nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gvmgen.checkpoint import read_config
from gvmgen.console import run
from gvmgen.publish import model_card, push_to_hub
from gvmgen.runs import find_model


def main(
    model: Annotated[str, typer.Argument(help="A checkpoint, a run's folder, or its `best`.")],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the hub.")],
    private: bool = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card only.")] = False,
) -> None:
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id}: give OWNER/NAME")
    folder = find_model(model, Path("runs"), None)
    typer.echo(model_card(folder, repo_id, *read_config(folder)))
    if not dry_run:
        typer.echo(push_to_hub(folder, repo_id, private=private))


if __name__ == "__main__":
    run(lambda: typer.run(main), "push_to_hub.py")
