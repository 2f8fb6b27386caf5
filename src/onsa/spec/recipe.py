"""Recipe: one run as a point in the space of independent choices; its reading, overriding, dumping and identity."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, SerializeAsAny, ValidationError

from onsa.spec import axes, registry
from onsa.spec.component import Component, Section
from onsa.spec.errors import OnsaError, Problem, RecipeError
from onsa.spec.faults import problems as faults
from onsa.spec.faults import section_at
from onsa.spec.sections import FORMATS, Accel, Data, Evaluate, Model, Train

PLACES = {"model": ("name",), "data": ("path", "validation", "test")}


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``8:1:1`` is a text, not a number in base 60."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":int")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))


class Recipe(Section):
    """What a run is made of. Axes that are ``None`` are chosen by ``resolve`` from the data and the model."""

    model: Model
    data: Data
    task: Annotated[SerializeAsAny[Component] | None, axes.one("task")] = None
    adaptation: Annotated[SerializeAsAny[Component] | None, axes.one("adaptation")] = None
    objective: Annotated[SerializeAsAny[Component] | None, axes.one("objective")] = None
    regulariser: Annotated[tuple[SerializeAsAny[Component], ...], axes.several("regulariser")] = ()
    source: Annotated[SerializeAsAny[Component] | None, axes.one("source")] = None
    optimizer: Annotated[SerializeAsAny[Component] | None, axes.one("optimizer")] = None
    schedule: Annotated[SerializeAsAny[Component] | None, axes.one("schedule")] = None
    engine: Annotated[SerializeAsAny[Component] | None, axes.one("engine")] = None
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    accel: Accel = Accel()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 7

    def document(self) -> dict[str, Any]:
        """The recipe as plain YAML values."""
        return self.model_dump(mode="json")

    def dump(self) -> str:
        """The recipe as YAML text that reads back to the same recipe."""
        return yaml.safe_dump(self.document(), sort_keys=False, allow_unicode=True, width=100)

    def identity(self, data_hash: str, base_hash: str) -> str:
        """The run's identity: one SHA-256 over the resolved recipe and the hashes of its data and base weights.

        Where its steps run does not count: a run may go on elsewhere.
        """
        said = self.document()
        said.pop("engine", None)
        for section, keys in PLACES.items():  # where files lie does not count: what is in them does
            said[section] = {key: value for key, value in said[section].items() if key not in keys}
        payload = json.dumps([said, data_hash, base_hash], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(payload.encode()).hexdigest()


def read_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a YAML file, with ``axis.key=value`` overrides laid over it.

    Paths in a recipe are relative to the folder of the file.

    Raises:
        RecipeError: every problem of the file at once, each with its line.
    """
    with written(Path(path), overrides) as values:
        recipe = parse_recipe(values)
    folder = Path(path).parent
    places = {"data": anchored(recipe.data, folder), "model": anchored_model(recipe.model, folder)}
    return recipe.model_copy(update=places)


@contextmanager
def written(path: Path, overrides: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The values of a recipe's file with overrides laid over them; within, errors name their places, as by
    :func:`placed`."""
    overrides = tuple(overrides)
    values, _ = _read(path)
    with placed(path, overrides):
        for override in overrides:
            _override(values, override)
        yield values


@contextmanager
def placed(path: Path, overrides: Iterable[str] = ()) -> Iterator[None]:
    """Give errors that name a key of this recipe the file and the line of that key, or the override that set it."""
    try:
        yield
    except OnsaError as error:
        _, lines = _read(path)
        raise type(error)(_place(problem, path, lines, overrides) for problem in error.problems) from None


def parse_recipe(values: Mapping[str, Any]) -> Recipe:
    """The recipe that plain values say.

    Raises:
        RecipeError: every problem at once.
    """
    problems: list[Problem] = []
    good = dict(values)
    for axis in registry.AXES:  # first the kinds, so that their own problems are listed beside the sections'
        if axis in registry.INNER or good.get(axis) is None:
            continue
        given = axes.listed(good[axis]) if axis in registry.SEVERAL else [good[axis]]
        made, found = axes.components(axis, given)
        problems += found
        good[axis] = tuple(made) if axis in registry.SEVERAL else made[0] if made else None
    try:
        recipe = Recipe.model_validate(good)
    except ValidationError as error:
        problems += faults(error, Recipe, good)
    if problems:
        raise RecipeError(problems)
    return recipe


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The values of a recipe's file, and the line of each key."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError.of("recipe-missing", file=str(path)) from None
    except IsADirectoryError:
        raise RecipeError.of("recipe-is-folder", file=str(path)) from None
    except UnicodeDecodeError as error:
        raise RecipeError.of("recipe-not-utf8", file=str(path), byte=f"0x{error.object[error.start]:02X}") from None
    except OSError as error:
        raise RecipeError.of("recipe-unreadable", file=str(path), reason=error.strerror or str(error)) from None
    try:
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error)
        line = mark.line + 1 if mark else None
        raise RecipeError.of("recipe-not-yaml", file=str(path), line=line, reason=reason) from None
    if not isinstance(values, dict):
        raise RecipeError.of("recipe-not-mapping", file=str(path), line=1, type=type(values).__name__)
    return values, _lines(node, str(path))


def _place(problem: Problem, path: Path, lines: Mapping[str, int], overrides: Iterable[str]) -> Problem:
    if problem.file is not None or problem.key is None:
        return problem
    key = problem.key
    for override in overrides:
        name = override.partition("=")[0].strip()
        if f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}."):
            return replace(problem, file=f"--set {override}")
    while key not in lines and "." in key:
        key = key.rpartition(".")[0]
    return replace(problem, file=str(path), line=lines.get(key))


def _override(values: dict[str, Any], override: str) -> None:
    """Lay ``axis.key=value`` over recipe values; the value is YAML."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError.of("override-malformed", file="--set", value=override)
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        value = text
    node = values
    for depth, part in enumerate(parts[:-1]):
        inner = node.get(part)
        if isinstance(inner, str):  # the axis stands in its short form
            inner = {_short_field(parts[: depth + 1]): inner}
        if isinstance(inner, list):
            raise RecipeError.of("override-in-list", file="--set", value=override, key=".".join(parts[: depth + 1]))
        node[part] = dict(inner) if isinstance(inner, Mapping) else {}
        node = node[part]
    if len(parts) == 1 and isinstance(node.get(parts[0]), dict) and parts[0] in registry.AXES.keys() - registry.SEVERAL:
        node[parts[0]] = {"kind": value} if isinstance(value, str) else value
    else:
        node[parts[-1]] = value


def _short_field(place: list[str]) -> str:
    if place[0] in registry.AXES:
        return "kind"
    try:
        return section_at(Recipe, place).shorthand or place[-1]
    except (KeyError, StopIteration):
        return place[-1]


def _lines(node: yaml.Node | None, file: str, prefix: str = "") -> dict[str, int]:
    """The line (from 1) of every key of a YAML document, by its dotted path.

    Raises:
        RecipeError: a key stands twice, of which YAML would drop the first.
    """
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if path in lines:
                raise RecipeError.of("key-twice", file=file, line=line, key=path, value=key.value, first=lines[path])
            lines[path] = line
            lines |= _lines(value, file, f"{path}.")
    return lines


def anchored_model(model: Model, folder: Path) -> Model:
    """A model of a folder or file that is there relative to the recipe's folder by its absolute path."""
    beside = (folder / model.name).resolve()
    return model.model_copy(update={"name": str(beside)}) if beside.exists() else model


def anchored(data: Data, folder: Path) -> Data:
    """File names relative to the recipe's folder become absolute; a hub id stays as it is."""

    def anchor(name: str | None) -> str | None:
        if name is None or Path(name).is_absolute() or data.format == "hub":
            return name
        beside = (folder / name).resolve()
        return str(beside) if beside.exists() or beside.suffix.lower() in FORMATS else name

    fields = {name: anchor(getattr(data, name)) for name in ("path", "validation", "test")}
    return data.model_copy(update=fields)
