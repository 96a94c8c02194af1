"""From what was measured of each file to the numbers of one system. I videos; NaN where there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gvmgen.evaluation.content import cut_alignment, energy_motion, onset_motion
from gvmgen.evaluation.distribution import (
    EmbeddedSet,
    Gaussian,
    KernelSums,
    diversity,
    fad,
    fidelity,
    frechet_distance,
    kad,
    kernel_width,
    kl_divergence,
)
from gvmgen.evaluation.evaluated import Evaluated
from gvmgen.evaluation.measuring import Heard
from gvmgen.evaluation.motion import Motion
from gvmgen.evaluation.sound import Sound, key_agreement, tempo_agreement
from gvmgen.evaluation.statistics import Estimate, halves, mean_estimate, set_estimate

NUM_HALVES = 40
_SIZES_OF_HALVES = 5
_ROTATIONS = 5  # of the music against the videos, for the control

Takes = Mapping[str, Sequence[Heard]]  # by video
PAIR_METRICS: dict[str, Callable[[Sound, Motion], float]] = {
    "onset_motion": onset_motion,
    "energy_motion": energy_motion,
    "cut_onsets": lambda sound, motion: cut_alignment(sound.onsets, motion),
    "cut_beats": lambda sound, motion: cut_alignment(sound.beats, motion),
}


@dataclass(frozen=True, kw_only=True)
class SystemScores:
    """All numbers of one system."""

    name: str
    has_music: np.ndarray  # bool [I]
    items: dict[str, np.ndarray]  # by metric [I]
    estimates: dict[str, Estimate]
    shuffled: dict[str, float]  # metrics of a pair, with the music of other videos
    of_halves: dict[str, list[float]] = field(default_factory=dict)  # metrics of sets

    @property
    def num_pieces(self) -> int:
        return int(self.has_music.sum())


class Reference:
    """The music that the others are held against."""

    def __init__(self, takes: Takes) -> None:
        self.videos = list(takes)
        self.heard = {video: found[0] for video, found in takes.items()}
        self.embedded = EmbeddedSet.of([heard.embedding.rows for heard in self.heard.values()])
        self.gaussian = Gaussian(self.embedded.rows)
        self.width = kernel_width(self.embedded.rows)
        self.kernel = KernelSums.between(self.embedded, self.embedded, self.width)


def judge(
    name: str,
    videos: Sequence[str],
    motions: Mapping[str, Motion],
    takes: Takes,
    reference: Reference | None,
    evaluated: Evaluated | None = None,
) -> SystemScores:
    """The numbers of a system with music for some of the videos; a video may lack its picture's measures."""
    first = {video: found[0] for video, found in takes.items()}
    items = {metric: _of_pairs(videos, motions, takes, measure) for metric, measure in PAIR_METRICS.items()}
    items |= _of_sounds(videos, motions, first) | _diversities(videos, takes)
    control = _shuffled(motions, first)
    if evaluated is not None:
        items |= {metric: _column(videos, values) for metric, values in evaluated.items.items()}
        control |= evaluated.shuffled
    estimates: dict[str, Estimate] = {}
    of_halves: dict[str, list[float]] = {}
    if reference is not None:
        items |= _of_reference(videos, first, reference)
        estimates, of_halves = _of_sets(first, reference)
    estimates |= {metric: mean_estimate(values) for metric, values in items.items()}
    return SystemScores(
        name=name,
        has_music=np.array([video in takes for video in videos]),
        items=items,
        estimates={metric: estimate for metric, estimate in estimates.items() if estimate.num},
        shuffled=control,
        of_halves=of_halves,
    )


def _of_pairs(
    videos: Sequence[str],
    motions: Mapping[str, Motion],
    takes: Takes,
    measure: Callable[[Sound, Motion], float],
) -> np.ndarray:
    """[I]: the mean over the takes."""
    return _column(
        videos,
        {
            video: float(np.mean([measure(heard.sound, motions[video]) for heard in found]))
            for video, found in takes.items()
            if video in motions
        },
    )


def _shuffled(motions: Mapping[str, Motion], first: Mapping[str, Heard]) -> dict[str, float]:
    """The same metrics with each video's music exchanged for another's: what they read where nothing fits."""
    videos = [video for video in first if video in motions]
    pairs = [
        (first[videos[(i + step) % len(videos)]].sound, motions[video])
        for step in range(1, min(_ROTATIONS, len(videos) - 1) + 1)
        for i, video in enumerate(videos)
    ]
    found = {}
    for metric, measure in PAIR_METRICS.items():
        values = np.array([measure(sound, motion) for sound, motion in pairs])
        if not np.isnan(values).all():
            found[metric] = float(np.nanmean(values))
    return found


def _of_sounds(
    videos: Sequence[str], motions: Mapping[str, Motion], first: Mapping[str, Heard]
) -> dict[str, np.ndarray]:
    sounds = {video: heard.sound for video, heard in first.items()}
    return {
        "bpm": _column(videos, {video: sound.tempo for video, sound in sounds.items()}),
        **{
            metric: _column(videos, {video: getattr(sound, metric) for video, sound in sounds.items()})
            for metric in ("key_clarity", "loudness", "silence", "clipping")
        },
        "length_s": _column(
            videos,
            {
                video: heard.full_s - motions[video].duration_s
                for video, heard in first.items()
                if video in motions
            },
        ),
    }


def _diversities(videos: Sequence[str], takes: Takes) -> dict[str, np.ndarray]:
    """Between videos, from the first takes, and between the takes of a video."""
    means = {
        video: np.stack([h.embedding.rows.mean(axis=0) for h in found]) for video, found in takes.items()
    }
    found = {}
    if len(means) > 1:
        between = diversity(np.stack([of_takes[0] for of_takes in means.values()]))
        found["diversity"] = _column(videos, dict(zip(means, between, strict=True)))
    found["take_diversity"] = _column(
        videos,
        {video: float(diversity(of_takes).mean()) for video, of_takes in means.items() if len(of_takes) > 1},
    )
    return found


def _of_reference(
    videos: Sequence[str], first: Mapping[str, Heard], reference: Reference
) -> dict[str, np.ndarray]:
    """Metrics that compare a piece with the reference's, or have a value for each of them."""
    both = {video: (first[video], reference.heard[video]) for video in first if video in reference.heard}
    found = {
        "key_agreement": _column(videos, {v: _keys(a.sound, b.sound) for v, (a, b) in both.items()}),
        "tempo_agreement": _column(videos, {v: _tempi(a.sound, b.sound) for v, (a, b) in both.items()}),
    }
    classes = {v: (a.embedding.classes, b.embedding.classes) for v, (a, b) in both.items()}
    found["kld"] = _column(
        videos,
        {v: kl_divergence(b, a) for v, (a, b) in classes.items() if a is not None and b is not None},
    )
    own = EmbeddedSet.of([heard.embedding.rows for heard in first.values()])
    faithful = fidelity(reference.embedded.means, own.means)
    if faithful is not None:
        for metric in ("precision", "density"):
            found[metric] = _column(videos, dict(zip(first, getattr(faithful, metric), strict=True)))
        for metric in ("recall", "coverage"):
            of_reference = dict(zip(reference.videos, getattr(faithful, metric), strict=True))
            found[metric] = _column(videos, of_reference)
    return found


def _keys(sound: Sound, wanted: Sound) -> float:
    """0 where the music has no key; NaN where the reference has none."""
    if not wanted.key:
        return float("nan")
    return key_agreement(sound.key, wanted.key) if sound.key else 0.0


def _tempi(sound: Sound, wanted: Sound) -> float:
    if np.isnan(wanted.tempo):
        return float("nan")
    return 0.0 if np.isnan(sound.tempo) else tempo_agreement(sound.tempo, wanted.tempo)


def _of_sets(
    first: Mapping[str, Heard], reference: Reference
) -> tuple[dict[str, Estimate], dict[str, list[float]]]:
    """FAD, its limit and KAD: values and intervals, and what the same random halves of the music give."""
    own = EmbeddedSet.of([heard.embedding.rows for heard in first.values()])
    cross = KernelSums.between(own, reference.embedded, reference.width)
    within = KernelSums.between(own, own, reference.width)

    def kernel_distance(items: np.ndarray) -> float:
        return kad(reference.kernel, cross, within, items)

    whole = fad(reference.gaussian, own, np.random.default_rng(0))
    values = {"fad": whole.value, "fad_inf": whole.at_infinity, "kad": kernel_distance(np.arange(len(own)))}
    parts = halves(len(own), NUM_HALVES) if len(own) >= 4 else []
    of_halves = {
        "fad": [frechet_distance(reference.gaussian, Gaussian(own.some(part))) for part in parts],
        "fad_inf": [_limit(reference.gaussian, own, part) for part in parts],
        "kad": [kernel_distance(part) for part in parts],
    }
    estimates = {
        metric: set_estimate(value, of_halves[metric], len(own))
        for metric, value in values.items()
        if not np.isnan(value)
    }
    return estimates, of_halves


def _limit(reference: Gaussian, own: EmbeddedSet, part: np.ndarray) -> float:
    return fad(reference, own.part(part), np.random.default_rng(0), _SIZES_OF_HALVES).at_infinity


def _column(videos: Sequence[str], values: Mapping[str, float]) -> np.ndarray:
    return np.array([values.get(video, np.nan) for video in videos], float)
