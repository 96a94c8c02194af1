"""The page in a real browser, with a real video, as its users meet it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gvmgen.encoders.probe import probe
from tests.browser import CHROMIUM, Browser, wait_for
from tests.gvmgen.studio.made_studio import StudioProcess, make_film, wait

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH to use the page")

PLAYER = "import('/page/player.js')"
DROP = """
(() => { const dataTransfer = new DataTransfer()
dataTransfer.items.add(new File(['not a film'], 'notes.txt'))
document.querySelector('#drop').dispatchEvent(new DragEvent('drop', {dataTransfer, bubbles: true})) })()
"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "browser") as window:
        yield window


def open_page(browser: Browser, studio: StudioProcess, key: str = "") -> None:
    """The page, when it has shown what it shows."""
    browser.go(studio.address + (f"#{key}" if key else ""))
    browser.wait(f"!document.querySelector('{'#work' if key else '#home'}').hidden")


def type_in(browser: Browser, selector: str, text: str) -> None:
    browser.evaluate(f"document.querySelector('{selector}').focus()")
    browser.call("Input.insertText", text=text)


def uploaded(studio: StudioProcess, path: Path) -> str:
    status, video = studio.upload(path)
    assert status == 201
    return str(video["key"])


def test_a_creator_sends_a_video_composes_compares_and_takes_music_home(
    studio: StudioProcess, browser: Browser, film: Path
) -> None:
    open_page(browser, studio)
    browser.choose_file("#file", film)
    browser.wait("document.querySelectorAll('#cuts i').length === 1")
    browser.wait(
        "(p => p.length === 12 && p.every(i => i.complete && i.naturalWidth))"
        "([...document.querySelectorAll('#strip img')])"
    )
    key = browser.evaluate("location.hash.slice(1)")
    type_in(browser, "#from", "0:01")
    type_in(browser, "#to", "2.5")
    browser.press("Enter")  # as the form says: two takes
    browser.wait("document.querySelector('.order progress') !== null")

    browser.reload()
    browser.wait("document.querySelector('.order progress') !== null")
    done = studio.wait_for(key, 1, "done", "failed")
    assert done["state"] == "done", done["error"]
    assert sorted(take["seed"] for take in done["takes"]) == [0, 1]
    assert all("onset_motion" in take["scores"] for take in done["takes"])  # they were ranked
    browser.wait("document.querySelectorAll('.take').length === 2")

    hears_both(browser, [f"/files/{key}/1/{take['listen']}" for take in done["takes"]])
    takes_home(browser, film, done["takes"][1]["seed"])
    from_here = "performance.getEntriesByType('resource').every(e => e.name.startsWith(location.origin))"
    assert browser.evaluate(from_here)


def hears_both(browser: Browser, addresses: list[str]) -> None:
    """A click plays a take over the picture; keys go to the other take, at the same moment of the film."""
    chosen = f"{PLAYER}.then(player => player.chosen())"
    apart = f"{PLAYER}.then(p => Math.abs(p.prepare(p.chosen()).currentTime - p.now()))"
    browser.wait(f"{chosen}.then(heard => heard === '{addresses[0]}')")  # the best one, from the start
    browser.click(f'.take[data-listen="{addresses[1]}"] > button')
    browser.wait(f"{chosen}.then(heard => heard === '{addresses[1]}')")
    browser.wait(f"{PLAYER}.then(p => p.now() > 0.5 && p.prepare(p.chosen()).currentTime > 0.5)")
    assert browser.evaluate("document.querySelector('#picture').muted")
    browser.evaluate("document.querySelector('#picture').pause(), document.activeElement.blur()")
    browser.press("1")
    browser.wait(f"{chosen}.then(heard => heard === '{addresses[0]}')")
    browser.evaluate(f"{PLAYER}.then(p => p.jump(-0.3))")
    browser.wait(f"{apart}.then(s => s < 0.13)")
    assert browser.evaluate("document.querySelector('#heard').textContent") == "Take 1"
    browser.press("0")
    browser.wait("!document.querySelector('#picture').muted")
    browser.press(" ")
    browser.wait("document.querySelector('#picture').ended")


def takes_home(browser: Browser, film: Path, seed: int) -> None:
    for number, suffix in enumerate((".wav", ".mp4"), 1):
        browser.click(f'.take[data-listen$="seed_{seed}.m4a"] .files a:nth-child({number})')
        path = browser.downloads / f"two shots seed {seed}{suffix}"
        wait_for(path.is_file, f"{path.name} in {list(browser.downloads.iterdir())}")
        info = probe(path, needs_picture=suffix == ".mp4")
        wanted_s = probe(film).duration_s if suffix == ".mp4" else 1.5
        assert info.has_audio
        assert info.duration_s == pytest.approx(wanted_s, abs=0.15)


def test_a_broken_file_gets_one_clear_line_and_the_page_goes_on(
    studio: StudioProcess, browser: Browser, broken: Path, tmp_path: Path
) -> None:
    open_page(browser, studio)
    browser.choose_file("#file", broken)
    browser.wait("!document.querySelector('#error').hidden")
    said = browser.evaluate("document.querySelector('#error').innerText")
    assert said.startswith("broken.mp4: is no media file that ffmpeg can read, or its index is cut off")
    assert "\n" not in said
    big = tmp_path / "big.mp4"
    big.write_bytes(bytes(1_100_000))
    browser.choose_file("#file", big)
    browser.wait("document.querySelector('#error').innerText.startsWith('big.mp4: is bigger than 1 MB')")
    browser.evaluate(DROP)
    browser.wait("document.querySelector('#error').innerText.startsWith('notes.txt: is no media file')")
    browser.choose_file("#file", make_film(tmp_path / "good.mp4", 1.0))
    browser.wait("document.querySelector('#title').innerText === 'good.mp4'")
    assert browser.evaluate("document.querySelector('#error').hidden")


def workers(studio: StudioProcess) -> list[int]:
    """The processes that compose."""
    return [child.pid for child in psutil.Process(studio.process.pid).children(recursive=True)]


def test_the_second_user_waits_and_is_served_when_the_first_one_cancels(
    studio: StudioProcess, browser: Browser, tmp_path: Path
) -> None:
    first = uploaded(studio, make_film(tmp_path / "first.mp4", 50))
    second = uploaded(studio, make_film(tmp_path / "second.mp4", 1))
    long = studio.order(first, takes=8)
    short = studio.order(second)
    studio.wait_for(first, long, "running")
    open_page(browser, studio, second)
    browser.wait("document.querySelector('.working p').innerText === 'In the queue, 1 ahead of you'")
    wait(lambda: studio.state(first, long)["progress"]["stage"], "work on the first order")
    composing = workers(studio)

    open_page(browser, studio, first)
    browser.wait("document.querySelector('.working p').innerText.includes('step ')")
    browser.click(".working button")
    browser.wait("document.querySelectorAll('.order').length === 0")
    wait(lambda: not any(map(psutil.pid_exists, composing)), "the end of what composed")
    assert not (studio.folder / first / str(long)).exists()

    done = studio.wait_for(second, short, "done", "failed")
    assert done["state"] == "done", done["error"]
    assert list(done["takes"][0]["scores"]) == []  # one take is not ranked
    open_page(browser, studio, second)
    browser.wait("document.querySelectorAll('.take').length === 1")


@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_fits_wide_and_narrow_screens_light_and_dark(
    studio: StudioProcess, browser: Browser, film: Path, width: int
) -> None:
    key = uploaded(studio, film)
    grounds: dict[str, Any] = {}
    for scheme in ("light", "dark"):
        browser.look_as(width, 800, scheme)
        for place in ("", key):
            open_page(browser, studio, place)
            browser.wait("document.querySelectorAll('#strip img, #videos a').length > 0")
            assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        grounds[scheme] = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert grounds["light"] != grounds["dark"]
    studio.ask("DELETE", f"/api/videos/{key}")
    browser.wait("document.querySelector('#work').hidden")  # it is gone: the page goes home


def test_every_control_is_reached_and_named_by_keyboard(
    studio: StudioProcess, browser: Browser, film: Path
) -> None:
    open_page(browser, studio, uploaded(studio, film))
    browser.wait("document.querySelectorAll('#cuts i').length === 1")
    reached = []
    for _ in range(25):
        browser.press("Tab")
        reached.append(browser.evaluate("document.activeElement.id || document.activeElement.name"))
    wanted = {"play", "place", "takes", "from", "from-here", "to", "ending", "original", "loudness", "seed"}
    assert wanted <= set(reached)
    unnamed = (
        "[...document.querySelectorAll('button, input, select, a')].filter(e => !e.closest('[hidden]') &&"
        "!(e.ariaLabel || e.innerText?.trim() || e.labels?.length)).map(e => e.outerHTML)"
    )
    assert browser.evaluate(unnamed) == []
