"""Does pocket's music follow the video? Measured against the corpus' truth on pairs that no training saw.

    python tools/pocket/evaluate.py --num-videos 100 --json pocket.json

Makes the held-out pairs, composes music for each with the model in the box (or `--model`), listens to it,
and prints every figure beside its control: the same music held against another video's truth. Intervals
are 95 %, by bootstrap over videos. Needs what `corpus.py` needs, and `opusenc` and `opusdec` for the
codec's figures.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import listen
import numpy as np
import torch
from compose import compose, mean_pitch
from corpus import make_pair, write_wav
from measures import mel_distance, si_sdr_db
from render_music import render_music
from scenario import FAMILIES, make_scenario, truth_per_second

from gvmgen.decoding import SamplingConfig, generate_codes
from gvmgen.encoders.media import read_frames, read_waveform
from gvmgen.evaluation import load_evaluator
from gvmgen.evaluation.agreement import measure, table
from gvmgen.evaluation.evaluator import Evaluator
from gvmgen.evaluation.seconds import make_pair as pair_of
from gvmgen.generate import Composer
from gvmgen.runs import MODEL_IN_THE_BOX
from shards.spec import CODE_RATE, SAMPLE_RATE

HELD_OUT_SEED = 9_000_000  # train_codec.py listens to the first 16 of these, the trainings to none
EAR_SEED = 8_000_000  # music on which the ears learn what an instrument or a pitch is
NUM_EAR_PIECES = 60
DURATION_S = 15.0
ACCENT_DB = 12.0  # best F1 on the ears' music
ROWS_AT_ONCE = 10


@dataclass(frozen=True)
class Heard:
    """One piece as the ears hear it, beside the truth of the video it was made for."""

    onsets: np.ndarray  # [seconds]
    pitch: np.ndarray  # [seconds], MIDI
    families: np.ndarray  # [seconds]
    accents_s: np.ndarray
    in_key: np.ndarray  # one share a section
    silence_s: float
    peak: float
    tail_db: float  # level of the last half second against the whole


@dataclass(frozen=True)
class Ears:
    family: listen.FamilyEar
    pitch: listen.PitchEar

    def hear(self, waveform: np.ndarray, truth: dict) -> Heard:
        bounds = [0.0, *truth["cuts_s"], truth["duration_s"]]
        parts = [waveform[round(a * SAMPLE_RATE) : round(b * SAMPLE_RATE)] for a, b in pairwise(bounds)]
        level = np.sqrt(np.mean(waveform**2)) + 1e-9
        tail = np.sqrt(np.mean(waveform[-SAMPLE_RATE // 2 :] ** 2)) + 1e-9
        return Heard(
            onsets=listen.onsets_per_second(waveform),
            pitch=self.pitch.tell(listen.semitone_levels(waveform)),
            families=self.family.tell(listen.timbre(waveform)),
            accents_s=listen.accent_times(waveform, ACCENT_DB),
            in_key=np.array([listen.in_key_share(part) for part in parts]),
            silence_s=listen.longest_silence_s(waveform),
            peak=float(np.abs(waveform).max()),
            tail_db=float(20 * np.log10(tail / level)),
        )


def train_ears(codec) -> Ears:
    """Ears that know the corpus' instruments and pitches, as composed and as they sound through the codec."""
    timbres, families, levels, pitches = [], [], [], []
    for seed in range(EAR_SEED, EAR_SEED + NUM_EAR_PIECES):
        scenario = make_scenario(seed, DURATION_S)
        notes = compose(scenario)
        truth = truth_per_second(scenario)
        composed = render_music(notes, DURATION_S)
        for waveform in (composed, round_trip(codec, composed)):
            timbres.append(listen.timbre(waveform))
            families += [FAMILIES.index(f) for f in truth["family"]]
            levels.append(listen.semitone_levels(waveform))
            pitches += mean_pitch(notes, len(truth["motion"]))
    known = np.array([p is not None for p in pitches])
    heard_pitches = np.array([p for p in pitches if p is not None])
    return Ears(
        listen.FamilyEar.learn(np.concatenate(timbres), np.array(families)),
        listen.PitchEar.learn(np.concatenate(levels)[known], heard_pitches),
    )


def round_trip(codec, waveform: np.ndarray) -> np.ndarray:
    """Waveform -> codes -> waveform."""
    codes = codec.encode(torch.from_numpy(waveform)[None])
    return codec.decode(codes)[0, : len(waveform)].numpy()


def opus_round_trip(waveform: np.ndarray, kbit_per_s: int) -> np.ndarray:
    """Through the reference encoder, aligned to the original."""
    with tempfile.TemporaryDirectory() as folder:
        wav, opus, back = (Path(folder) / name for name in ("a.wav", "a.opus", "b.wav"))
        write_wav(wav, waveform)
        quiet = {"check": True, "capture_output": True}
        subprocess.run(["opusenc", "--quiet", "--bitrate", str(kbit_per_s), "--music", wav, opus], **quiet)
        subprocess.run(["opusdec", "--quiet", "--rate", str(SAMPLE_RATE), opus, back], **quiet)
        return read_waveform(back, duration_s=len(waveform) / SAMPLE_RATE)


def codec_figures(codec, num_pieces: int) -> dict[str, float]:
    """Our codec against Opus at 12 kbit/s on the same held-out music."""
    ours, opus, ratios, ids = [], [], [], []
    for seed in range(HELD_OUT_SEED + 1000, HELD_OUT_SEED + 1000 + num_pieces):
        waveform = render_music(compose(make_scenario(seed, DURATION_S)), DURATION_S)
        target = torch.from_numpy(waveform)[None]
        ids.append(codec.encode(target)[0])
        decoded = torch.from_numpy(round_trip(codec, waveform))[None]
        ours.append(mel_distance(decoded, target).item())
        opus.append(mel_distance(torch.from_numpy(opus_round_trip(waveform, 12))[None], target).item())
        ratios.append(si_sdr_db(decoded, target).item())
    return {
        "codec.mel": float(np.mean(ours)),
        "codec.mel_opus12": float(np.mean(opus)),
        "codec.mel_vs_opus12": float(np.mean(ours) / np.mean(opus)),
        "codec.si_sdr_db": float(np.mean(ratios)),
        "codec.min_perplexity": min(perplexity(book) for book in torch.cat(ids, dim=1)),
    }


def perplexity(ids: torch.Tensor) -> float:
    share = torch.bincount(ids).float() / len(ids)
    share = share[share > 0]
    return math.exp(-(share * share.log()).sum().item())


def compose_all(
    composer: Composer, videos: list[Path], sampling: SamplingConfig, seed: int
) -> list[np.ndarray]:
    """Music of every video, several rows at a time; a row depends on its own seed only, as in `gvm-gen`."""
    waveforms = []
    num_code_frames = round(DURATION_S * CODE_RATE)
    for start in range(0, len(videos), ROWS_AT_ONCE):
        batch = videos[start : start + ROWS_AT_ONCE]
        with torch.inference_mode():
            conditions, glimpses = map(
                torch.cat, zip(*(watch(composer, video) for video in batch), strict=True)
            )
            seeds = [seed * 1_000_003 + start + row for row in range(len(batch))]
            codes = generate_codes(
                composer.model,
                conditions,
                num_code_frames,
                sampling,
                seeds,
                make_engine=composer.engines.make,
                glimpses=glimpses,
            )
            waveforms += list(composer.codec.decode(codes).numpy())
        print(f"\rcomposed {len(waveforms)}/{len(videos)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return waveforms


def watch(composer: Composer, video: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Conditions [1, F, dim] and glimpses [1, F, 2 D] of a video."""
    pixels = torch.stack([composer.video.preprocess(frame) for frame in read_frames(video)])
    features = composer.video.encode(pixels)[None]
    return composer.model.conditions(features), composer.model.frame_codes.glimpses(features)


def following(heard: list[Heard], truths: list[dict]) -> dict[str, float]:
    """How well pieces follow the videos they are paired with."""
    joined = {name: np.concatenate([t[name] for t in truths]) for name in ("motion", "brightness")}
    families = np.concatenate([[FAMILIES.index(f) for f in t["family"]] for t in truths])
    cuts = [listen.matches(h.accents_s, np.array(t["cuts_s"])) for h, t in zip(heard, truths, strict=True)]
    return {
        "motion_density.rho": listen.spearman(np.concatenate([h.onsets for h in heard]), joined["motion"]),
        "brightness_register.rho": listen.spearman(
            np.concatenate([h.pitch for h in heard]), joined["brightness"]
        ),
        "instrument.accuracy": float(np.mean(np.concatenate([h.families for h in heard]) == families)),
        "cuts.f1": listen.f1(np.array(cuts)),
    }


def correspondence(evaluator: Evaluator, videos: list[Path], waveforms: list[np.ndarray]) -> dict[str, float]:
    """What an evaluator, which knows true pairs only, makes of these: leak-free, in batches of 16."""
    pairs = [
        pair_of(video.stem, evaluator.watch(video), evaluator.hear(waveform))
        for video, waveform in zip(videos, waveforms, strict=True)
    ]
    found = measure(evaluator.model, pairs)
    print(table(found))
    return {
        f"cmr16.{figure}{'' if control == 'true' else f'_{control}'}": found.figures[figure][control].value
        for figure in ("accuracy", "cmr", "ta")
        for control in ("true", "shuffled")
    }


def with_interval(
    figures: Callable[[list, list], dict[str, float]],
    heard: list[Heard],
    truths: list[dict],
    rounds: int = 300,
) -> dict[str, tuple[float, float, float]]:
    """Each figure with its 95 % interval over videos drawn anew."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(rounds):
        chosen = rng.integers(len(heard), size=len(heard))
        drawn.append(figures([heard[i] for i in chosen], [truths[i] for i in chosen]))
    return {
        name: (value, *np.percentile([d[name] for d in drawn], [2.5, 97.5]).tolist())
        for name, value in figures(heard, truths).items()
    }


def sound_figures(heard: list[Heard]) -> dict[str, float]:
    shares = np.concatenate([h.in_key for h in heard])
    return {
        "in_key_share": float(np.mean(shares)),
        "longest_silence_s": max(h.silence_s for h in heard),
        "highest_peak": max(h.peak for h in heard),
        "loudest_tail_db": max(h.tail_db for h in heard),
    }


def one_run(video: Path, arguments: list[str]) -> dict[str, float]:
    """Wall clock and peak memory of `gvm-gen` itself, everything included.

    Through a small process: Linux would count this large one's memory as that of what it starts.
    """
    bench = Path(__file__).resolve().parents[1] / "bench_generate.py"
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        command = [sys.executable, str(bench), "--video", str(video), "--takes", "1", "--json", str(rows)]
        subprocess.run(command + arguments, check=True, capture_output=True)
        row = json.loads(rows.read_text())[0]
    return {name: row[name] for name in ("wall_s", "peak_rss_mb")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-videos", type=int, default=100)
    parser.add_argument(
        "--model",
        default=str(MODEL_IN_THE_BOX),
        help="a model's or a run's folder; the model in the box by default",
    )
    parser.add_argument("--videos", type=Path, default=Path("data/pocket_held_out"))
    parser.add_argument(
        "--first-seed", type=int, default=HELD_OUT_SEED + 100, help="of the videos: others are fresh ones"
    )
    parser.add_argument("--num-codec-pieces", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    for name, kind in (("guidance", float), ("follow", float), ("top_k", int), ("temperature", float)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="the model's own by default")
    parser.add_argument("--evaluator", type=Path, help="a run of gvm-eval train; without it no cmr16 figures")
    parser.add_argument("--truth", action="store_true", help="measure the corpus' own music: the ceiling")
    parser.add_argument("--json", type=Path, help="write the figures as flat keys")
    report(parser.parse_args())


def report(args: argparse.Namespace) -> None:
    args.videos.mkdir(parents=True, exist_ok=True)
    seeds = range(args.first_seed, args.first_seed + args.num_videos)
    videos = [make_pair(seed, args.videos, DURATION_S) for seed in seeds]
    truths = [json.loads(video.with_suffix(".json").read_text()) for video in videos]
    composer = Composer.load(args.model, preset="pocket")
    figures: dict[str, float] = codec_figures(composer.codec, args.num_codec_pieces)
    if args.truth:
        waveforms = [read_waveform(video) for video in videos]
    else:
        chosen = {name: getattr(args, name) for name in ("guidance", "follow", "top_k", "temperature")}
        sampling = composer.sampling(**{name: value for name, value in chosen.items() if value is not None})
        waveforms = compose_all(composer, videos, sampling, args.seed)
    ears = train_ears(composer.codec)
    heard = [ears.hear(waveform, truth) for waveform, truth in zip(waveforms, truths, strict=True)]
    intervals = with_interval(following, heard, truths)
    shuffled = with_interval(following, heard, truths[1:] + truths[:1])
    figures |= sound_figures(heard)
    if args.evaluator:
        figures |= correspondence(load_evaluator(args.evaluator), videos, waveforms)
    for name, (value, low, high) in intervals.items():
        figures[name], figures[f"{name}_shuffled"] = value, shuffled[name][0]
        control = "{:.3f} [{:.3f}, {:.3f}]".format(*shuffled[name])
        print(f"{name:26} {value:.3f} [{low:.3f}, {high:.3f}]   shuffled videos {control}")
    if not args.truth:
        figures |= one_run(videos[0], ["--model", args.model])
    for name, value in figures.items():
        if name not in intervals and not name.endswith("_shuffled"):
            print(f"{name:26} {value:.3f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
