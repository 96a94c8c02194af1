"""The page of `gvm-eval score`: everything in one file, nothing from elsewhere, light and dark."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from gvmgen.evaluation.judging import SystemScores
from gvmgen.evaluation.metrics import BY_NAME, GROUPS
from gvmgen.evaluation.scoring import Scores, described
from gvmgen.evaluation.table import columns, heading, notes, significant, verdict

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6778; --page: #f6f7f9; --card: #fff;
  --line: #dfe3ea; --mark: #2f6fde; --cut: #d03a3a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b5; --page: #14181f;
  --card: #1c222c; --line: #303846; --mark: #6c9cf5; --cut: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: 2rem 1.25rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: .95rem; margin: 0 0 .5rem; } p { margin: .25rem 0; } .soft { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .9rem;
  min-width: 0; overflow-wrap: anywhere; margin: 0 0 1rem; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
.grid .card { margin: 0; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
td small { color: var(--soft); display: block; } td.best b { color: var(--mark); } li { margin: .2rem 0; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--ink); font: 4px system-ui; }
.dot { fill: var(--mark); opacity: .45; } .axis { stroke: var(--line); stroke-width: .3; }
.mean { stroke: var(--ink); stroke-width: .7; }
.item { display: grid; gap: 1rem; grid-template-columns: minmax(0, 20rem) minmax(0, 1fr); }
@media (max-width: 48rem) { .item { grid-template-columns: minmax(0, 1fr); } }
video { width: 100%; display: block; border-radius: .25rem; background: #000; }
button { font: inherit; color: inherit; background: none; border: 1px solid var(--line);
  border-radius: .25rem; padding: .2rem .6rem; margin: .4rem .3rem 0 0; cursor: pointer; }
button[aria-pressed=true] { background: var(--mark); color: #fff; border-color: var(--mark); }
.track { margin: 0 0 .8rem; } .mel { position: relative; cursor: pointer; }
.mel img { width: 100%; height: 5rem; display: block; image-rendering: auto; border-radius: .25rem; }
.mel svg { position: absolute; inset: 0; height: 100%; } .cut { stroke: var(--cut); stroke-width: .3; }
.pitch { fill: none; stroke: #7df9ff; stroke-width: 1.2; vector-effect: non-scaling-stroke; }
.wave { fill: var(--mark); } .wavebox { height: 2.2rem; }
.matrix { width: 9rem; image-rendering: pixelated; border-radius: .25rem; }
"""
# The film is silent; the chosen system's music follows its clock. A click into a picture goes there.
SCRIPT = """
for (const item of document.querySelectorAll('.item')) {
  const film = item.querySelector('video'), sounds = [...item.querySelectorAll('audio')],
    buttons = [...item.querySelectorAll('button')];
  let chosen = 0;
  const follow = () => {
    const sound = sounds[chosen];
    if (Math.abs(sound.currentTime - film.currentTime) > 0.12) sound.currentTime = film.currentTime;
    if (film.paused || film.ended) sound.pause(); else sound.play().catch(() => {});
  };
  const choose = (n) => {
    sounds.forEach((sound, i) => { if (i !== n) sound.pause(); });
    buttons.forEach((button, i) => button.setAttribute('aria-pressed', i === n));
    chosen = n;
    follow();
  };
  buttons.forEach((button, n) => button.addEventListener('click', () => { choose(n); film.play(); }));
  for (const name of ['play', 'pause', 'seeked', 'ended', 'timeupdate']) film.addEventListener(name, follow);
  item.querySelectorAll('.mel').forEach((picture, n) => picture.addEventListener('click', (event) => {
    film.currentTime = event.offsetX / picture.clientWidth * film.duration;
    choose(n);
  }));
  choose(0);
}
"""
MOST_DOTS = 200  # of a system by a metric


@dataclass(frozen=True, kw_only=True)
class Track:
    """One system's music for one video, as the page shows it."""

    system: str
    sound: str  # a data URL
    mel: str  # likewise
    pitch: list[list[tuple[float, float]]]  # stretches of (time, height), 0 … 1
    peaks: list[float]  # 0 … 1
    alignment: str  # a data URL; empty without an evaluator


@dataclass(frozen=True, kw_only=True)
class Example:
    """One video to watch with every system's music."""

    video: str
    film: str  # a data URL
    duration_s: float
    cuts: list[float]  # seconds
    tracks: list[Track]


def page(scores: Scores, examples: Sequence[Example]) -> str:
    """The whole page. Every name is escaped: a file's name cannot become markup."""
    body = [
        "<h1>Scores</h1>",
        f"<p class=soft>{escape(' '.join(heading(scores)))}</p>",
        *(_table(scores, group, title) for group, title in GROUPS.items()),
        _differences(scores),
        _section("Every video", _grid(_distributions(scores))),
        _section("To watch and hear", "".join(map(_example, examples))) if examples else "",
        _section("Notes", _list(line[2:] for line in notes(scores)[2:])) if notes(scores) else "",
    ]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv=Content-Security-Policy content="{policy}">'
        '<meta name=viewport content="width=device-width, initial-scale=1"><title>Scores</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}<script>{SCRIPT}</script></body></html>\n"
    )


def _table(scores: Scores, group: str, title: str) -> str:
    names = columns(scores, group)
    if not names:
        return ""
    head = "".join(
        f"<th title='{escape(BY_NAME[n].about, quote=True)}'>{escape(described(n))}" for n in names
    )
    rows = "".join(
        f"<tr><th>{escape(system.name)}<td>{system.num_pieces}"
        + "".join(_cell(scores, system, name) for name in names)
        for system in scores.systems
        if any(name in system.estimates for name in names)
    )
    meanings = _list(f"{BY_NAME[name].title}: {BY_NAME[name].about}" for name in names)
    return _section(
        title,
        f"<div class='card scroll'><table><tr><th>system<th>N{head}{rows}</table></div>"
        f"<details class=soft><summary>What they mean</summary>{meanings}</details>",
    )


def _cell(scores: Scores, system: SystemScores, metric: str) -> str:
    estimate = system.estimates.get(metric)
    if estimate is None:
        return "<td>–"
    digits = BY_NAME[metric].digits
    extra = []
    if math.isfinite(estimate.low):
        extra.append(f"{estimate.low:.{digits}f} … {estimate.high:.{digits}f}")
    if metric in system.shuffled:
        extra.append(f"shuffled {system.shuffled[metric]:.{digits}f}")
    best = " class=best" if system.name in _best(scores, metric) else ""
    small = "".join(f"<small>{text}</small>" for text in extra)
    return f"<td{best}><b>{estimate.value:.{digits}f}</b>{small}"


def _best(scores: Scores, metric: str) -> set[str]:
    """The systems, without the reference, that read best; none where all read alike, or neither side is."""
    digits, better = BY_NAME[metric].digits, BY_NAME[metric].better
    values = {
        s.name: round(s.estimates[metric].value, digits) for s in scores.candidates if metric in s.estimates
    }
    if not better or len(set(values.values())) < 2:
        return set()
    best = (max if better == "higher" else min)(values.values())
    return {name for name, value in values.items() if value == best}


def _differences(scores: Scores) -> str:
    if not scores.comparisons:
        return ""
    found = [
        f"{described(each.metric)}: {verdict(each)} by {abs(each.difference):.3g} (p = {each.p:.2g})"
        for each in significant(scores)
    ]
    return _section("Differences that are no chance (p < 0.05, adjusted)", _list(found or ["None."]))


def _distributions(scores: Scores) -> Iterable[str]:
    """One card a metric: a dot for each video, or for evenly spread ones of many, a line for the mean."""
    for group in GROUPS:
        for name in columns(scores, group):
            rows = [(s.name, s.items[name]) for s in scores.systems if _is_known(s.items.get(name))]
            if rows:
                yield f"<div class=card><h3>{escape(BY_NAME[name].title)}</h3>{_strip(name, rows)}</div>"


def _is_known(values: np.ndarray | None) -> bool:
    return values is not None and not np.isnan(values).all()


def _strip(name: str, rows: Sequence[tuple[str, np.ndarray]]) -> str:
    every = np.concatenate([values[~np.isnan(values)] for _, values in rows])
    low, high = float(every.min()), max(float(every.max()), float(every.min()) + 1e-6)
    parts = []
    for i, (system, values) in enumerate(rows):
        places = 2 + 96 * (np.sort(values[~np.isnan(values)]) - low) / (high - low)
        y = 12 * i + 8
        parts.append(f"<text x=2 y={y - 3.5}>{escape(system)}</text>")
        parts.append(f"<line class=axis x1=2 x2=98 y1={y} y2={y} />")
        parts += [
            f"<circle class=dot r=1 cx={place:.1f} cy={y} />"
            for place in places[:: -(-len(places) // MOST_DOTS)]
        ]
        mean = float(places.mean())
        parts.append(f"<line class=mean x1={mean:.1f} x2={mean:.1f} y1={y - 2.5} y2={y + 2.5} />")
    digits = BY_NAME[name].digits
    bottom = 12 * len(rows) + 4
    parts.append(f"<text x=2 y={bottom}>{low:.{digits}f}</text>")
    parts.append(f"<text x=98 y={bottom} text-anchor=end>{high:.{digits}f}</text>")
    label = escape(BY_NAME[name].title, quote=True)
    return f"<svg viewBox='0 0 100 {bottom + 2}' role=img aria-label='{label}'>{''.join(parts)}</svg>"


def _example(example: Example) -> str:
    buttons = "".join(
        f"<button type=button aria-pressed=false>{escape(track.system)}</button>" for track in example.tracks
    )
    sounds = "".join(f"<audio preload=auto src='{track.sound}'></audio>" for track in example.tracks)
    film = f"<video controls preload=auto playsinline src='{example.film}'></video>"
    tracks = "".join(_track(track, example) for track in example.tracks)
    return (
        f"<div class=card><h3>{escape(example.video)}</h3><div class=item>"
        f"<div>{film}{sounds}{buttons}</div><div>{tracks}</div></div></div>"
    )


def _track(track: Track, example: Example) -> str:
    cuts = "".join(
        f"<line class=cut x1={100 * cut / example.duration_s:.2f} x2={100 * cut / example.duration_s:.2f} "
        "y1=0 y2=100 />"
        for cut in example.cuts
        if cut < example.duration_s
    )
    pitch = "".join(
        "<polyline class=pitch points='"
        + " ".join(f"{100 * x:.1f},{100 - 100 * y:.1f}" for x, y in stretch)
        + "' />"
        for stretch in track.pitch
    )
    width = 100 / len(track.peaks)
    wave = "".join(
        f"<rect class=wave x={i * width:.2f} width={width * 0.8:.2f} "
        f"y={50 - 50 * peak:.1f} height={100 * peak + 1:.1f} />"
        for i, peak in enumerate(track.peaks)
    )
    name = escape(track.system, quote=True)
    matrix = (
        f"<p><img class=matrix alt='a(v, m) of {name}' src='{track.alignment}'> "
        "<span class=soft>a(v, m): seconds of video down, of music across</span></p>"
        if track.alignment
        else ""
    )
    over = "viewBox='0 0 100 100' preserveAspectRatio=none"
    return (
        f"<div class=track><b>{name}</b>"
        f"<div class=mel><img alt='mel spectrogram of {name}' src='{track.mel}'>"
        f"<svg {over} aria-hidden=true>{pitch}{cuts}</svg></div>"
        f"<svg {over} class=wavebox role=img aria-label='waveform of {name}, cuts marked'>{wave}{cuts}</svg>"
        f"{matrix}</div>"
    )


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}' for line in lines)}</ul>"


def _grid(cards: Iterable[str]) -> str:
    return f"<div class=grid>{''.join(cards)}</div>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"
