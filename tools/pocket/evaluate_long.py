"""Does a long piece of pocket stay one piece? Films of a minute from the corpus, each shown twice in a row.

    python tools/pocket/evaluate_long.py --model gvmgen/pocket/model

The second showing's music is held against the first's, second by second, and beside it against the first
showing's of other seeds: a piece that remembers how it began is nearer to itself than to those. `one key`
is the share of pitched energy in the best single key of the whole two minutes. How the music follows the
picture stands beside it, as an anchor could cost that. Standard errors are over films. Needs what
`corpus.py` needs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import listen
import numpy as np
import torch
from corpus import make_pair
from evaluate import Ears, Heard, following, train_ears, watch

from gvmgen.generate import Composer
from gvmgen.runs import MODEL_IN_THE_BOX
from gvmgen.windows import compose, planned, play
from shards.spec import CODE_RATE, SAMPLE_RATE

FILM_SEED = 9_500_000
FILM_S = 60


def chroma(waveform: np.ndarray) -> np.ndarray:
    """[seconds, 12]: log power of the pitch classes."""
    levels = listen.semitone_levels(waveform)  # [seconds, 60], the first is a C
    return np.log10((10**levels).reshape(len(levels), 5, 12).sum(axis=1))


def timbre(waveform: np.ndarray) -> np.ndarray:
    """[seconds, 48]: mean log-mel bands, level removed."""
    return listen.timbre(waveform)[:, :48]


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Mean correlation of the same seconds of two showings, [seconds, D] each."""
    pairs = zip(one, other, strict=True)
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))


def pieces(composer: Composer, video: Path, seeds: list[int]) -> list[np.ndarray]:
    """Music of two showings of a film, [2 * FILM_S * 32,000] a seed."""
    with torch.inference_mode(), composer.engines.at_work():
        conditions, glimpses = (each[0].repeat(2, 1) for each in watch(composer, video))
        config, total = composer.model.config, 2 * FILM_S * CODE_RATE
        codes = compose(
            composer.model,
            conditions[:, None],
            planned(total, config.window_s, anchor_s=config.anchor_s),
            composer.sampling(),
            seeds,
            make_engine=composer.engines.make,
            glimpses=glimpses,
            num_groups=composer.engines.num_groups,
        )
        return [np.asarray(sound.samples) for sound in play(composer.codec, codes, 2 * FILM_S * SAMPLE_RATE)]


def remembering(found: list[np.ndarray]) -> dict[str, float]:
    """How like its first showing's music each second showing's is, and how like other seeds' first."""
    half = FILM_S * SAMPLE_RATE
    figures = {}
    for name, tell in (("chroma", chroma), ("timbre", timbre)):
        first, second = ([tell(piece[part]) for piece in found] for part in (slice(half), slice(half, None)))
        own = [likeness(a, b) for a, b in zip(first, second, strict=True)]
        others = [likeness(a, b) for i, a in enumerate(first) for j, b in enumerate(second) if i != j]
        figures |= {f"{name}, own": float(np.mean(own)), f"{name}, others'": float(np.mean(others))}
        figures[f"{name}, own less others'"] = figures[f"{name}, own"] - figures[f"{name}, others'"]
    figures["one key"] = float(np.mean([listen.in_key_share(piece) for piece in found]))
    return figures


def heard_twice(ears: Ears, found: list[np.ndarray], truth: dict) -> Iterator[Heard]:
    half = FILM_S * SAMPLE_RATE
    for piece in found:
        for part in (piece[:half], piece[half:]):
            yield ears.hear(part, truth)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(MODEL_IN_THE_BOX), help="a model's or a run's folder")
    parser.add_argument("--num-films", type=int, default=8)
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--films", type=Path, default=Path("data/pocket_films"))
    parser.add_argument("--json", type=Path, help="write the figures as flat keys")
    args = parser.parse_args()
    args.films.mkdir(parents=True, exist_ok=True)
    composer = Composer.load(args.model, preset="pocket")
    ears = train_ears(composer.codec)
    rows, heard, truths = [], [], []
    for number in range(args.num_films):
        video = make_pair(FILM_SEED + number, args.films, float(FILM_S))
        truth = json.loads(video.with_suffix(".json").read_text())
        found = pieces(composer, video, list(range(1, args.num_seeds + 1)))
        rows.append(remembering(found))
        heard += heard_twice(ears, found, truth)
        truths += [truth] * (2 * args.num_seeds)
        print(f"\r{number + 1}/{args.num_films}", end="", file=sys.stderr)
    print(file=sys.stderr)
    figures = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        figures[name] = float(values.mean())
        print(f"{name:30} {values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}")
    for name, value in following(heard, truths).items():
        figures[name] = value
        print(f"{name:30} {value:.3f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
