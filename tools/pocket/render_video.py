"""Scenario -> frames: procedural scenes that move, brighten and change colour as the scenario says.

Motion is visible in one frame alone, as in a camera's: all that moves is smeared along its way during
EXPOSURE_S. Needs OpenCV (`opencv-python-headless`), which the package itself does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
from scenario import STILL, Scenario, Scene

WIDTH, HEIGHT = 448, 336
VIDEO_RATE = 12  # frames a second
EXPOSURE_S = 1 / 6
FULL_SPEED = 520.0  # pixels a second at motion 1
TILE = 1536  # width of a wrapped panorama

Painter = Callable[[float, float], np.ndarray]  # (way in pixels, smear in pixels) -> albedo uint8 [H, W, 3]


def video_frames(scenario: Scenario) -> Iterator[np.ndarray]:
    """uint8 [336, 448, 3] RGB, VIDEO_RATE a second."""
    stage = Stage(scenario)
    for index in range(round(scenario.duration_s * VIDEO_RATE)):
        yield stage.frame(index / VIDEO_RATE)


class Stage:
    """The scenes of one scenario, each built when it is first shown."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._scenes: dict[float, _RenderedScene] = {}
        self._rng = np.random.default_rng((scenario.seed, 3))
        self._grain = self._rng.normal(0, scenario.noise, (HEIGHT + 64, WIDTH + 64, 3)).astype(np.int16)

    def frame(self, time_s: float) -> np.ndarray:
        scene = self._scenario.scene_at(time_s)
        if scene.start_s not in self._scenes:
            self._scenes = {scene.start_s: _RenderedScene(self._scenario, scene)}
        picture = self._scenes[scene.start_s].frame(time_s)
        return self._finish(picture)

    def _finish(self, picture: np.ndarray) -> np.ndarray:
        if self._scenario.noise:
            y, x = self._rng.integers(0, 64, 2)
            grain = self._grain[y : y + HEIGHT, x : x + WIDTH]
            picture = np.clip(picture.astype(np.int16) + grain, 0, 255).astype(np.uint8)
        if self._scenario.caption:
            place = (24, int(HEIGHT * 0.82))
            cv2.putText(
                picture, self._scenario.caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.8, (235, 235, 235), 2
            )
        bar = round(self._scenario.letterbox * HEIGHT)
        if bar:
            picture[:bar] = 0
            picture[-bar:] = 0
        return picture


class _RenderedScene:
    """One scene: its painter, the way travelled since its start, its light and colour."""

    def __init__(self, scenario: Scenario, scene: Scene) -> None:
        self._scenario, self._scene = scenario, scene
        rng = np.random.default_rng(scene.seed)
        self._paint = PAINTERS[scene.kind](rng)
        self._times = np.arange(scene.start_s, scene.end_s + 0.05, 0.02)
        speeds = np.array([self._speed(t) for t in self._times])
        self._way = np.concatenate([[0.0], np.cumsum(0.5 * (speeds[1:] + speeds[:-1]) * 0.02)])

    def _speed(self, time_s: float) -> float:
        motion = float(np.interp(time_s, self._scene.times, self._scene.motion))
        return FULL_SPEED * motion if motion > STILL else 0.0

    def frame(self, time_s: float) -> np.ndarray:
        smear = self._speed(time_s) * EXPOSURE_S
        albedo = self._paint(float(np.interp(time_s, self._times, self._way)), smear)
        brightness = float(np.interp(time_s, self._scene.times, self._scene.brightness))
        return graded(albedo, brightness, self._scene.temperature)


def graded(albedo: np.ndarray, brightness: float, temperature: float) -> np.ndarray:
    """Light and colour: mean luminance about 0.05 + 0.7 x brightness, red against blue by temperature."""
    wanted = 0.05 + 0.7 * brightness
    levels = np.linspace(0, 1, 256)
    mean = float(albedo[::8, ::8].mean()) / 255
    lit = levels * wanted / mean if wanted < mean else 1 - (1 - levels) * (1 - wanted) / max(0.001, 1 - mean)
    tint = np.array([1 + 0.55 * temperature, 1 + 0.05 * abs(temperature), 1 - 0.55 * temperature])
    tint /= tint @ (0.3, 0.59, 0.11)
    table = np.clip(lit[:, None] * tint * 255, 0, 255).astype(np.uint8)[None]  # [1, 256, 3]
    return cv2.LUT(albedo, table)


def _noise(rng: np.random.Generator, height: int, width: int, coarsest: int, octaves: int) -> np.ndarray:
    """float32 [height, width] in 0 … 1, wrapped along x: random grids of finer and finer cells."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = coarsest * 2**octave
        grid = rng.random((max(2, cells * height // width), cells), dtype=np.float32)
        grid = np.concatenate([grid, grid[:, :1]], axis=1)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * 0.55**octave
    low, high = np.percentile(total, [1, 99])
    return np.clip((total - low) / (high - low + 1e-6), 0, 1)


def _colours(rng: np.random.Generator, count: int) -> np.ndarray:
    """[count, 3] albedos with moderate saturation around grey: the light decides the temperature."""
    grey = rng.uniform(0.2, 0.8, (count, 1))
    return np.clip(grey + rng.normal(0, 0.07, (count, 3)), 0.05, 0.95)


def _between(values: np.ndarray, dark: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Albedo uint8 [..., 3] between two colours."""
    return ((dark + values[..., None] * (light - dark)) * 255).astype(np.uint8)


def _window(panorama: np.ndarray, way: float, smear: float) -> np.ndarray:
    """The camera's view [H, W, C] of a panorama wrapped along x, smeared along x."""
    length = max(1, round(smear))
    start = int(way) % TILE
    margin = length // 2 + 1
    columns = np.arange(start - margin, start + WIDTH + margin) % TILE
    view = panorama[:, columns[0] : columns[-1] + 1] if columns[0] < columns[-1] else panorama[:, columns]
    if length > 1:
        view = cv2.blur(view, (length, 1))
    return view[:, margin : margin + WIDTH]


def _over(below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """A layer of four channels (colour times cover, cover) over a picture."""
    red, green, blue, cover = cv2.split(above)
    uncovered = cv2.bitwise_not(cover)
    kept = cv2.multiply(np.ascontiguousarray(below), cv2.merge([uncovered] * 3), scale=1 / 255)
    return cv2.add(cv2.merge([red, green, blue]), kept)


def _layer(colour: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """uint8 [H, TILE, 4]: colour times cover, and the cover."""
    return np.concatenate([colour * cover[..., None], 255 * cover[..., None]], axis=-1).astype(np.uint8)


def _panorama_painter(sky: np.ndarray, layers: list[np.ndarray]) -> Painter:
    """Far layers move slower than near ones, as from a train."""
    shares = np.linspace(0.35, 1.0, len(layers))

    def paint(way: float, smear: float) -> np.ndarray:
        picture = np.broadcast_to(sky, (HEIGHT, WIDTH, 3))
        for layer, share in zip(layers, shares, strict=True):
            picture = _over(picture, _window(layer, way * share, smear * share))
        return picture

    return paint


def _sky(rng: np.random.Generator) -> np.ndarray:
    top, bottom = _colours(rng, 2)
    return _between(np.linspace(0, 1, HEIGHT, dtype=np.float32)[:, None], top, np.clip(bottom + 0.15, 0, 1))


def landscape(rng: np.random.Generator) -> Painter:
    """Ridges of noise behind one another, the nearest with a ground texture."""
    layers = []
    for depth in range(3):
        ridge = _noise(rng, 8, TILE, 3 + 3 * depth, 5)[4] * HEIGHT * 0.3 + HEIGHT * (0.25 + 0.2 * depth)
        cover = (np.arange(HEIGHT)[:, None] > ridge[None]).astype(np.float32)
        dark, light = np.sort(_colours(rng, 2), axis=0)
        ground = _noise(rng, HEIGHT, TILE, 24 * (depth + 1), 4)
        layers.append(_layer(_between(ground, dark, light), cover))
    return _panorama_painter(_sky(rng), layers)


def city(rng: np.random.Generator) -> Painter:
    """Blocks with rows of windows, some lit."""
    layers = []
    for depth in range(2):
        colour = np.zeros((HEIGHT, TILE, 3), np.float32)
        cover = np.zeros((HEIGHT, TILE), np.float32)
        x = 0
        while x < TILE:
            width = int(rng.integers(40, 110)) * (depth + 1) // 2
            top = int(rng.uniform(0.15 + 0.25 * depth, 0.65) * HEIGHT)
            cover[top:, x : x + width] = 1
            colour[top:, x : x + width] = _colours(rng, 1)[0] * 160
            for y in range(top + 6, HEIGHT, 14):
                for window in range(x + 4, min(x + width, TILE) - 6, 12):
                    colour[y : y + 8, window : window + 6] = 245 if rng.random() < 0.4 else 40
            x += width + int(rng.integers(0, 20))
        layers.append(_layer(colour, cover))
    return _panorama_painter(_sky(rng), layers)


def texture(rng: np.random.Generator) -> Painter:
    """A plane of noise under a turned camera: sand, water, cloud, stone."""
    values = _noise(rng, 640, TILE, int(rng.integers(6, 24)), int(rng.integers(5, 7)))
    dark, light = np.sort(_colours(rng, 2), axis=0)
    if rng.random() < 0.3:
        values = np.abs(2 * values - 1)
    plane = _between(values, dark * 0.6, np.clip(light * 1.3, 0, 1))
    turn = cv2.getRotationMatrix2D((WIDTH / 2, 320), float(rng.uniform(0, 360)), 1.15)
    turn[1, 2] -= 320 - HEIGHT / 2

    def paint(way: float, smear: float) -> np.ndarray:
        view = _window(plane, way, smear)
        return cv2.warpAffine(
            view, turn, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )

    return paint


def waves(rng: np.random.Generator) -> Painter:
    """Crossing waves of light, moving along their own directions."""
    y, x = np.mgrid[0 : HEIGHT // 2, 0 : WIDTH // 2].astype(np.float32) * 2
    angles = rng.uniform(0, 2 * np.pi, 4)
    lengths = rng.uniform(30, 150, 4)
    fields = [
        2 * np.pi * (np.cos(a) * x + np.sin(a) * y) / wave for a, wave in zip(angles, lengths, strict=True)
    ]
    dark, light = np.sort(_colours(rng, 2), axis=0)

    def paint(way: float, smear: float) -> np.ndarray:
        total = np.zeros_like(x)
        for field, wave in zip(fields, lengths, strict=True):
            total += np.sin(field - 2 * np.pi * way / wave) * np.sinc(smear / wave)
        small = _between(np.clip(0.5 + 0.25 * total, 0, 1), dark * 0.5, np.clip(light * 1.3, 0, 1))
        return cv2.resize(small, (WIDTH, HEIGHT))

    return paint


def shapes(rng: np.random.Generator) -> Painter:
    """Discs, squares and triangles that cross a still background."""
    background = np.ascontiguousarray(np.broadcast_to(_sky(rng), (HEIGHT, WIDTH, 3)))
    if rng.random() < 0.5:
        dark, light = np.sort(_colours(rng, 2), axis=0)
        background = _between(_noise(rng, HEIGHT, WIDTH, 8, 5), dark, light)
    count = int(rng.integers(8, 26))
    colours = rng.choice([0.4, 1.6], (count, 1)) * _colours(rng, count)
    tones = (np.clip(colours, 0, 1) * 255).astype(int).tolist()
    sizes = rng.uniform(14, 60, count)
    corners = rng.choice([3, 4, 6, 40], count)
    starts = rng.uniform(0, 1, (count, 2)) * (WIDTH, HEIGHT)
    angles = rng.uniform(0, 2 * np.pi, count)
    directions = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.6, 1.2, (count, 1))

    def paint(way: float, smear: float) -> np.ndarray:
        samples = int(np.clip(smear / 4, 1, 8))
        total = np.zeros((HEIGHT, WIDTH, 3), np.uint16)
        for sample in range(samples):
            picture = background.copy()
            place = starts + directions * (way + smear * (sample + 0.5) / samples - smear / 2)
            room = (WIDTH + 140, HEIGHT + 140)
            for index, centre in enumerate(place % room - 70):
                turn = np.arange(corners[index]) * 2 * np.pi / corners[index] + angles[index]
                points = centre + sizes[index] * np.stack([np.cos(turn), np.sin(turn)], 1)
                cv2.fillConvexPoly(picture, np.round(points).astype(np.int32), tones[index], cv2.LINE_AA)
            total += picture
        return (total // samples).astype(np.uint8)

    return paint


def particles(rng: np.random.Generator) -> Painter:
    """A crowd: snow, sparks, birds; every particle a stroke as long as its way during the exposure."""
    background = np.ascontiguousarray(np.broadcast_to(_sky(rng), (HEIGHT, WIDTH, 3))) // 2
    count = int(rng.integers(80, 320))
    starts = rng.uniform(0, 1, (count, 2)) * (WIDTH, HEIGHT)
    heading = rng.uniform(0, 2 * np.pi)
    spread = rng.choice([0.15, 0.6, 3.1])
    angles = heading + rng.uniform(-spread, spread, count)
    depth = rng.uniform(0.5, 1.2, count)
    directions = np.stack([np.cos(angles), np.sin(angles)], 1) * depth[:, None]
    sizes = np.maximum(1, np.round(depth * rng.uniform(2, 6))).astype(int)
    tones = rng.integers(150, 255, count)

    def paint(way: float, smear: float) -> np.ndarray:
        picture = background.copy()
        place = (starts + directions * way) % (WIDTH + 40, HEIGHT + 40) - 20
        half = directions * smear / 2
        begins, ends = np.round(place - half).astype(int), np.round(place + half).astype(int)
        for begin, end, size, tone in zip(
            begins.tolist(), ends.tolist(), sizes.tolist(), tones.tolist(), strict=True
        ):
            cv2.line(picture, begin, end, (tone, tone, tone), size)
        return picture

    return paint


PAINTERS: dict[str, Callable[[np.random.Generator], Painter]] = {
    "landscape": landscape,
    "texture": texture,
    "shapes": shapes,
    "particles": particles,
    "city": city,
    "waves": waves,
}
