"""From what the user names (`videos/`, `list.csv`, `symmv:SymMV.csv`, a URL) to offers."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.download import Access
from pipeline.offers import datasets, lists, local, platforms, remote
from pipeline.offers.candidate import Candidate, Offer, Problem

DATA_SETS: dict[str, Callable[[str], Iterator[Offer]]] = {
    "symmv": datasets.read_symmv,
    "muvi-sync": datasets.read_muvi_sync,
    "aist": datasets.read_aist,
    "tiktok": datasets.read_tiktok,
    "ossl": datasets.read_ossl,
}


LABELS = ("kind", "style", "licence", "terms")


def refuse_missing(specs: Iterable[str], access: Access) -> None:
    """Raise FileNotFoundError for a local source that is not there: a slip of the pen costs no fetching."""
    for spec in specs:
        try:
            is_local = reader_of(spec, access) is local.read_local
        except ValueError:  # of a kind that nobody knows: a row, when it is read
            continue
        if is_local:
            next(local.read_local(spec), None)


def read_offers(specs: Iterable[str], access: Access) -> Iterator[Offer]:
    """Every offer of every source; a source that cannot be read is one Problem, and the others go on.

    Raises FileNotFoundError for a local source that is not there.
    """
    for spec in specs:
        try:
            yield from reader_of(spec, access)(spec)
        except FileNotFoundError:
            raise
        except (ValueError, OSError) as error:
            yield Problem(location=spec, origin=spec, reason=str(error))


def reader_of(spec: str, access: Access) -> Callable[[str], Iterator[Offer]]:
    """The function that reads this source. Raises ValueError that lists the known kinds."""
    scheme, colon, rest = spec.partition(":")
    if colon and scheme.lower() in DATA_SETS:
        read = DATA_SETS[scheme.lower()]
        return lambda _: read(rest)
    if scheme.lower() in ("http", "https"):
        return lambda url: platforms.read_url(url, access)
    if remote.is_remote(spec):
        return remote.read_remote
    if "://" in spec:
        known = ", ".join(("http", "https", *remote.STORES))
        raise ValueError(f"{spec}: {scheme}: is not allowed; known: {known}. Name a local file by its path")
    is_list = Path(spec).suffix.lower() in lists.LIST_SUFFIXES and Path(spec).is_file()
    return lists.read_list if is_list else local.read_local


def read_sources_file(path: Path, access: Access) -> Iterator[Offer]:
    """Offers of `sources.txt`: one source a line, then labels: `videos/MV kind=MV style=Western
    licence=CC-BY-4.0`.

    Empty lines and lines that begin with # are left aside. Relative paths count from the file's folder.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        origin = f"{path.name} line {number}"
        try:
            spec, labels = _parse(line, path.parent)
        except ValueError as error:
            yield Problem(location=line.strip(), origin=origin, reason=f"{origin}: {error}")
            continue
        try:
            yield from (_labelled(offer, labels) for offer in read_offers([spec], access))
        except FileNotFoundError as error:
            yield Problem(location=spec, origin=origin, reason=f"{origin}: {error}")


def _parse(line: str, folder: Path) -> tuple[str, dict[str, str]]:
    spec, *words = shlex.split(line)
    labels = dict(word.partition("=")[::2] for word in words)
    unknown = sorted(set(labels) - set(LABELS))
    if unknown or not all(labels.values()):
        raise ValueError(f"{unknown or labels} is no label; wants name=value with one of {', '.join(LABELS)}")
    scheme, colon, rest = spec.partition(":")
    if colon and scheme.lower() in DATA_SETS:
        return f"{scheme}:{lists.absolute(rest, folder) if rest else ''}", labels
    return (spec if "://" in spec else str(folder / Path(spec).expanduser())), labels


def _labelled(offer: Offer, labels: dict[str, str]) -> Offer:
    return replace(offer, **labels) if isinstance(offer, Candidate) else offer  # type: ignore[arg-type]
