"""The evaluation model as a judge of takes: the same scores as `gvm-eval`'s, from what composing leaves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gvmgen import judge
from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.presets import encoder_config
from gvmgen.evaluation.evaluator import Evaluator, load_evaluator
from gvmgen.finish.sound import Sound
from gvmgen.generate import Music
from gvmgen.judge import Judge, OtherEncodersError, load_judge
from shards.spec import CODE_RATE, SAMPLE_RATE

NUM_SECONDS = 9


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return load_evaluator()


@pytest.fixture(scope="module")
def composer(evaluator: Evaluator) -> Any:
    """What the judge asks of a composer, with pocket's codec."""
    codec = AudioCodec.load(encoder_config("pocket"))
    return SimpleNamespace(codec=codec, encoders=evaluator.info.encoder_fingerprint)


@pytest.fixture(scope="module")
def music() -> Music:
    """Codes and features by chance: scores need not be good to be the same."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2048, (4, NUM_SECONDS * CODE_RATE + 20), generator=generator)
    seen = Judge.look(torch.randn(NUM_SECONDS + 1, 577, 192, generator=generator))
    return Music(Sound(SAMPLE_RATE), Path("a.mp4"), 0.0, 0, "made", 1.0, {}, codes, seen)


def by_evaluator(evaluator: Evaluator, music: Music, first: int, last: int) -> float:
    assert music.codes is not None
    assert music.seen is not None
    heard: Tensor = evaluator.hear_codes(music.codes[None])
    return float(evaluator.matrix([music.seen[first:last]], [heard[first:last]])[0, 0])


def test_the_judge_gives_the_evaluators_similarity(evaluator: Evaluator, composer: Any, music: Music) -> None:
    found = Judge(evaluator, composer).cmr(music)
    assert found == pytest.approx(by_evaluator(evaluator, music, 0, NUM_SECONDS), abs=1e-6)
    assert found != 0


def test_a_long_piece_is_judged_in_stretches(
    evaluator: Evaluator, composer: Any, music: Music, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "STRETCH_S", 4)
    parts = [by_evaluator(evaluator, music, *part) for part in ((0, 5), (5, 9))]
    assert Judge(evaluator, composer).cmr(music) == pytest.approx((5 * parts[0] + 4 * parts[1]) / 9, abs=1e-6)


def test_less_than_a_second_is_not_judged(evaluator: Evaluator, composer: Any, music: Music) -> None:
    assert music.codes is not None
    assert music.seen is not None
    short = Music(music.sound, music.video, 0.0, 0, "made", 1.0, {}, music.codes[:, :40], music.seen[:1])
    assert Judge(evaluator, composer).cmr(short) is None


def test_a_composer_with_other_encoders_has_no_judge(composer: Any) -> None:
    other = {"video": composer.encoders["video"], "audio": {"weights_sha256": "0000"}}
    decoder = SimpleNamespace(heads=torch.nn.Linear(1, 1))
    stranger = SimpleNamespace(codec=None, encoders=other, model=SimpleNamespace(decoder=decoder))
    with pytest.raises(
        OtherEncodersError, match=r"/evaluator: .*other encoders.*Train one .*: gvm-eval train"
    ):
        load_judge(stranger)  # type: ignore[arg-type]
