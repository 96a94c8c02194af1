"""What is kept of a long piece: taken up bit for bit, never mixed with another piece's, gone at the end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gvmgen.checkpoint import ModelInfo, save_model
from gvmgen.console import ExitCode
from gvmgen.resuming import Kept, kept_beside
from gvmgen.runs import MODEL_IN_THE_BOX
from tests import media as made
from tests.browser import wait_for
from tests.gvmgen.networks import make_network

ABOUT = {"seed": 1, "sampling": {"top_k": 250}}
COMMAND = "from gvmgen.generate_cli import generate_main; generate_main()"
# The same, with a signal to itself when so many windows are done: from outside it would come too late.
STOPPED = """
import signal, sys
from gvmgen.resuming import Kept

number, after, keep = int(sys.argv.pop()), int(sys.argv.pop()), Kept.tensor

def tensor(kept, name, make):
    found = keep(kept, name, make)
    if name == f"window_{after - 1:05d}":
        signal.raise_signal(number)
    return found

Kept.tensor = tensor
"""
NUM_WINDOWS = 15  # of 17 s, where a window of 3 s goes on from two thirds of the last


class Said(list[str]):
    """The lines that were said."""

    def __call__(self, line: str) -> None:
        self.append(line)


def counted(kept: Kept, name: str, value: float, made_now: list[str]) -> Tensor:
    def make() -> Tensor:
        made_now.append(name)
        return torch.full((3,), value, dtype=torch.bfloat16)

    return kept.tensor(name, make)


def left_by_a_kill(output: Path) -> None:
    """Three parts, and no end."""
    with suppress(SystemExit), kept_beside(output, ABOUT, Said()) as kept:
        for number in range(3):
            counted(kept, f"part_{number}", number / 3, [])
        raise SystemExit


def test_what_is_done_is_not_made_again_and_goes_at_the_end(tmp_path: Path) -> None:
    output, said, made_now = tmp_path / "out.wav", Said(), list[str]()
    left_by_a_kill(output)
    (tmp_path / ".out.wav.4711.tmp").touch()  # a kill while it was finished
    with kept_beside(output, ABOUT, said) as kept:
        found = [counted(kept, f"part_{number}", number / 3, made_now) for number in range(4)]
    assert made_now == ["part_3"]
    assert all(torch.equal(x, torch.full((3,), n / 3, dtype=torch.bfloat16)) for n, x in enumerate(found))
    assert said == [f"going on from {tmp_path / 'out.wav.part'}; --fresh begins anew"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seed", "fresh", "line"),
    [(2, False, "is of another piece (seed): beginning anew"), (1, True, None)],
)
def test_another_piece_or_a_fresh_one_begins_anew(
    tmp_path: Path, seed: int, fresh: bool, line: str | None
) -> None:
    output, said, made_now = tmp_path / "out.wav", Said(), list[str]()
    left_by_a_kill(output)
    with kept_beside(output, ABOUT | {"seed": seed}, said, fresh=fresh) as kept:
        assert kept.num_done == 0
        counted(kept, "part_0", 0.5, made_now)
    assert made_now == ["part_0"]
    assert (
        [line] == [text.removeprefix(f"{tmp_path / 'out.wav.part'} ") for text in said] if line else not said
    )


@pytest.mark.parametrize("harm", ["cut", "bit", "empty"])
def test_a_damaged_part_is_made_again(tmp_path: Path, harm: str) -> None:
    output, said, made_now = tmp_path / "out.wav", Said(), list[str]()
    left_by_a_kill(output)
    path = tmp_path / "out.wav.part/part_1.done"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes({"cut": bytes(content[:-2]), "bit": bytes(content), "empty": b""}[harm])
    with kept_beside(output, ABOUT, said) as kept:
        found = [counted(kept, f"part_{number}", number / 3, made_now) for number in range(3)]
    assert made_now == ["part_1"]
    assert torch.equal(found[1], torch.full((3,), 1 / 3, dtype=torch.bfloat16))
    assert said[-1] == f"{path}: is damaged and made again"


def test_a_lost_record_begins_anew(tmp_path: Path) -> None:
    output, said = tmp_path / "out.wav", Said()
    left_by_a_kill(output)
    (tmp_path / "out.wav.part/about.json").write_text('{"seed"')
    with kept_beside(output, ABOUT, said) as kept:
        assert kept.num_done == 0
    assert "no about.json" in said[0]


def test_a_folder_of_that_name_that_is_not_ours_is_refused_and_stays(tmp_path: Path) -> None:
    other = tmp_path / "out.wav.part/diary.txt"
    other.parent.mkdir()
    other.write_text("dear")
    with pytest.raises(ValueError, match="is in the way"), kept_beside(tmp_path / "out.wav", ABOUT, Said()):
        pass
    assert other.read_text() == "dear"


def test_a_plain_file_of_that_name_is_refused_and_stays(tmp_path: Path) -> None:
    other = tmp_path / "out.wav.part"
    other.write_text("half a download")
    with pytest.raises(ValueError, match="is in the way"), kept_beside(tmp_path / "out.wav", ABOUT, Said()):
        pass
    assert other.read_text() == "half a download"


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError, ValueError])
def test_who_is_stopped_is_told_how_to_go_on(tmp_path: Path, end: type[BaseException]) -> None:
    said = Said()
    with suppress(end), kept_beside(tmp_path / "out.wav", ABOUT, said) as kept:
        counted(kept, "part_0", 0.0, [])
        raise end
    assert said == [f"what is done lies in {tmp_path / 'out.wav.part'}; the same command goes on from there"]
    said.clear()
    with suppress(end), kept_beside(tmp_path / "new.wav", ABOUT, said):
        raise end
    assert not said
    assert not (tmp_path / "new.wav.part").exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A network with pocket's encoders and windows of 3 s, so that some seconds make several windows."""
    pocket = json.loads((MODEL_IN_THE_BOX / "config.json").read_text())
    network = make_network(feature_dim=192, codebook_size=2048, window_s=3)
    info = ModelInfo(preset="pocket", encoder_fingerprint=pocket["encoder_fingerprint"], trained=True)
    save_model(tmp_path / "model", network, info)
    return tmp_path / "model"


def started(
    output: Path, model: Path, *more: str, seed: int = 7, command: str = COMMAND
) -> subprocess.Popen[str]:
    video = output.with_name("video.mp4")
    arguments = [str(video), "-o", str(output), "--model", str(model), "--seed", str(seed), *more]
    return subprocess.Popen([sys.executable, "-c", command, *arguments], stderr=subprocess.PIPE, text=True)


ENDS = {signal.SIGKILL: -9, signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: 143}  # exit codes


def stopped(output: Path, model: Path, after: int, number: signal.Signals) -> str:
    """What gvm-gen said that was sent a signal when so many windows were done."""
    part = output.with_name(f"{output.name}.part")
    with started(output, model, str(after), str(int(number)), command=STOPPED + COMMAND) as process:
        said = process.communicate()[1]
    assert process.returncode == ENDS[number], said
    assert len(windows(part)) == after < NUM_WINDOWS
    assert not output.exists()
    return said


def finished(output: Path, model: Path) -> str:
    with started(output, model) as process:
        said = process.communicate()[1]
    assert process.returncode == 0, said
    return said


def windows(part: Path) -> list[Path]:
    return list(part.glob("window_*.done"))


def test_a_killed_run_goes_on_and_gives_the_same_bytes(tmp_path: Path, model: Path) -> None:
    made.make_numbered(tmp_path / "video.mp4", made.constant_times(17.0, Fraction(10)))
    output, whole = tmp_path / "out.wav", tmp_path / "whole.wav"
    said = stopped(output, model, 2, signal.SIGKILL)
    assert "goes on" not in said
    first = tmp_path / "out.wav.part/window_00000.done"
    written = first.stat().st_mtime_ns
    for after, number in ((3, signal.SIGTERM), (4, signal.SIGINT)):
        said = stopped(output, model, after, number)
        assert "the same command goes on from there" in said
    assert first.stat().st_mtime_ns == written
    assert "going on from" in finished(output, model)
    finished(whole, model)
    assert output.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_a_second_run_at_the_same_output_is_refused_and_spoils_nothing(tmp_path: Path, model: Path) -> None:
    made.make_numbered(tmp_path / "video.mp4", made.constant_times(7.0, Fraction(10)))
    output, part = tmp_path / "out.wav", tmp_path / "out.wav.part"
    with started(output, model) as first:
        wait_for(lambda: first.poll() is not None or bool(windows(part)), "a window")
        first.send_signal(signal.SIGSTOP)  # so that it cannot end before the second begins
        before = contents(part)
        with started(output, model, seed=8) as second:
            refusal = second.communicate()[1]
        after = contents(part)
        first.send_signal(signal.SIGCONT)
        said = first.communicate()[1]
    assert second.returncode == ExitCode.INPUT
    assert f"{part}: another gvm-gen composes this output; wait for it, or give another -o" in refusal
    assert after == before
    assert first.returncode == 0, said
    assert output.exists()
    assert not part.exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_cannot_be_tidied_up_does_not_hinder(tmp_path: Path) -> None:
    other = tmp_path / "out.wav.part/diary.txt"
    with kept_beside(tmp_path / "out.wav", ABOUT, Said()) as kept:
        counted(kept, "part_0", 0.0, [])
        other.write_text("dear")
    assert list(other.parent.iterdir()) == [other]
