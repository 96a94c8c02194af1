"""What one pair of video and music is about: its scenes, and how motion, brightness and colour run in time.

The picture and the music are both made from one Scenario, so its curves are the known truth of the pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

FAMILIES = ("keyboard", "bowed", "blown", "plucked")  # from the coldest picture to the warmest
FAMILY_TEMPERATURES = (-0.85, -0.3, 0.3, 0.85)  # -1 deep blue, +1 deep orange
SCENE_KINDS = ("landscape", "texture", "shapes", "particles", "city", "waves")
STEP_FRAMES = (10, 8, 6, 5)  # code frames (1/50 s) in a sixteenth note: 75, 93.75, 125 and 150 beats a minute
STILL = 0.08  # below this motion the picture stands still


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is seen between two cuts."""

    start_s: float
    end_s: float
    kind: str
    family: str
    temperature: float  # -1 cold … +1 warm
    times: tuple[float, ...]  # s, control points of the two curves
    motion: tuple[float, ...]  # 0 stands still … 1 rushes
    brightness: tuple[float, ...]  # 0 night … 1 glaring day
    seed: int


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One pair. `letterbox` is the share of the height that is black; `caption` is drawn when not empty.

    Pieces of one seed have the same picture and each its own music, three in a row in three keys: what a
    picture does not tell should not be learned from it.
    """

    seed: int
    piece: int = 0
    duration_s: float
    step_frames: int
    scenes: tuple[Scene, ...]
    letterbox: float
    caption: str
    noise: float  # standard deviation of the sensor noise, of 255

    @property
    def cuts_s(self) -> tuple[float, ...]:
        return tuple(scene.start_s for scene in self.scenes[1:])

    def scene_at(self, time_s: float) -> Scene:
        return next((s for s in reversed(self.scenes) if s.start_s <= time_s + 1e-6), self.scenes[0])

    def motion(self, time_s: float) -> float:
        scene = self.scene_at(time_s)
        return float(np.interp(time_s, scene.times, scene.motion))

    def brightness(self, time_s: float) -> float:
        scene = self.scene_at(time_s)
        return float(np.interp(time_s, scene.times, scene.brightness))


def make_scenario(seed: int, duration_s: float = 15.0, piece: int = 0) -> Scenario:
    """The scenario of a seed: the same seed and piece give the same pair on every machine."""
    rng = np.random.default_rng((seed, 1))
    cuts = _cuts(rng, duration_s)
    bounds = [0.0, *cuts, duration_s]
    pace = rng.beta(0.9, 0.9)  # slow videos and fast videos, not all in the middle
    light = rng.beta(0.9, 0.9)
    family = int(rng.integers(len(FAMILIES)))
    scenes = []
    for start_s, end_s in pairwise(bounds):
        if scenes and rng.random() < 0.5:
            family = int(rng.integers(len(FAMILIES)))
        scenes.append(_scene(rng, start_s, end_s, pace, light, family))
    mean_motion = float(np.mean([m for scene in scenes for m in scene.motion]))
    tempo = int(np.clip(round(mean_motion * 4 - 0.5 + rng.normal(0, 0.3)), 0, 3))
    return Scenario(
        seed=seed,
        piece=piece,
        duration_s=duration_s,
        step_frames=STEP_FRAMES[tempo],
        scenes=tuple(scenes),
        letterbox=float(rng.choice([0.0, 0.0, 0.0, 0.08, 0.12])),
        caption=_caption(rng) if rng.random() < 0.2 else "",
        noise=float(rng.choice([0.0, 2.0, 5.0])),
    )


def _cuts(rng: np.random.Generator, duration_s: float) -> list[float]:
    """Zero to duration/3 cuts, each just before a whole second, at least two seconds apart."""
    wanted = int(rng.integers(0, int(duration_s / 3)))
    seconds = rng.permutation(np.arange(2, int(duration_s) - 1))
    chosen: list[int] = []
    for second in seconds:
        if len(chosen) < wanted and all(abs(second - other) >= 2 for other in chosen):
            chosen.append(int(second))
    return [second - float(rng.uniform(0.02, 0.2)) for second in sorted(chosen)]


def _scene(
    rng: np.random.Generator, start_s: float, end_s: float, pace: float, light: float, family: int
) -> Scene:
    num_points = max(2, round((end_s - start_s) / 2.5) + 1)
    return Scene(
        start_s=start_s,
        end_s=end_s,
        kind=str(rng.choice(SCENE_KINDS)),
        family=FAMILIES[family],
        temperature=float(np.clip(FAMILY_TEMPERATURES[family] + rng.normal(0, 0.08), -1, 1)),
        times=tuple(np.linspace(start_s, end_s, num_points).tolist()),
        motion=_curve(rng, num_points, pace, still_chance=0.2),
        brightness=_curve(rng, num_points, light, still_chance=0.0),
        seed=int(rng.integers(2**31)),
    )


def _curve(
    rng: np.random.Generator, num_points: int, centre: float, still_chance: float
) -> tuple[float, ...]:
    """Control points in 0 … 1: level, a ramp, or free, around the video's own centre."""
    if rng.random() < still_chance:
        return (0.0,) * num_points
    start, end = np.clip(0.5 * centre + 0.5 * rng.random(2), 0, 1)
    shape = rng.choice(["level", "ramp", "free"])
    if shape == "level":
        end = start
    points = np.linspace(start, end, num_points)
    if shape == "free":
        points = np.clip(rng.normal(0.5 * (start + end), 0.3, num_points), 0, 1)
    stretched = np.clip((points - 0.5) * 1.3 + 0.5, 0, 1)
    return tuple(np.round(stretched, 3).tolist())


def _caption(rng: np.random.Generator) -> str:
    words = ("DAY", "NIGHT", "the river", "north", "LIVE", "chapter", "2026", "a long way", "home", "signal")
    return " ".join(rng.choice(words, size=int(rng.integers(1, 4))))


def truth_per_second(scenario: Scenario) -> dict:
    """The pair's truth as plain JSON: one value a second, averaged over that second, and the cuts."""
    seconds = range(int(np.ceil(scenario.duration_s)))
    offsets = (np.arange(10) + 0.5) / 10

    def averaged(curve) -> list[float]:
        return [round(float(np.mean([curve(s + o) for o in offsets])), 4) for s in seconds]

    scenes = [scenario.scene_at(second + 0.5) for second in seconds]
    return {
        "seed": scenario.seed,
        "duration_s": scenario.duration_s,
        "step_frames": scenario.step_frames,
        "motion": averaged(scenario.motion),
        "brightness": averaged(scenario.brightness),
        "temperature": [round(scene.temperature, 4) for scene in scenes],
        "family": [scene.family for scene in scenes],
        "kind": [scene.kind for scene in scenes],
        "cuts_s": [round(cut, 4) for cut in scenario.cuts_s],
    }
