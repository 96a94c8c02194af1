"""Lists as CSV, TSV, JSONL and Parquet: what a row offers, and that a bad row costs only itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.offers.candidate import Candidate, Offer, Problem
from pipeline.offers.lists import LOCATION_COLUMNS, read_list, seconds


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def candidates(offers: Iterator[Offer]) -> list[Candidate]:
    return [offer for offer in offers if isinstance(offer, Candidate)]


def reasons(offers: Iterator[Offer]) -> list[str]:
    return [offer.reason for offer in offers if isinstance(offer, Problem)]


def test_columns_in_any_order_and_case_become_a_candidate(tmp_path: Path) -> None:
    text = "Style,Kind,URL,license,song_id,start,end\nWestern,MV,https://a.example/1.mp4,CC0,s1,1:30,100\n"
    (found,) = candidates(read_list(written(tmp_path, "set.csv", text)))
    assert found.location == "https://a.example/1.mp4"
    assert (found.kind, found.style, found.licence) == ("MV", "Western", "CC0")
    assert (found.start_s, found.end_s) == (90.0, 100.0)
    assert found.groups == ("song:set:s1",)
    assert found.origin == "set.csv line 2"


def test_relative_paths_count_from_the_lists_own_folder(tmp_path: Path) -> None:
    (found,) = candidates(read_list(written(tmp_path, "set.tsv", "path\tsplit\nclips/a.mp4\tval\n")))
    assert found.location == str(tmp_path / "clips" / "a.mp4")
    assert found.split == "test"  # what a list holds out is never trained on


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_are_recognised_by_the_header(tmp_path: Path, delimiter: str) -> None:
    text = f'video{delimiter}kind\n"a{delimiter}b.mp4"{delimiter}movie\n'
    (found,) = candidates(read_list(written(tmp_path, "set.csv", text)))
    assert (Path(found.location).name, found.kind) == (f"a{delimiter}b.mp4", "movie")


def test_a_bad_line_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    text = "url,start\nhttps://a.example/1.mp4,0\n,5\nhttps://a.example/2.mp4,soon\na,b,c\n\nhttps://a.example/3.mp4,1\n"
    path = written(tmp_path, "set.csv", text)
    assert [c.location[-5:] for c in candidates(read_list(path))] == ["1.mp4", "3.mp4"]
    assert reasons(read_list(path)) == [
        f"set.csv line 3: no video; wants one of the columns {', '.join(LOCATION_COLUMNS)}",
        "set.csv line 4: 'soon' is no time; wants seconds or h:mm:ss",
        "set.csv line 5: 3 values under 2 columns",
    ]


def test_jsonl_lines_that_are_no_objects_are_named(tmp_path: Path) -> None:
    lines = [json.dumps({"video": "a.mp4"}), "{", "[1]", "[" * 100_000, json.dumps({"video": "b.mp4"})]
    path = written(tmp_path, "set.jsonl", "\n".join(lines))
    assert len(candidates(read_list(path))) == 2
    assert [reason[:19] for reason in reasons(read_list(path))] == [
        "set.jsonl line 2: n",
        "set.jsonl line 3: n",
        "set.jsonl line 4: n",
    ]


def test_a_list_in_another_encoding_or_with_zeros_does_not_stop_the_reading(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_bytes(
        b"url,kind\nhttps://a.example/1.mp4,caf\xe9\n\0\0\nhttps://a.example/2.mp4,x\n"
    )
    assert len(candidates(read_list(str(tmp_path / "set.csv")))) >= 2


def test_parquet_is_read_like_the_others(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow reads Parquet")
    from pyarrow import parquet

    table = pyarrow.table({"video": ["a.mp4", None], "kind": ["vlog", "movie"], "start_s": [1.5, 0.0]})
    parquet.write_table(table, tmp_path / "set.parquet")
    first, second = read_list(str(tmp_path / "set.parquet"))
    assert isinstance(first, Candidate)
    assert (first.kind, first.start_s) == ("vlog", 1.5)
    assert isinstance(second, Problem)


def test_a_file_that_is_no_parquet_is_an_error_with_words(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow reads Parquet")
    with pytest.raises(ValueError, match="not a Parquet file"):
        list(read_list(written(tmp_path, "set.parquet", "hello")))


@pytest.mark.parametrize(("text", "value"), [("12.5", 12.5), ("2:03", 123), ("1:02:03", 3723), ("0", 0)])
def test_times_are_seconds_or_clock_times(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "1:2:3:4", "one"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no time"):
        seconds(text)
