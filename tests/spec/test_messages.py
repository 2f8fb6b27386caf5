"""The catalogue: both languages say the same things, every code that is used is there, and none is left over."""

from __future__ import annotations

import ast
import string
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import onsa
from onsa.spec.errors import OnsaError, Problem
from onsa.spec.messages import LANGUAGES, catalogue, language, say

SOURCE = Path(next(iter(onsa.__path__)))
AREAS = sorted(area.name for area in (files("onsa.spec.messages") / "en").iterdir())
# Where a message code stands in a call: its place among the arguments.
CALLS = {"of": 0, "Problem": 0, "say": 0, "unknown": 0, "Choice": 1, "PydanticCustomError": 0}


def tables(lang: str, area: str) -> dict[str, Any]:
    return tomllib.loads((files("onsa.spec.messages") / lang / area).read_text(encoding="utf-8"))


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def problems(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """Tables that read like a problem, with what they hold."""
    for name, value in node.items():
        if isinstance(value, dict):
            if {"what", "fix"} & value.keys():
                yield f"{prefix}{name}", set(value)
            yield from problems(value, f"{prefix}{name}.")


def placeholders(text: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}


@cache
def trees() -> dict[str, ast.Module]:
    return {str(path.relative_to(SOURCE)): ast.parse(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")}


def named(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def codes_in(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions that stand for a message code in one node."""
    if isinstance(node, ast.Call) and named(node) in CALLS and len(node.args) > CALLS[named(node)]:
        yield node.args[CALLS[named(node)]]
    if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load) and len(node.elts) == 2:
        code, values = node.elts
        if isinstance(values, ast.Dict) or (isinstance(code, ast.JoinedStr) and family(code)[0] == "pass-"):
            yield code


def branches(node: ast.expr) -> Iterator[ast.expr]:
    """A conditional expression's ends."""
    if isinstance(node, ast.IfExp):
        yield from branches(node.body)
        yield from branches(node.orelse)
    else:
        yield node


def used() -> Iterator[tuple[str, ast.expr]]:
    for name, tree in trees().items():
        for node in ast.walk(tree):
            for code in codes_in(node):
                yield from ((f"{name}:{code.lineno}", end) for end in branches(code))


def family(node: ast.JoinedStr) -> tuple[str, str]:
    """What an f-string begins and ends with."""
    first, last = node.values[0], node.values[-1]
    return tuple(str(part.value) if isinstance(part, ast.Constant) else "" for part in (first, last))  # type: ignore[return-value]


def test_there_are_areas_and_they_are_the_same_in_every_language() -> None:
    assert AREAS
    for lang in LANGUAGES:
        assert sorted(area.name for area in (files("onsa.spec.messages") / lang).iterdir()) == AREAS


@pytest.mark.parametrize("area", AREAS)
def test_languages_have_the_same_codes_and_placeholders(area: str) -> None:
    english, japanese = dict(leaves(tables("en", area))), dict(leaves(tables("ja", area)))
    assert list(english) == list(japanese), "the same codes, in the same order"
    assert {code: placeholders(text) for code, text in english.items()} == {
        code: placeholders(text) for code, text in japanese.items()
    }
    assert not [code for code, text in english.items() if bool(text) != bool(japanese[code])]


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_problem_says_what_is_wrong_and_the_fix(lang: str, area: str) -> None:
    for code, parts in problems(tables(lang, area)):
        assert parts == {"what", "fix"}, code
        assert catalogue(lang)[code], code


def test_no_code_stands_in_two_areas() -> None:
    codes = [code for area in AREAS for code, _ in leaves(tables("en", area))]
    assert len(codes) == len(set(codes))


def test_every_code_that_is_used_is_there() -> None:
    known = catalogue("en")
    strings = [(place, node.value) for place, node in used() if isinstance(node, ast.Constant)]
    assert len(strings) > 100
    looks_like_a_code = [(place, code) for place, code in strings if isinstance(code, str) and "-" in code]
    assert [entry for entry in looks_like_a_code if entry[1] not in known] == []


def test_problems_have_a_fix_in_the_catalogue() -> None:
    known = catalogue("en")
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and named(node) in ("of", "Problem", "unknown") and node.args:
                for code in branches(node.args[0]):
                    if isinstance(code, ast.Constant) and isinstance(code.value, str):
                        assert f"{code.value}.fix" in known, f"{name}:{code.lineno}"


def test_every_family_of_codes_has_members() -> None:
    found = [(place, *family(node)) for place, node in used() if isinstance(node, ast.JoinedStr)]
    assert found
    for place, begins, ends in found:
        assert begins or ends, place
        assert any(code.startswith(begins) and code.endswith(ends) for code in catalogue("en")), (place, begins, ends)


def test_no_code_is_left_over() -> None:
    written = {
        node.value
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    families = [family(node) for _, node in used() if isinstance(node, ast.JoinedStr)]
    unused = [
        code
        for code in catalogue("en")
        if not code.endswith(".fix")
        and code not in written
        and not any((begins or ends) and code.startswith(begins) and code.endswith(ends) for begins, ends in families)
    ]
    assert unused == []


class Blank:
    """A value that goes into any placeholder, whatever its format."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __format__(self, spec: str) -> str:
        return f"<{self.name}>"


@pytest.mark.parametrize("lang", LANGUAGES)
def test_saying_fills_the_blanks(lang: str) -> None:
    for code, text in catalogue(lang).items():
        said = say(code, lang, **{field: Blank(field) for field in placeholders(text)})
        assert all(f"<{field}>" in said for field in placeholders(text)), code
    with pytest.raises(KeyError):
        say("nonsense", lang)
    with pytest.raises(KeyError):
        say("key-missing", lang)


def test_the_language_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ONSA_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(variable, raising=False)
    assert language() == "en"
    monkeypatch.setenv("LANG", "ja_JP.UTF-8")
    assert language() == "ja" and say("key-missing", value="x") == say("key-missing", "ja", value="x")
    monkeypatch.setenv("ONSA_LANG", "en")
    assert language() == "en" and say("key-missing", value="x") == say("key-missing", "en", value="x")


def test_a_problem_says_where_what_and_how_to_mend_it() -> None:
    problem = Problem("key-missing", {"value": "data"}, "r.yaml", 3, "data")
    assert str(problem) == f"r.yaml:3: data: {problem.what} {problem.fix}" and "'data'" in problem.what
    error = OnsaError([problem, Problem("no-gpu")])
    assert str(error).splitlines() == [str(problem), str(Problem("no-gpu"))]
    assert problem.document()["fix"] == problem.fix and problem.document()["line"] == 3
