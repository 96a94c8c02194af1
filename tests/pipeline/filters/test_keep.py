"""Thresholds as an expression: what it keeps, what it says, what it refuses."""

from __future__ import annotations

import pytest

from pipeline.filtering import DEFAULT_KEEP
from pipeline.filters.keep import names, parse_keep

ISSUE = "music>0.8 and speech<0.2 and text<0.1"


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({"music": 0.9, "speech": 0.1, "text": 0.0}, None),
        ({"music": 0.5, "speech": 0.1, "text": 0.0}, "music is 0.5, wanted music > 0.8"),
        ({"music": 0.9, "speech": 0.62, "text": 0.5}, "speech is 0.62, wanted speech < 0.2"),
    ],
)
def test_the_first_comparison_that_fails_is_the_reason(scores: dict[str, float], reason: str | None) -> None:
    assert parse_keep(ISSUE).reason(scores) == reason


def test_a_score_that_nobody_measured_drops_nothing() -> None:
    assert parse_keep(ISSUE).reason({"speech": 0.1}) is None
    assert parse_keep(ISSUE).reason({}) is None
    assert parse_keep("speech < 0.3 or singing > 0.3").reason({"speech": None, "singing": None}) is None


def test_in_an_or_only_measured_comparisons_count() -> None:
    keep = parse_keep("speech < 0.3 or singing > 0.3")
    assert keep.reason({"speech": 0.9, "singing": 0.8}) is None
    assert keep.reason({"speech": 0.1}) is None
    assert keep.reason({"speech": 0.9}) == "speech is 0.9, wanted speech < 0.3"
    both = "speech is 0.9, singing is 0.1, wanted (speech < 0.3 or singing > 0.3)"
    assert keep.reason({"speech": 0.9, "singing": 0.1}) == both


def test_labels_compare_as_text_and_numbers_may_be_negative() -> None:
    keep = parse_keep("kind == 'MV' and loudness > -30")
    assert keep.reason({"kind": "MV", "loudness": -20.0}) is None
    assert keep.reason({"kind": "vlog", "loudness": -20.0}) == "kind is vlog, wanted kind == 'MV'"
    assert keep.reason({"kind": "MV", "loudness": -40.0}) == "loudness is -40, wanted loudness > -30"


def test_a_label_that_nobody_gave_equals_none() -> None:
    assert parse_keep("kind == 'MV'").reason({}) == "kind is not known, wanted kind == 'MV'"
    assert parse_keep("kind == 'MV' or style == 'jazz'").reason({"style": "jazz"}) is None
    either = "kind is not known, style is not known, wanted (kind == 'MV' or style == 'jazz')"
    assert parse_keep("kind == 'MV' or style == 'jazz'").reason({}) == either
    assert parse_keep("kind != 'MV'").reason({}) is None


def test_nesting_is_understood() -> None:
    keep = parse_keep("(a < 1 or (b < 1 and c < 1)) and d < 1")
    assert keep.reason({"a": 2, "b": 0, "c": 0, "d": 0}) is None
    assert keep.reason({"a": 2, "b": 0, "c": 2, "d": 0}) is not None
    assert names(keep) == {"a", "b", "c", "d"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "speech <",
        "speech",
        "speech < text",
        "0 < speech < 1",
        "__import__('os').system('true') == 0",
        "speech.real < 1",
        "speech < 1 if text else 0",
        "not speech",
        "speech < True",
        "(" * 500 + "a" + ")" * 500,
        "a" * 10 + "\0",
    ],
)
def test_anything_else_is_refused_and_never_run(text: str) -> None:
    with pytest.raises(ValueError, match="--keep"):
        parse_keep(text)


def test_a_label_of_another_type_is_an_error_with_words() -> None:
    with pytest.raises(ValueError, match="kind"):
        parse_keep("kind < 3").reason({"kind": "MV"})


def test_the_default_thresholds_are_an_expression() -> None:
    assert {"speech", "text", "silence", "duplicate"} <= names(parse_keep(DEFAULT_KEEP))
