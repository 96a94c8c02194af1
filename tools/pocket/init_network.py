"""Start pocket's network from its codec: codes that sound alike are alike to the network from the first step.

    python tools/pocket/init_network.py --out runs/pocket_init
    gvm-train --preset pocket --init runs/pocket_init …

A code's embedding and its row in the prediction head are random projections of its vector in the codec's
codebook, where a plain start draws them without any relation. The embeddings get the size of the
sinusoidal positions (a plain start's are an eighth of it), so that the decoder hears the music before it
counts the time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from transformers import EncodecModel

from gvmgen.checkpoint import ModelInfo, save_model
from gvmgen.config import MODEL_PRESETS
from gvmgen.encoders.presets import encoder_config
from gvmgen.model import GVMGen

EMBEDDING_SIZE = 0.4  # standard deviation; four of them are added


def projected(vectors: Tensor, dim: int) -> Tensor:
    """[V, D] -> [V, dim] of standard deviation 1, inner products kept but for chance."""
    centred = vectors - vectors.mean(0)
    return centred / centred.std() @ torch.randn(vectors.shape[1], dim) / vectors.shape[1] ** 0.5


@torch.no_grad()
def start_from_codec(model: GVMGen, codebooks: list[Tensor]) -> None:
    """Overwrite embeddings and heads. codebooks: K x [V, D]."""
    config = model.config
    embedding = model.decoder.embedding.weight.unflatten(0, (config.num_codebooks, -1))  # [K, V + 1, dim]
    heads = model.decoder.heads.weight.unflatten(0, (config.num_codebooks, -1))  # [K, V, dim]
    for book, vectors in enumerate(codebooks):
        embedding[book, :-1] = EMBEDDING_SIZE * projected(vectors, config.dim)
        embedding[book, -1] = EMBEDDING_SIZE * torch.randn(config.dim)
        heads[book] = projected(vectors, config.dim) * config.dim**-0.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/pocket_init"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = GVMGen(MODEL_PRESETS["pocket"])
    codec = EncodecModel.from_pretrained(encoder_config("pocket").codec, dtype=torch.float32)
    layers = codec.quantizer.layers[: model.config.num_codebooks]
    start_from_codec(model, [layer.codebook.embed for layer in layers])
    save_model(args.out, model, ModelInfo(preset="pocket"))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
