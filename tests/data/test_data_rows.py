"""Rows: very many of them, on the disk, are what few of them are in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onsa.data import decode, rows
from onsa.data.dataset import load_dataset
from onsa.data.profiling import profile
from onsa.data.read import read
from onsa.data.rows import Spooled, gathered
from onsa.data.table import Row
from onsa.spec.errors import DataError
from onsa.spec.sections import Data, Split

Write = Callable[[str, "str | bytes"], str]
TEXTS = [f"表{number} of 90, 'quoted'" for number in range(90)]
LINES = {
    "csv": "text,label\n" + "".join(f'"{text}",{"ab"[number % 2]}\n' for number, text in enumerate(TEXTS)),
    "jsonl": "".join(
        json.dumps({"text": t, "label": "ab"[n % 2]}, ensure_ascii=False) + "\n" for n, t in enumerate(TEXTS)
    ),
}


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight rows are very many, and a file is read a few bytes at a time."""
    monkeypatch.setattr(rows, "IN_MEMORY", 8)
    monkeypatch.setattr(rows, "TOGETHER", 7)
    monkeypatch.setattr(decode, "PART", 5)
    monkeypatch.setattr(decode, "TELLING", 64)


def content(name: str, encoding: str) -> bytes:
    if name == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": TEXTS, "label": ["ab"[n % 2] for n in range(90)]}), sink)
        return sink.getvalue().to_pybytes()
    return LINES[name].encode(encoding)


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("csv", "utf-8"), ("csv", "cp932"), ("csv", "utf-16"), ("csv", "utf-8-sig"), ("jsonl", "utf-8"), ("parquet", "")],
)
def test_a_large_file_is_read_as_a_small_one(
    name: str, encoding: str, write: Write, task: Any, request: pytest.FixtureRequest
) -> None:
    path = write(f"a.{name}", content(name, encoding))
    data = Data(path=path, split=Split(ratio=(6, 2, 2), stratify=True))
    small, profiled, dealt = read(data), profile(read(data)), load_dataset(data, task)
    request.getfixturevalue("many")
    large = read(data)
    assert isinstance(large.rows, Spooled) and isinstance(small.rows, list)
    assert list(large.rows) == small.rows
    assert (large.columns, large.encoding, large.sha256) == (small.columns, small.encoding, small.sha256)
    assert profile(large) == profiled
    again = load_dataset(data, task)
    assert again.sha256 == dealt.sha256
    assert {side: list(own) for side, own in again.sides.items()} == {s: list(own) for s, own in dealt.sides.items()}


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    ("content", "code", "line", "values"),
    [
        (b"a,b\n1,2\n" + "表".encode()[:2] + b",3\n", "byte-undecodable", 3, {"offset": 8, "byte": "0xE8"}),
        (b"a\n" + b"x\n" * 90 + b"\xff\xfe\n", "byte-undecodable", 92, {"offset": 182, "encoding": "utf-8"}),
        (b"a,b\n" + b"1,2\n" * 90 + b"1\0,2\n", "file-binary", None, {"offset": 365}),
        (b"a,b\n" + b"1,2\n" * 90 + b"1\n", "row-too-short", 92, {"fields": 1}),
    ],
)
def test_a_fault_far_down_is_placed(
    content: bytes, code: str, line: int | None, values: dict[str, Any], write: Write
) -> None:
    encoding = "utf-8" if code == "byte-undecodable" else None
    with pytest.raises(DataError) as caught:
        read(Data(path=write("a.csv", content), encoding=encoding))
    (problem,) = caught.value.problems
    assert (problem.code, problem.line) == (code, line)
    assert problem.values.items() >= values.items()


@pytest.mark.usefixtures("many")
def test_an_encoding_is_told_by_what_is_not_ascii(write: Write) -> None:
    text = "text\n" + "plain\n" * 40 + "日本語の文章です。\n" * 12
    assert read(Data(path=write("a.csv", text.encode("cp932")))).encoding == "cp932"
    assert read(Data(path=write("b.csv", "text\n" + "plain\n" * 40))).encoding == "utf-8"


@given(st.lists(st.dictionaries(st.text(max_size=3), st.none() | st.text() | st.lists(st.integers())), min_size=1))
def test_spooled_rows_are_a_sequence(values: list[dict[str, Any]]) -> None:
    given = [Row(value, "a.csv", line) for line, value in enumerate(values)]
    spooled = Spooled("a.csv", given)
    assert list(spooled) == given and len(spooled) == len(given)
    assert [spooled[index] for index in range(-len(given), len(given))] == given * 2
    assert spooled[1:3] == given[1:3] and given[0] in spooled
    with pytest.raises(IndexError):
        spooled[len(given)]


def test_few_rows_stay_in_memory() -> None:
    assert isinstance(gathered(iter([Row({}, "a", 1)])), list)
    assert gathered(iter(())) == []


@pytest.mark.usefixtures("many")
def test_nothing_is_left_on_the_disk(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONSA_HOME", str(tmp_path / "home"))
    table = read(Data(path=write("a.csv", content("csv", "utf-8"))))
    assert len(list(table.rows)) == 90
    assert list((tmp_path / "home" / "cache").iterdir()) == []
