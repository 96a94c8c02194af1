"""The report's HTML: no script, nothing from elsewhere, light and dark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from pipeline.samples import Picture

ALL = "all"
TITLES = {
    "source": "Source",
    "kind": "Kind of video",
    "style": "Style of music",
    "split": "Split",
    "licence": "Licence",
}
STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6778; --page: #f6f7f9; --card: #fff;
  --line: #dfe3ea; --kept: #2f6fde; --dropped: #c9853a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b5; --page: #14181f; --card:
#1c222c;
  --line: #303846; --kept: #6c9cf5; --dropped: #dba25e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--page); color:
var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: .95rem; margin: 0 0 .5rem; } p { margin: .25rem 0; } .soft, caption { color: var(--soft); }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); column-gap: 1.5rem; }
.wide h2 { margin-top: 1.25rem; } .total > * { font-weight: 600; border-bottom: 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .9rem;
min-width: 0;
  overflow-wrap: anywhere; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1rem 0; }
.figures b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric:
tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; white-space: nowrap; overflow-wrap: normal; } td.bar { width: 25%; }
td:first-child { min-width: 8rem; }
.bar span { display: inline-block; height: .7rem; vertical-align: middle; }
.kept { background: var(--kept); fill: var(--kept); } .dropped { background: var(--dropped); fill:
var(--dropped); }
svg { display: block; width: 100%; height: auto; } img { width: 100%; display: block; border-radius: .25rem; }
.ends { display: flex; justify-content: space-between; font-size: .8rem; color: var(--soft); }
.sample { font-size: .85rem; } .why { color: var(--dropped); } .none { aspect-ratio: 16/9; display: grid;
  place-items: center; border: 1px dashed var(--line); border-radius: .25rem; }
code { font-size: .85em; overflow-wrap: anywhere; }
"""


def page(numbers: Mapping[str, Any], samples: Sequence[tuple[Mapping[str, Any], Picture]]) -> str:
    """The whole page. Every text of the data is escaped: a file's name cannot become markup."""
    total = numbers["total"]
    body = [
        "<h1>The training set</h1>",
        f"<p class=soft>kept by <code>{escape(numbers['keep'])}</code></p>" if numbers["keep"] else "",
        _figures(total, numbers),
        _table(numbers["table"]),
        "<div class='grid wide'>",
        *(_hours(TITLES[name], rows) for name, rows in numbers["hours"].items()),
        _counts("Dropped, by the score that decided", numbers["dropped"]),
        _counts("Never became segments", numbers["left_out"]),
        "</div>",
        _section(
            "Lengths and scores",
            "<p class=soft>Heights are square roots of counts, so that the few are seen beside the many.</p>"
            + _grid(_histogram(n, h) for n, h in numbers["histograms"].items()),
        ),
        _section("A sample", _grid(_sample(row, picture) for row, picture in samples)) if samples else "",
    ]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta http-equiv=Content-Security-Policy "
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name=viewport content="width=device-width, initial-scale=1"><title>The training set</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _figures(total: Mapping[str, Any], numbers: Mapping[str, Any]) -> str:
    splits = numbers["hours"]["split"]
    figures = {
        "kept": _time(total["kept_h"]),
        "dropped": _time(total["dropped_h"]),
        "segments": f"{total['segments']:,}",
        **{f"kept for {name}": _time(hours["kept_h"]) for name, hours in splits.items()},
    }
    cells = "".join(
        f"<div><b>{value}</b><span class=soft>{name}</span></div>" for name, value in figures.items()
    )
    return f"<div class=figures>{cells}</div>"


def _hours(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    longest = max((row["kept_h"] + row["dropped_h"] for row in rows.values()), default=0) or 1
    lines = [
        f"<tr><td>{escape(name)}<td class=n>{_time(row['kept_h'])}<td class=n>{_time(row['dropped_h'])}"
        f"<td class=n>{row['segments']:,}<td class=bar>{_bar('kept', row['kept_h'] / longest)}"
        f"{_bar('dropped', row['dropped_h'] / longest)}"
        for name, row in sorted(rows.items(), key=lambda item: -item[1]["kept_h"])
    ]
    head = "<tr><th><th class=n>kept<th class=n>dropped<th class=n>segments<th>"
    return _section(title, f"<div class='card scroll'><table>{head}{''.join(lines)}</table></div>")


def _bar(name: str, share: float) -> str:
    return f"<span class={name} style='width:{100 * share:.1f}%'></span>"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Kept time by kind of video and style of music, with sums, as in table 1 of the publication."""
    if not rows:
        return ""
    hours: Counter[tuple[str, str]] = Counter()
    for row in rows:
        for kind in (row["kind"], ALL):
            for style in (row["style"], ALL):
                hours[kind, style] += row["hours"]
    kinds, styles = ([*sorted({row[name] for row in rows}), ALL] for name in ("kind", "style"))
    head = "".join(f"<th class=n>{escape(style)}" for style in styles)
    lines = [
        f"<tr{' class=total' if kind == ALL else ''}><th>{escape(kind)}"
        + "".join(f"<td class=n>{_time(hours[kind, style])}" for style in styles)
        for kind in kinds
    ]
    table = f"<table><tr><th>{head}{''.join(lines)}</table>"
    return _section("Kept, by kind of video and style of music", f"<div class='card scroll'>{table}</div>")


def _time(hours: float) -> str:
    """In the unit that a person would say it in."""
    if hours == 0:
        return "–"
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"


def _counts(title: str, counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    most = max(counts.values())
    lines = "".join(
        f"<tr><td>{escape(name)}<td class=n>{count:,}<td class=bar>{_bar('dropped', count / most)}"
        for name, count in counts.items()
    )
    return _section(title, f"<div class='card scroll'><table>{lines}</table></div>")


def _histogram(name: str, histogram: Mapping[str, Any]) -> str:
    counts = histogram["counts"]
    tallest = max(counts) or 1
    bars = "".join(
        f"<rect class=kept x={i} width=.9 y={40 - height:.2f} height={height:.2f}>"
        f"<title>{count:,}</title></rect>"
        for i, count in enumerate(counts)
        if (height := 40 * (count / tallest) ** 0.5) > 0
    )
    ends = f"<div class=ends><span>{histogram['from']:g}</span><span>{histogram['to']:g}</span></div>"
    low, middle, high = histogram["quartiles"]
    return (
        f"<div class=card><h3>{escape(name)}</h3>"
        f"<svg viewBox='0 0 {len(counts)} 40' preserveAspectRatio=none style='height:6rem' role=img "
        f"aria-label='histogram of {escape(name)}'>{bars}</svg>{ends}"
        f"<p class=soft>median {middle:.3g}, half lie in {low:.3g} … {high:.3g}</p></div>"
    )


def _sample(row: Mapping[str, Any], picture: Picture) -> str:
    image = (
        f"<img alt='' src='{picture.thumbnail}'>"
        if picture.thumbnail
        else "<div class='none soft'>not readable</div>"
    )
    bars = "".join(
        f"<rect class=kept x={i} width=.8 y={20 - 20 * peak:.1f} height={40 * peak + 0.4:.1f} />"
        for i, peak in enumerate(picture.peaks)
    )
    wave = f"<svg viewBox='0 0 {len(picture.peaks) or 1} 40' role=img aria-label=waveform>{bars}</svg>"
    where = f"{row['start_s']} s, {row['duration_s']:g} s long"
    scores = ", ".join(
        f"{name} {value:g}" for name, value in row.get("scores", {}).items() if _is_number(value) and value
    )
    why = f"<p class=why>dropped: {escape(row['dropped'])}</p>" if row.get("dropped") else ""
    name = escape(str(row["source"]).rsplit("/", 1)[-1])
    return (
        f"<div class='card sample'>{image}{wave}<p><b>{name}</b></p>"
        f"<p class=soft>{where}; {escape(scores)}</p>{why}</div>"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _grid(cards: Iterable[str]) -> str:
    return f"<div class=grid>{''.join(cards)}</div>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"
