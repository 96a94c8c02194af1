"""Sound in a temporary file: what went in comes out, it goes when nobody holds it, a full disk is named."""

from __future__ import annotations

import errno
import gc
import os
import resource
import signal

import numpy as np
import pytest

from gvmgen.finish import sound
from gvmgen.finish.sound import Sound


def test_what_was_appended_comes_back_whole_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "BLOCK", 7)
    samples = np.random.default_rng(0).standard_normal(20).astype(np.float32)
    kept = Sound(32_000)
    kept.append(samples[:3])
    kept.append(samples[3:])
    np.testing.assert_array_equal(kept.samples, samples)
    starts, blocks = zip(*kept.blocks(), strict=True)
    assert starts == (0, 7, 14)
    np.testing.assert_array_equal(np.concatenate(blocks), samples)
    assert kept.duration_s == 20 / 32_000


def test_a_sound_without_samples_is_empty() -> None:
    assert len(Sound(32_000).samples) == 0


def test_the_file_goes_with_the_last_who_holds_the_sound() -> None:
    kept = Sound(32_000)
    path = kept.path
    assert path.exists()
    del kept
    gc.collect()
    assert not path.exists()


def test_a_disk_without_room_is_named_with_the_way_out() -> None:
    """A limit on the size of files stands for the full disk."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            Sound(32_000).append(np.zeros(1000))
        except OSError as error:
            os._exit(0 if error.errno == errno.EFBIG and "set TMPDIR" in str(error) else 1)
        os._exit(2)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
