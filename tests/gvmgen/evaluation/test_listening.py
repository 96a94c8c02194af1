"""The listening test, taken by a real browser with real keys, and what becomes of the answers."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gvmgen.encoders.media import write_waveform
from gvmgen.evaluation.cli import eval_app
from gvmgen.evaluation.listening import balanced_orders, key_of, make_test
from gvmgen.evaluation.ratings import krippendorff_alpha, markdown, rate
from tests.browser import CHROMIUM, Browser, wait_for
from tests.gvmgen.evaluation.made_pairs import chords, make_film

pytest.importorskip("pyloudnorm")
SYSTEMS = ("quiet-one", "loud-one")


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with two films of a second and two systems, one of which lacks a third film."""
    folder = tmp_path_factory.mktemp("listening")
    (folder / "videos").mkdir()
    for name in ("<b>one", "two", "three"):
        make_film(folder / "videos" / f"{name}.mp4", (0.4,), 1.0)
    for level, system in enumerate(SYSTEMS):
        (folder / system).mkdir()
        for name in ("<b>one", "two", "three")[: 3 - level]:
            write_waveform(
                folder / system / f"{name}.wav", (0.1 + level) * chords((440.0, 550.0), each_s=1.0)
            )
    systems = [(system, folder / system) for system in SYSTEMS]
    said = make_test(
        folder / "videos", systems, folder / "test.html", films_per_listener=8, seconds=30, seed=0
    )
    assert "2 films, 2 systems, 1 videos left out" in said
    return folder / "test.html"


def test_the_page_is_blind_and_alone(listening: Path) -> None:
    text = listening.read_text()
    assert not [name for name in (*SYSTEMS, "<b>one", "http:", "https:") if name in text]
    key = json.loads(key_of(listening).read_text())
    assert Counter(trial["system"] for trial in key["trials"].values()) == dict.fromkeys(SYSTEMS, 2)
    assert all(code in text for code in key["trials"])


def test_the_key_to_a_test_that_was_handed_out_is_never_overwritten(listening: Path) -> None:
    before = key_of(listening).read_bytes()
    systems = [(system, listening.parent / system) for system in SYSTEMS]
    make = partial(
        make_test, listening.parent / "videos", systems, listening, films_per_listener=8, seconds=30
    )
    make(seed=0)  # the same test
    with pytest.raises(ValueError, match=r"the key to another test.*another --out"):
        make(seed=1)
    assert key_of(listening).read_bytes() == before


def test_midi_without_instruments_is_refused_before_any_work(listening: Path, tmp_path: Path) -> None:
    (tmp_path / "two.mid").write_bytes(b"MThd")
    systems = [("midi", tmp_path)]
    with pytest.raises(ValueError, match=r"two\.mid: is MIDI, .*--soundfont FILE\.sf2"):
        make_test(
            listening.parent / "videos",
            systems,
            tmp_path / "x.html",
            films_per_listener=8,
            seconds=30,
            seed=0,
        )


@pytest.mark.parametrize("num_systems", [1, 2, 3, 4, 5, 6])
def test_each_system_is_as_often_in_each_place_and_after_each_other(num_systems: int) -> None:
    rows = balanced_orders(num_systems)
    places = Counter((place, system) for row in rows for place, system in enumerate(row))
    assert len(set(places.values())) == 1
    assert len(places) == num_systems**2
    pairs = Counter(pair for row in rows for pair in pairwise(row))
    assert len(pairs) == num_systems * (num_systems - 1)
    assert len(set(pairs.values())) <= 1


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH to take the test")
def test_a_browser_takes_the_test_by_keyboard_and_goes_on_after_a_reload(
    listening: Path, tmp_path: Path
) -> None:
    pytest.importorskip("websockets")
    with Browser(tmp_path) as browser:
        browser.open(listening)
        assert browser.evaluate("document.getElementById('start').disabled")
        browser.click("#expert input[value=yes]")
        browser.click("#start")
        for number in range(4):
            browser.wait(f"document.getElementById('where').textContent === '{number + 1} of 4'")
            for key in "765":
                browser.press(key)
            assert browser.evaluate("document.getElementById('next').disabled"), "not heard yet"
            browser.press("Enter")
            assert browser.evaluate("document.getElementById('where').textContent") == f"{number + 1} of 4"
            browser.press(" ")
            browser.wait("!document.getElementById('next').disabled")
            if number == 1:
                browser.open(listening)  # closed and opened again: nothing is lost
                browser.wait("!document.getElementById('next').disabled")
                browser.press("ArrowDown")
                browser.press("1")
            browser.press("Enter")
        browser.wait("!document.getElementById('end').hidden")
        browser.click("#save")
        wait_for(lambda: list(browser.downloads.glob("*.json")), "the download")
        (results,) = browser.downloads.glob("*.json")
    found = json.loads(results.read_text())
    assert found["expert"] is True
    given = [(a["overall"], a["correspondence"], a["richness"]) for a in found["answers"]]
    assert given == [(7, 6, 5), (7, 1, 5), (7, 6, 5), (7, 6, 5)]
    key = json.loads(key_of(listening).read_text())["trials"]
    films = [key[answer["trial"]]["video"] for answer in found["answers"]]
    assert films[0] == films[1] != films[2] == films[3]
    assert rate([results], key_of(listening))["experts"].means["loud-one"]["overall"].value == 7


def results_file(
    folder: Path, key: Path, name: str, expert: bool, scores: dict[str, int], **changes: object
) -> Path:
    """A listener's file, as the page writes it: the same score on all scales for all of a system's films."""
    content = json.loads(key.read_text())
    answers = [
        {"trial": code, "position": i}
        | dict.fromkeys(("overall", "correspondence", "richness"), scores[t["system"]])
        for i, (code, t) in enumerate(content["trials"].items())
    ]
    values = {"kind": "gvm-eval listening results", "version": 1, "test": content["test"]}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(values | {"listener": name, "expert": expert, "answers": answers} | changes))
    return path


def test_answers_become_means_by_group_with_intervals_and_agreement(listening: Path, tmp_path: Path) -> None:
    key = key_of(listening)
    heard = [(True, 2, 6), (True, 3, 7), (False, 2, 5), (False, 1, 6), (False, 3, 7), (False, 2, 6)]
    files = [
        results_file(tmp_path, key, f"l{i}", expert, {"quiet-one": low, "loud-one": high})
        for i, (expert, low, high) in enumerate(heard)
    ]
    found = rate(files, key)
    assert {group: each.num_listeners for group, each in found.items()} == {
        "all": 6,
        "experts": 2,
        "others": 4,
    }
    loud = found["all"].means["loud-one"]["richness"]
    assert loud.value == pytest.approx(37 / 6)
    assert 5 <= loud.low < loud.value < loud.high <= 7
    assert found["experts"].means["quiet-one"]["overall"].value == 2.5
    assert found["all"].agreement["overall"] > 0.7
    assert found["all"].p_values["quiet-one – loud-one"]["overall"] < 0.05
    assert "| loud-one | 6.17 [" in markdown(found)


def test_the_command_prints_the_table_and_writes_the_numbers(listening: Path, tmp_path: Path) -> None:
    key = key_of(listening)
    alone = results_file(tmp_path, key, "alone", False, {"quiet-one": 2, "loud-one": 5})
    arguments = ["listen-results", str(alone), "--key", str(key), "--out", str(tmp_path / "numbers.json")]
    done = CliRunner().invoke(eval_app, arguments)
    assert done.exit_code == 0
    assert "## others: 1 listeners" in done.stdout
    assert "| loud-one | 5.00 |" in done.stdout
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["all"]["means"]["quiet-one"]["richness"] == {
        "value": 2.0,
        "low": None,
        "high": None,
        "num": 1,
    }


def test_a_file_that_cannot_be_used_is_named(listening: Path, tmp_path: Path) -> None:
    key = key_of(listening)
    scores = dict.fromkeys(SYSTEMS, 4)
    good = results_file(tmp_path, key, "good", True, scores)
    other = results_file(tmp_path, key, "other", True, scores, test="another")
    again = tmp_path / "again.json"
    again.write_text(good.read_text())
    beyond = results_file(tmp_path, key, "beyond", True, dict.fromkeys(SYSTEMS, 8))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for paths, message in (
        ([other], "other.json: is of another test"),
        ([good, again], "again.json: the listener good is in another file"),
        ([beyond], "beyond.json: holds an answer that the page cannot have given"),
        ([broken], "broken.json: is no JSON"),
        ([key], "is no gvm-eval listening results"),
    ):
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            rate(paths, key)
    with pytest.raises(
        FileNotFoundError, match=r"elsewhere\.json: there is no such file; it wants a gvm-eval listening key"
    ):
        rate([good], tmp_path / "elsewhere.json")


def test_alpha_is_that_of_its_publication() -> None:
    """Krippendorff 2011, the data of its section C: ordinal 0.815."""
    gap = np.nan
    data = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, gap, gap, gap],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, gap, 3],
        [gap, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, gap],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, gap],
    ]
    assert krippendorff_alpha(np.array(data)) == pytest.approx(0.815, abs=5e-4)


def test_alpha_falls_as_listeners_disagree_and_is_0_by_chance() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 8, 200).astype(float)
    noisy = np.clip(truth + rng.integers(-2, 3, (4, 200)), 1, 7)
    assert krippendorff_alpha(np.tile(truth, (4, 1))) == 1
    assert 0.5 < krippendorff_alpha(noisy) < 0.95
    assert abs(krippendorff_alpha(rng.integers(1, 8, (4, 200)).astype(float))) < 0.1
    assert np.isnan(krippendorff_alpha(truth[None]))
