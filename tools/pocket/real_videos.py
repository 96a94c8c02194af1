"""Does pocket tell real videos apart, and in the directions that it learned on made ones?

    python tools/pocket/real_videos.py FOLDER --seeds 3

Composes music for every video of a folder, with several seeds. Prints how far the pieces of different videos
lie apart against those of different seeds of one video, by what the ears of `evaluate.py` hear; and each
video's brightness and motion beside its music's register and onsets. Needs what `corpus.py` needs.
"""

from __future__ import annotations

import argparse
import json
from itertools import permutations
from pathlib import Path

import listen
import numpy as np
from evaluate import Ears, train_ears

from gvmgen.encoders.media import read_frames
from gvmgen.evaluation.motion import measure_motion
from gvmgen.generate import Composer
from gvmgen.runs import MODEL_IN_THE_BOX

ROUNDS = 2000


def described(waveform: np.ndarray, ears: Ears) -> np.ndarray:
    """What is heard of a piece, averaged over its seconds: timbre, which semitones, register, onsets."""
    levels = listen.semitone_levels(waveform)
    register, onsets = ears.pitch.tell(levels).mean(), listen.onsets_per_second(waveform).mean()
    return np.concatenate(
        [listen.timbre(waveform).mean(0), levels.mean(0), [register] * 20, [onsets] * 20]
    )  # register and onsets weigh as much as 20 bands


def distances(pieces: np.ndarray) -> np.ndarray:
    """[videos, seeds, D] -> [videos * seeds, videos * seeds], each dimension standardised."""
    flat = pieces.reshape(-1, pieces.shape[-1])
    flat = (flat - flat.mean(0)) / (flat.std(0) + 1e-9)
    return np.linalg.norm(flat[:, None] - flat[None], axis=-1)


def apart(between: np.ndarray, video: np.ndarray) -> float:
    """Mean distance of pieces of different videos over that of one video's seeds."""
    first, second = np.triu_indices(len(video), 1)
    same = video[first] == video[second]
    return float(between[first, second][~same].mean() / between[first, second][same].mean())


def report(args: argparse.Namespace) -> dict[str, float]:
    videos = sorted(path for path in args.folder.iterdir() if path.suffix in (".mp4", ".mkv", ".mov"))
    composer = Composer.load(args.model, preset="pocket")
    ears = train_ears(composer.codec)
    takes = [composer.takes(video, args.seeds) for video in videos]
    pieces = np.array([[described(take.waveform, ears) for take in row] for row in takes])
    seen = np.array([[picture_brightness(video), measure_motion(video).curve.mean()] for video in videos])
    heard = pieces[:, :, [-21, -1]].mean(axis=1)  # register, onsets
    print(f"{'video':24} brightness  motion  register  onsets a second")
    for video, (bright, moves), (register, onsets) in zip(videos, seen, heard, strict=True):
        print(f"{video.name:24} {bright:10.2f} {moves:7.2f} {register:9.1f} {onsets:8.2f}")
    between = distances(pieces)
    owner = np.repeat(np.arange(len(videos)), args.seeds)
    ratio, rng = apart(between, owner), np.random.default_rng(0)
    chance = np.array([apart(between, rng.permutation(owner)) for _ in range(ROUNDS)])
    slow_dark, fast_bright = extremes(seen)
    return {
        "apart": ratio,
        "apart_shuffled": float(chance.mean()),
        "apart_p": float((1 + (chance >= ratio).sum()) / (1 + ROUNDS)),
        "brightness_register.rho": listen.spearman(seen[:, 0], heard[:, 0]),
        "motion_density.rho": listen.spearman(seen[:, 1], heard[:, 1]),
        "register_of_fast_bright_over_slow_dark": float(heard[fast_bright, 0] - heard[slow_dark, 0]),
        "onsets_of_fast_bright_over_slow_dark": float(heard[fast_bright, 1] - heard[slow_dark, 1]),
    }


def picture_brightness(video: Path) -> float:
    """Mean luminance, 0 … 1."""
    return float(np.mean([frame @ np.array([0.3, 0.59, 0.11]) for frame in read_frames(video)]) / 255)


def extremes(seen: np.ndarray) -> tuple[int, int]:
    """The slow dark video and the fast bright one, which ranks far above it in both; seen: [videos, 2]."""
    ranks = seen.argsort(axis=0).argsort(axis=0)
    return max(permutations(range(len(seen)), 2), key=lambda pair: (ranks[pair[1]] - ranks[pair[0]]).min())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default=str(MODEL_IN_THE_BOX), help="a model's or a run's folder")
    parser.add_argument("--json", type=Path, help="write the figures as flat keys")
    args = parser.parse_args()
    figures = report(args)
    for name, value in figures.items():
        print(f"{name:40} {value:.3f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
