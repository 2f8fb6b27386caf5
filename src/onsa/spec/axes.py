"""Axes: the kinds that a recipe's values name, on an axis of its own or inside another kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BeforeValidator, ValidationError

from onsa.spec import registry
from onsa.spec.component import Component
from onsa.spec.errors import Problem, RecipeError
from onsa.spec.faults import problems as faults


def component(axis: str, value: Any) -> Component:
    """The kind that a value names: by its settings, or as a bare string."""
    if isinstance(value, Component):
        return value
    settings = {"kind": value} if isinstance(value, str) else _typed(axis, value)
    kind = kind_of(axis, settings)
    if not isinstance(kind, str):
        key = registry.key_of(axis)
        raise RecipeError.of("kind-missing", key=key, axis=axis, choices=", ".join(registry.kinds(axis)))
    return registry.load(axis, kind).model_validate({k: v for k, v in settings.items() if k != "kind"})


def kind_of(axis: str, value: Any) -> Any:
    """What a value names as its kind, if anything."""
    if isinstance(value, str):
        return value
    return value.get("kind", registry.USUAL.get(axis)) if isinstance(value, Mapping) else None


def listed(value: Any) -> list[Any]:
    """Several kinds, one in its short form, or none."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def components(axis: str, given: list[Any]) -> tuple[list[Component], list[Problem]]:
    """The kinds that some values name, as far as they are sound, and every problem of the others."""
    made: list[Component] = []
    problems: list[Problem] = []
    for value in given:
        try:
            made.append(component(axis, value))
        except RecipeError as error:
            problems += error.problems
        except ValidationError as error:
            value = _typed(axis, value)
            kind = registry.load(axis, kind_of(axis, value))
            problems += faults(error, kind, value, prefix=registry.key_of(axis))
    return made, problems


def named(axis: str) -> Callable[[Any], Any]:
    """Reads a mapping of names to kinds.

    Raises:
        RecipeError: every problem of them at once.
    """

    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        made, problems = components(axis, list(value.values()))
        if problems:
            raise RecipeError(problems)
        return dict(zip(value, made, strict=True))

    return read


def _typed(axis: str, value: Any) -> Any:
    """A kind's settings; OpenAI's graders name their kind ``type``, with underscores."""
    if axis != "reward" or not isinstance(value, Mapping) or "type" not in value or "kind" in value:
        return value
    return {"kind": str(value["type"]).replace("_", "-"), **{k: v for k, v in value.items() if k != "type"}}


def one(axis: str) -> BeforeValidator:
    """Reads a field that holds a kind, or nothing."""
    return BeforeValidator(lambda value: None if value is None else component(axis, value))


def several(axis: str) -> BeforeValidator:
    """Reads a field that holds several kinds, or none.

    Raises:
        RecipeError: every problem of them at once.
    """

    def read(value: Any) -> tuple[Component, ...]:
        made, problems = components(axis, listed(value))
        if problems:
            raise RecipeError(problems)
        return tuple(made)

    return BeforeValidator(read)
