"""Reading: every format, every encoding, and every fault with its line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onsa.data.read import is_hub, read
from onsa.data.table import Table
from onsa.spec.errors import DataError, Problem
from onsa.spec.messages import say
from onsa.spec.sections import Data

Write = Callable[[str, "str | bytes"], str]


def refused(**data: str) -> list[Problem]:
    """The problems that reading gives; each can be said in both languages."""
    with pytest.raises(DataError) as caught:
        read(Data(**data))
    for problem in caught.value.problems:
        for language in ("en", "ja"):
            assert say(problem.code, language, **problem.values)
            assert say(f"{problem.code}.fix", language, **problem.values)
    return list(caught.value.problems)


def values(table: Table) -> list[dict[str, object]]:
    return [row.values for row in table.rows]


def test_csv_lines_are_those_where_rows_start(write: Write) -> None:
    path = write("a.csv", 'text,label\r\n"one\r\ntwo, three",x\r\n\r\nfour,y\r\n"say ""hi""",z\r\n')
    table = read(Data(path=path))
    assert [row.line for row in table.rows] == [2, 5, 6]
    assert [row.values["text"] for row in table.rows] == ["one\r\ntwo, three", "four", 'say "hi"']
    assert (table.format, table.encoding, table.delimiter, table.columns) == ("csv", "utf-8", ",", ["text", "label"])
    assert len(table.sha256) == 64


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_delimiters_are_detected(write: Write, delimiter: str) -> None:
    rows = [("text", "label"), ('"a,b;c|d\n,,;;||"', "x"), ("it's", "y"), ('"e\tf"', "x")]
    table = read(Data(path=write("a.csv", "\n".join(delimiter.join(row) for row in rows))))
    assert table.delimiter == delimiter
    assert [row.values["label"] for row in table.rows] == ["x", "y", "x"]
    assert [row.line for row in table.rows] == [2, 4, 5]


def test_one_column_with_commas_inside_is_one_column(write: Write) -> None:
    table = read(Data(path=write("a.csv", "text\nhello, world\nno comma\na, b, c\n")))
    assert [row.values["text"] for row in table.rows] == ["hello, world", "no comma", "a, b, c"]


def test_a_delimiter_and_an_encoding_can_be_given(write: Write) -> None:
    path = write("a.csv", "text:label\nгод:x\n".encode("cp1251"))
    table = read(Data(path=path, delimiter=":", encoding="cp1251"))
    assert values(table) == [{"text": "год", "label": "x"}]
    assert read(Data(path=write("b.csv", "a,b\tc\n1,2\t3\n"), delimiter="tab")).columns == ["a,b", "c"]


def test_quotation_marks_in_an_unquoted_tsv_are_letters(write: Write) -> None:
    table = read(Data(path=write("a.tsv", 'text\tlabel\n"so-called" art\t0\n" alone\t1\nplain\t1\n')))
    assert [row.values["text"] for row in table.rows] == ['"so-called" art', '" alone', "plain"]


def test_nameless_columns_are_called_by_their_place(write: Write) -> None:
    assert read(Data(path=write("a.csv", ", text\n0,a\n"))).columns == ["column_1", "text"]


def test_a_field_may_be_long(write: Write) -> None:
    assert len(read(Data(path=write("a.csv", "a,b\n" + "x" * 200_000 + ",y\n"))).rows[0].values["a"]) == 200_000


JAPANESE = [
    "text,label\nとても良い映画,良\nひどい,悪\n",
    "名前,住所\n山田太郎,東京都\n",
    "text,label\n良い,1\n",
    "会社,金額\nｶﾌﾞｼｷｶﾞｲｼｬ音叉,①２００円\n",
]


ENCODINGS = ["cp932", "euc_jp", "iso2022_jp", "utf-8", "utf-8-sig", "utf-16", "utf-16-le"]


def fits(text: str, encoding: str) -> bool:
    return text.encode(encoding, errors="replace").decode(encoding) == text


@pytest.mark.parametrize(
    ("text", "encoding"), [(text, encoding) for text in JAPANESE for encoding in ENCODINGS if fits(text, encoding)]
)
def test_japanese_encodings_are_detected(write: Write, text: str, encoding: str) -> None:
    table = read(Data(path=write("a.csv", text.encode(encoding))))
    header, *rows = [line.split(",") for line in text.splitlines()]
    assert values(table) == [dict(zip(header, row, strict=True)) for row in rows]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp949", "이 영화는 정말 재미있었어요,긍정"),
        ("gb18030", "这部电影非常好看而且演员很好,正面"),
        ("big5", "這部電影非常好看而且演員很好,正面"),
        ("cp1251", "Это очень хороший фильм и мне он понравился,да"),
        ("cp1252", "C'était un très bon film à voir absolument avec les enfants,oui"),
        ("cp1252", "Das Kleid ist größer als üblich und für mich nicht schön,nein"),
    ],
)
def test_other_encodings_are_detected(write: Write, encoding: str, text: str) -> None:
    table = read(Data(path=write("a.csv", f"text,label\n{text}\n".encode(encoding))))
    assert ",".join(map(str, table.rows[0].values.values())) == text


def test_a_broken_byte_in_utf8_is_named_with_its_offset(write: Write) -> None:
    good = "text,label\n" + "とても良い映画,pos\n" * 5
    (problem,) = refused(path=write("a.csv", good.encode() + b"\xff,neg\n"))
    assert (problem.code, problem.line) == ("byte-undecodable", 7)
    assert problem.values == {"byte": "0xFF", "offset": len(good.encode()), "encoding": "utf-8"}
    (problem,) = refused(path=write("b.csv", "a,b\né,ü\n".encode("cp1252")), encoding="ascii")
    assert (problem.code, problem.values["offset"]) == ("byte-undecodable", 4)


def test_json_in_its_shapes(write: Write) -> None:
    rows = [{"text": "a", "n": 1}, {"text": "b\n[", "n": None, "more": [1, {"data": []}]}]
    pretty = json.dumps(rows, indent=1)
    table = read(Data(path=write("a.json", pretty)))
    assert values(table) == rows and table.columns == ["text", "n", "more"]
    assert [row.line for row in table.rows] == [2, 6]
    wrapped = json.dumps({"meta": {"data": [1]}, "data": rows}, indent=1)
    table = read(Data(path=write("b.json", wrapped)))
    assert values(table) == rows and [wrapped.splitlines()[row.line - 1].strip() for row in table.rows] == ["{", "{"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
def test_json_lines(write: Write, name: str) -> None:
    table = read(Data(path=write(name, '{"text": "a\u2028b"}\r\n\r\n{"text": "c", "x": 1.5}\n')))
    assert values(table) == [{"text": "a\u2028b"}, {"text": "c", "x": 1.5}]
    assert [row.line for row in table.rows] == [1, 3] and table.format == "jsonl"


def parquet(columns: dict[str, list[object]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def test_parquet_keeps_types(write: Write) -> None:
    messages = [{"role": "user", "content": "hi"}]
    table = read(Data(path=write("a.parquet", parquet({"m": [messages, None], "n": [1, 2]}))))
    assert values(table) == [{"m": messages, "n": 1}, {"m": None, "n": 2}]
    assert [row.line for row in table.rows] == [1, 2] and table.format == "parquet"


@pytest.mark.parametrize(
    ("name", "content", "code", "line"),
    [
        ("a.csv", "", "file-empty", None),
        ("a.csv", " \n\n", "file-empty", None),
        ("a.csv", "text,label\n", "file-header-only", 1),
        ("a.csv", "a,b\n1,2\n1,2,3\n1,2\n", "row-too-long", 3),
        ("a.csv", 'a,b\n"1\n1",2\n1\n1,2\n', "row-too-short", 4),
        ("a.csv", "a,b, a\n1,2,3\n", "column-twice", 1),
        ("a.csv", 'a,b\n1,2\n"open,2\n3,4\n', "csv-broken", 3),
        ("a.tsv", 'a\tb\n"open\t2\n3\n', "csv-broken", 2),
        ("a.csv", b"PK\x03\x04rest", "file-binary-known", None),
        ("a.jsonl", b"\x1f\x8brest", "file-binary-known", None),
        ("a.csv", b"\x89PNG\r\n", "file-binary-known", None),
        ("a.csv", b"a,b\n\0\0\0\1", "file-binary", None),
        ("a.txt", "text\n", "format-unknown", None),
        ("a", "text\n", "format-unknown", None),
        ("a.json", '[{"a": 1},\n {"a": 2,}]', "json-broken", 2),
        ("a.json", "{", "json-broken", 1),
        ("a.json", "[" * 100_000, "json-refused", None),
        ("a.json", '{"rows": []}', "json-not-array", 1),
        ("a.json", "3", "json-not-array", 1),
        ("a.json", "[]", "file-empty", None),
        ("a.json", '[{"a": 1},\n2]', "row-not-object", 2),
        ("a.jsonl", '{"a": 1}\n[1]\n', "row-not-object", 2),
        ("a.jsonl", '{"a": 1}\n{"a" 2}\n', "json-broken", 2),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", "json-refused", 1),
        ("a.jsonl", '{"a": "\\ud83d\\ude00"}\n{"a": "\\ud83d"}\n', "text-not-unicode", 2),
        ("a.parquet", b"PAR1 nothing", "parquet-broken", None),
        ("a.parquet", parquet({"a": []}), "file-header-only", None),
    ],
)
def test_faults(write: Write, name: str, content: str | bytes, code: str, line: int | None) -> None:
    path = write(name, content)
    problem = refused(path=path)[0]
    assert (problem.code, problem.line, problem.file) == (code, line, path)


def test_faults_of_what_is_given(write: Write) -> None:
    path = write("a.csv", "a,b\n1,2\n")
    assert refused(path=path, encoding="utf-99")[0].code == "encoding-unknown"
    assert refused(path=path, encoding="hex")[0].code == "encoding-refused"
    assert refused(path=path, delimiter=",,")[0].code == "delimiter-refused"
    assert refused(path=path, delimiter='"')[0].code == "delimiter-refused"


def test_an_encoding_that_nothing_fits(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onsa.data.decode.detect_encoding", lambda content: None)
    assert refused(path=write("a.csv", b"a\n\x81"))[0].code == "encoding-unsure"


def test_several_bad_rows_are_named_at_once(write: Write) -> None:
    problems = refused(path=write("a.csv", "a,b\n1\n1,2\n1,2,3\n"))
    assert [(problem.code, problem.line) for problem in problems] == [("row-too-short", 2), ("row-too-long", 4)]
    assert problems[1].values == {"fields": 3, "header": 2, "columns": "a, b"}


def test_places_that_hold_no_file(write: Write, tmp_path: Path) -> None:
    path = write("support.csv", "a,b\n1,2\n")
    (problem,) = refused(path=str(tmp_path / "suport.csv"))
    assert (problem.code, problem.values) == ("file-missing-near", {"near": path})
    assert refused(path=str(tmp_path / "zzzzzzzz.jsonl"))[0].code == "file-missing"
    assert refused(path=str(tmp_path / "none" / "a.csv"))[0].code == "folder-missing"
    (problem,) = refused(path=str(tmp_path))
    assert (problem.code, problem.values) == ("file-is-folder", {"names": "support.csv"})


def test_an_operating_system_that_refuses(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *args: Any, **named: Any) -> IO[Any]:
        raise PermissionError(13, "Permission denied")

    path = write("a.csv", "a\n1\n")
    monkeypatch.setattr(Path, "open", denied)
    assert refused(path=path)[0].values == {"reason": "Permission denied"}


def test_what_is_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert is_hub(Data(path="owner/name")) and is_hub(Data(path="owner/name-v1.0"))
    assert is_hub(Data(path="squad", format="hub"))
    for path in ("data/train", "owner/name.csv", "a.csv", "/tmp/owner/name", "squad"):
        assert not is_hub(Data(path=path)), path


BROKEN = st.one_of(
    st.binary(max_size=40),
    st.text(alphabet='a,"\t\r\n{}[]:\\d8é日1', max_size=40).map(lambda text: text.encode("cp932", "ignore")),
    st.text(alphabet='a,"\t\r\n{}[]:\\ud8é日1', max_size=40).map(str.encode),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=BROKEN, name=st.sampled_from(["a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet"]))
def test_whatever_the_bytes_there_are_rows_or_a_reason(write: Write, content: bytes, name: str) -> None:
    path = write(name, content)
    try:
        table = read(Data(path=path))
    except DataError as error:
        assert all(problem.what and problem.fix for problem in error.problems)
    else:
        assert table.rows and all(row.values.keys() <= set(table.columns) for row in table.rows)
