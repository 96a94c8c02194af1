"""The server over real HTTP: who may ask, what is refused, what is kept."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gvmgen.studio.guard import Guard
from tests.gvmgen.studio.made_studio import ROOT, StudioProcess, make_film, wait


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "", "192.168.0.7"]
)
def test_an_unknown_host_is_refused(studio: StudioProcess, host: str) -> None:
    status, _, body = studio.request("GET", "/api/studio", headers={"Host": host})
    assert status == 400
    assert b"unknown host" in body
    assert b"--allow-host" in body


def test_our_own_names_are_served(studio: StudioProcess) -> None:
    for host in (f"localhost:{studio.port}", "127.0.0.1", f"[::1]:{studio.port}", "LOCALHOST"):
        assert studio.request("GET", "/", headers={"Host": host})[0] == 200


def test_bound_to_more_than_loopback_addresses_are_known_and_names_are_not() -> None:
    async def nothing(*_: Any) -> None:
        """No application."""

    guard = Guard(nothing, "0.0.0.0", ["studio.home"])
    assert all(map(guard.knows, ("192.168.0.7:8484", "[fe80::1]:8484", "studio.home", socket.gethostname())))
    assert not any(map(guard.knows, ("evil.example", "", "studio.home.evil.example", "[::1")))


def test_another_site_changes_nothing(studio: StudioProcess) -> None:
    headers = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    status, _, body = studio.request("POST", "/api/videos?name=a.mp4", b"x", headers)
    assert (status, b"may change nothing" in body) == (403, True)
    assert studio.request("POST", "/api/videos?name=a.mp4", b"x", {"Origin": "null"})[0] == 403
    own = {"Origin": f"http://127.0.0.1:{studio.port}"}
    assert studio.request("POST", "/api/videos?name=a.mp4", b"x", own)[0] == 422  # read, and no video


@pytest.mark.parametrize(
    "path",
    [
        "/files/../secret.txt",
        "/files/%2e%2e/secret.txt",
        "/files/..%2fsecret.txt",
        "/files//etc/passwd",
        "/files/%00",
        "/files/link.txt",
        "/files/link/secret.txt",
        "/page/../server.py",
        "/page/%2e%2e/server.py",
    ],
)
def test_paths_outside_the_folder_are_refused(studio: StudioProcess, path: str) -> None:
    secret = studio.folder.parent / "secret.txt"
    secret.write_text("secret")
    for name, target in (("link.txt", secret), ("link", secret.parent)):
        if not (studio.folder / name).is_symlink():
            (studio.folder / name).symlink_to(target)
    status, _, body = studio.request("GET", path)
    assert status == 404
    assert b"secret" not in body


def test_the_page_and_its_parts_load_nothing_from_elsewhere(studio: StudioProcess) -> None:
    parts = [f"/page/{path.name}" for path in (ROOT / "gvmgen/studio/page").iterdir()]
    assert len(parts) > 4
    for path in ("/", *parts):
        status, headers, body = studio.request("GET", path)
        assert status == 200
        assert not re.search(rb"""(src|href|from|url|import)\W{1,4}(https?:)?//""", body)
        assert headers["content-security-policy"].startswith("default-src 'self';")
        assert headers["x-content-type-options"] == "nosniff"


def test_a_video_is_taken_in_and_looked_through(studio: StudioProcess, film: Path) -> None:
    status, video = studio.upload(film)
    assert status == 201
    assert (video["name"], video["width"], video["has_audio"]) == ("two shots.mp4", 160, True)
    key = video["key"]
    wait(lambda: studio.ask("GET", f"/api/videos/{key}")[1]["cuts"] is not None, "the cuts")
    video = studio.ask("GET", f"/api/videos/{key}")[1]
    assert video["cuts"] == pytest.approx([1.5], abs=0.11)
    assert video["play"] == "video.mp4"
    assert len(video["frames"]) == 12
    status, headers, body = studio.request("GET", f"/files/{key}/{video['frames'][0]}")
    assert (status, headers["content-type"], body[:2]) == (200, "image/jpeg", b"\xff\xd8")
    status, headers, body = studio.request("GET", f"/files/{key}/video.mp4", headers={"Range": "bytes=0-9"})
    assert (status, body) == (206, film.read_bytes()[:10])


def test_what_a_browser_cannot_play_gets_a_copy(studio: StudioProcess, tmp_path: Path) -> None:
    _, video = studio.upload(make_film(tmp_path / "old.avi", 1.0, "mpeg4"))
    key = video["key"]
    wait(lambda: studio.ask("GET", f"/api/videos/{key}")[1]["play"], "a copy to play")
    assert studio.ask("GET", f"/api/videos/{key}")[1]["play"] == "play.mp4"
    assert studio.ask("DELETE", f"/api/videos/{key}")[0] == 204
    assert not (studio.folder / key).exists()
    assert studio.ask("GET", f"/api/videos/{key}")[0] == 404


def test_a_broken_upload_is_refused_in_the_words_of_gvm_gen(studio: StudioProcess, broken: Path) -> None:
    command = "from gvmgen.generate_cli import generate_main; generate_main()"
    done = subprocess.run(
        [sys.executable, "-c", command, broken.name, "-o", "out.wav"],
        capture_output=True,
        text=True,
        cwd=broken.parent,
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 3
    status, answer = studio.upload(broken)
    assert status == 422
    assert done.stderr == f"gvm-gen: {answer['error']}\n"
    assert "\n" not in answer["error"]


@pytest.mark.parametrize("name", ["../../evil.mp4", "..", "", "a\x00b.mp4", "x" * 500 + ".mp4"])
def test_a_name_never_leads_out_of_the_folder(
    studio: StudioProcess, film: Path, tmp_path: Path, name: str
) -> None:
    from urllib.parse import quote

    status, video = studio.ask("POST", f"/api/videos?name={quote(name)}", film.read_bytes())
    assert status == 201
    assert "/" not in video["name"]
    assert (studio.folder / video["key"] / "video.json").is_file()
    studio.ask("DELETE", f"/api/videos/{video['key']}")


def test_too_big_and_too_long_is_refused(studio: StudioProcess, tmp_path: Path) -> None:
    big = studio.request("POST", "/api/videos?name=big.mp4", headers={"Content-Length": "2000000"})
    assert (big[0], b"big.mp4: is bigger than 1 MB" in big[2]) == (413, True)
    untold = (b"x" * 100_000 for _ in range(20))
    status, _, _ = studio.request("POST", "/api/videos?name=big.mp4", untold)
    assert status == 413
    status, answer = studio.upload(make_film(tmp_path / "long.mp4", 62))
    assert (status, "long.mp4: lasts 1.0 minutes, more than 1" in answer["error"]) == (422, True)
    assert not list(studio.folder.glob(".upload-*"))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"takes": 9}, "takes 9: give a whole number from 1 to 8"),
        ({"takes": "4"}, "takes '4': give a whole number"),
        ({"seed": -1}, "seed -1: give a whole number"),
        ({"from": "0:02", "to": "1"}, "1 s, does not lie after the start, 2 s"),
        ({"from": "one"}, "from one: give seconds, or minutes:seconds"),
        ({"from": "9"}, "two shots.mp4: cannot start at 9 s, it lasts 3.0"),
        ({"to": "9"}, "two shots.mp4: cannot end at 9 s, it lasts 3.0"),
        ({"ending": "bang"}, "known: fade, cut"),
        ({"loudness": "loud"}, "loudness 'loud'"),
        ({"loudness": "0"}, "give -60 … -10"),
        ({"original": "sing"}, "known: drop, keep, duck"),
        ({"output": "/etc/passwd"}, "settings are a JSON object of takes"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    studio: StudioProcess, film: Path, wanted: dict[str, Any], said: str
) -> None:
    _, video = studio.upload(film)
    status, answer = studio.ask("POST", f"/api/videos/{video['key']}/orders", wanted)
    studio.ask("DELETE", f"/api/videos/{video['key']}")
    assert status == 422
    assert said in answer["error"]


def test_what_is_no_json_and_what_is_not_there_is_said(studio: StudioProcess, film: Path) -> None:
    _, video = studio.upload(film)
    assert studio.request("POST", f"/api/videos/{video['key']}/orders", b"{")[0] == 422
    assert studio.request("POST", f"/api/videos/{video['key']}/orders", b" " * 70_000)[0] == 413
    assert studio.ask("DELETE", f"/api/videos/{video['key']}/orders/7")[0] == 404
    assert studio.ask("GET", "/api/videos/none")[0] == 404


def test_a_second_studio_leaves_folder_and_port_alone(studio: StudioProcess, tmp_path: Path) -> None:
    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-c",
            "from gvmgen.studio.cli import studio_main; studio_main()",
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    same_folder = start("--folder", str(studio.folder), "--port", "0")
    assert same_folder.returncode == 5
    assert "another gvm-studio uses it" in same_folder.stderr
    same_port = start("--folder", str(tmp_path / "other"), "--port", str(studio.port))
    assert same_port.returncode == 5
    assert "Give another --port" in same_port.stderr
    assert same_port.stderr.count("\n") == 1
