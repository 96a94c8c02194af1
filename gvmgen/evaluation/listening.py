"""`gvm-eval listen`: a page that anybody can open, on which systems are heard without their names."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gvmgen.evaluation import excerpts
from gvmgen.evaluation.extras import needed
from gvmgen.evaluation.measuring import read_music
from gvmgen.evaluation.midi import check_midi
from gvmgen.evaluation.pairing import System, find_system, find_videos
from shards.spec import SAMPLE_RATE

KEY_KIND = "gvm-eval listening key"
# What is asked, as in table 2 of the publication, and what 1 and 7 mean.
SCALES = (
    ("overall", "Overall music quality", "very poor", "excellent"),
    ("correspondence", "How well music and film fit together", "not at all", "perfectly"),
    ("richness", "Richness of the music", "very plain", "very rich"),
)
LOUDNESS = -23.0  # LUFS (EBU R 128) of all music: the louder of two is taken for the better
_WIDTH, _QUALITY = 480, 27  # pixels, CRF


def make_test(
    videos: Path,
    systems: Sequence[tuple[str, Path]],
    out: Path,
    *,
    films_per_listener: int,
    seconds: float,
    seed: int,
    soundfont: Path | None = None,
) -> str:
    """Write the page, and beside it the key that says who is who. Returns one line for a person.

    Only videos that all systems have music for: a system must not gain by what it left out.
    """
    if len(systems) != len({name for name, _ in systems}):
        raise ValueError("--system: a name is given twice")
    needed("pyloudnorm")
    found = find_videos(videos)
    heard = [find_system(name, folder, found) for name, folder in systems]
    check_midi((path for system in heard for path in system.files), soundfont)
    common = [video for video in found if all(video in system.takes for system in heard)]
    if not common:
        raise ValueError(f"--videos {videos}: no video has music of every system")
    rng = np.random.default_rng(seed)
    films, media, key = [], {}, {}
    for video in tqdm(common, desc="films", unit=" films"):
        codes = [rng.bytes(6).hex() for _ in heard]
        films.append(codes)
        for code, system in zip(codes, heard, strict=True):
            media[code] = _film(found[video], system, video, seconds, soundfont)
            key[code] = {"video": video, "system": system.name}
    test = {
        "id": hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16],
        "scales": SCALES,
        "orders": balanced_orders(len(heard)),
        "films_per_listener": min(films_per_listener, len(films)),
        "films": films,
        "media": dict(sorted(media.items())),  # the order of the systems must not show
    }
    key_path = key_of(out)
    if key_path.exists() and json.loads(key_path.read_text(encoding="utf-8")).get("test") != test["id"]:
        raise ValueError(f"{key_path}: is the key to another test, whose answers need it; give another --out")
    out.write_text(page(test), encoding="utf-8")
    key_path.write_text(
        json.dumps({"kind": KEY_KIND, "test": test["id"], "trials": key}, indent=2, ensure_ascii=False)
        + "\n",
        encoding="utf-8",
    )
    left_out = f", {len(found) - len(common)} videos left out" if len(common) < len(found) else ""
    return f"{out}: {len(common)} films, {len(heard)} systems{left_out}; who is who: {key_path}"


def key_of(page_path: Path) -> Path:
    return page_path.with_suffix(".key.json")


def _film(video: Path, system: System, name: str, seconds: float, soundfont: Path | None) -> str:
    """A film with its music at the common loudness, base64."""
    waveform, _ = read_music(system.takes[name][0], seconds, soundfont)
    meter = needed("pyloudnorm").Meter(SAMPLE_RATE)
    padded = np.pad(waveform, (0, max(0, round(meter.block_size * SAMPLE_RATE) - len(waveform))))
    with np.errstate(divide="ignore"):
        loudness = float(meter.integrated_loudness(padded.astype(np.float64)))
    gain = 10 ** ((LOUDNESS - loudness) / 20) if np.isfinite(loudness) else 1.0
    gain = min(gain, 1 / max(float(np.abs(waveform).max()), 1e-9))  # rather too soft than clipped
    url = excerpts.film(video, waveform * np.float32(gain), seconds, _WIDTH, _QUALITY)
    return url.partition(",")[2]


def balanced_orders(num_systems: int) -> list[list[int]]:
    """Williams' square: each system is as often in each place, and as often right after each other one.

    Rows: as many as systems, twice as many where that number is odd (Williams 1949).
    """
    first = [0]
    low, high = 1, num_systems - 1
    while low <= high:
        first.append(low)
        if low < high:
            first.append(high)
        low, high = low + 1, high - 1
    rows = [[(place + shift) % num_systems for place in first] for shift in range(num_systems)]
    return rows + [row[::-1] for row in rows] if num_systems % 2 and num_systems > 1 else rows


def page(test: dict[str, Any]) -> str:
    """The page with its script and the test in it. The script runs by its hash alone."""
    room = files("gvmgen.evaluation")
    script = "\n" + (room / "listening.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    content = json.dumps(test).replace("<", "\\u003c")
    text = (room / "listening.html").read_text(encoding="utf-8")
    text = text.replace("__SCRIPT_HASH__", f"sha256-{digest}").replace("__SCRIPT__", script)
    return text.replace("__TEST__", content)
