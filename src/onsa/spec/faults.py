"""Faults: what pydantic refuses about a recipe's values, as problems that name the value and what is valid instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from onsa.spec.component import Section
from onsa.spec.errors import Problem, unknown
from onsa.spec.messages import catalogue, say

# Pydantic's name of a bound that is broken: our message, and where the bound stands.
BOUNDS = {
    "greater_than_equal": ("value-too-small", "ge"),
    "greater_than": ("value-not-above", "gt"),
    "less_than_equal": ("value-too-large", "le"),
    "less_than": ("value-not-below", "lt"),
}
# The first word of pydantic's names for wrong types: what is wanted.
TYPES = {
    "int": "type-int",
    "float": "type-float",
    "finite": "type-float",
    "bool": "type-bool",
    "string": "type-text",
    "tuple": "type-list",
    "list": "type-list",
    "dict": "type-mapping",
    "model": "type-mapping",
}
QUOTED = re.compile(r"'([^']*)'")
SHOWN = 60  # characters of a value


def problems(error: ValidationError, root: type[Section], given: Any, prefix: str = "") -> list[Problem]:
    """One problem for each key that is refused.

    Args:
        root: what was validated; ``given``: from which values; ``prefix``: the key under which they stand.
    """
    found: dict[str, Problem] = {}  # a key that may be of several types is refused once for each
    for fault in error.errors():
        place = _keys(fault, given)
        key = ".".join(part for part in (prefix, *place) if part)
        found.setdefault(key, _problem(fault, root, place, key))
    return list(found.values())


def section_at(root: type[Section], place: list[str]) -> type[Section]:
    """The section class that a path of keys leads to."""
    for name in place:
        annotation = root.model_fields[name].annotation
        options = [annotation, *get_args(annotation)]
        root = next(option for option in options if isinstance(option, type) and issubclass(option, Section))
    return root


def _problem(fault: ErrorDetails, root: type[Section], place: list[str], key: str) -> Problem:
    kind, context, value = fault["type"], fault.get("ctx", {}), _short(fault["input"])
    if kind in ("extra_forbidden", "invalid_key"):
        return unknown("key-unknown", place[-1], section_at(root, place[:-1]).model_fields, key=key)
    if kind == "missing":
        return Problem("key-missing", {"value": place[-1]}, key=key)
    if kind in BOUNDS:
        code, bound = BOUNDS[kind]
        return Problem(code, {"value": value, "bound": f"{context[bound]:.15g}"}, key=key)
    if kind == "literal_error":
        return unknown("value-unknown", value, QUOTED.findall(context["expected"]), key=key)
    if kind in catalogue("en"):  # a validator of ours, which names its message
        return Problem(kind, {"value": value, **context}, key=key)
    wanted = TYPES.get(kind.partition("_")[0])
    if wanted:
        return Problem("value-type", {"value": value, "wanted": say(wanted)}, key=key)
    return Problem("value-refused", {"value": value, "reason": fault["msg"]}, key=key)


def _keys(fault: ErrorDetails, given: Any) -> list[str]:
    """The keys that lead to a fault, as the user wrote them: without list places and pydantic's names of types."""
    place: list[str] = []
    for part in fault["loc"]:
        missing = fault["type"] == "missing" and part == fault["loc"][-1]
        if not missing and not (isinstance(given, Mapping) and part in given):
            break
        place.append(str(part))
        given = None if missing else given[part]
    return place


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
