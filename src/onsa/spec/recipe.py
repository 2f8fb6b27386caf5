"""Recipe: one run as a point in the space of independent choices; its reading, overriding, dumping and identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError

from onsa.spec import registry
from onsa.spec.component import Component, Section
from onsa.spec.errors import Problem, RecipeError
from onsa.spec.sections import FORMATS, Accel, Data, Evaluate, Model, Train


def _axis(axis: str) -> BeforeValidator:
    def component(value: Any) -> Any:
        if value is None or isinstance(value, Component):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping) or "kind" not in value:
            raise ValueError(f"{axis} is a kind, or a mapping with a kind: {', '.join(registry.kinds(axis))}")
        settings = {name: setting for name, setting in value.items() if name != "kind"}
        return registry.load(axis, str(value["kind"])).model_validate(settings)

    return BeforeValidator(component)


class Recipe(Section):
    """What a run is made of. Axes that are ``None`` are chosen by ``resolve`` from the data and the model."""

    model: Model
    data: Data
    task: Annotated[SerializeAsAny[Component] | None, _axis("task")] = None
    adaptation: Annotated[SerializeAsAny[Component] | None, _axis("adaptation")] = None
    objective: Annotated[SerializeAsAny[Component] | None, _axis("objective")] = None
    source: Annotated[SerializeAsAny[Component] | None, _axis("source")] = None
    optimizer: Annotated[SerializeAsAny[Component] | None, _axis("optimizer")] = None
    schedule: Annotated[SerializeAsAny[Component] | None, _axis("schedule")] = None
    engine: Annotated[SerializeAsAny[Component] | None, _axis("engine")] = None
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
        """The run's identity: one SHA-256 over the resolved recipe and the hashes of its data and base weights."""
        payload = json.dumps([self.document(), data_hash, base_hash], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(payload.encode()).hexdigest()


def read_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a YAML file, with ``axis.key=value`` overrides laid over it.

    Paths in a recipe are relative to the folder of the file.

    Raises:
        RecipeError: every problem of the file at once, each with its line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError.of("recipe-missing", file=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError.of("recipe-unreadable", file=str(path), reason=str(error)) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error)
        line = mark.line + 1 if mark else None
        raise RecipeError.of("recipe-not-yaml", file=str(path), line=line, reason=reason) from None
    if not isinstance(values, dict):
        raise RecipeError.of("recipe-not-mapping", file=str(path), line=1)
    for override in overrides:
        _override(values, override)
    recipe = parse_recipe(values, file=str(path), lines=_lines(node))
    beside = (path.parent / recipe.model.name).resolve()
    model = recipe.model.model_copy(update={"name": str(beside)}) if beside.exists() else recipe.model
    return recipe.model_copy(update={"data": _anchored(recipe.data, path.parent), "model": model})


def parse_recipe(values: Mapping[str, Any], file: str | None = None, lines: Mapping[str, int] | None = None) -> Recipe:
    """The recipe that plain values say.

    Raises:
        RecipeError: every problem at once.
    """
    problems: list[Problem] = []
    good = dict(values)
    for axis in registry.AXES:  # first the kinds, so that their own problems are listed beside the sections'
        try:
            if good.get(axis) is not None:
                good[axis] = _component(axis, good[axis])
        except RecipeError as error:
            problems += error.problems
            del good[axis]
        except ValidationError as error:
            kind = good[axis].get("kind", "") if isinstance(good[axis], dict) else good[axis]
            problems += _problems(error, registry.load(axis, str(kind)), prefix=(axis,))
            del good[axis]
    try:
        recipe = Recipe.model_validate(good)
    except ValidationError as error:
        problems += _problems(error, Recipe)
    if problems:
        places = lines or {}
        raise RecipeError(
            Problem(p.code, p.values, file, places.get(p.key or "", places.get((p.key or "").rsplit(".", 1)[0])), p.key)
            for p in problems
        )
    return recipe


def _component(axis: str, value: Any) -> Component:
    if isinstance(value, Component):
        return value
    settings = {"kind": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or not isinstance(settings.get("kind"), str):
        raise RecipeError.of("kind-missing", key=axis, axis=axis, choices=", ".join(registry.kinds(axis)))
    return registry.load(axis, settings["kind"]).model_validate({k: v for k, v in settings.items() if k != "kind"})


def _problems(error: ValidationError, root: type[Section], prefix: tuple[str, ...] = ()) -> list[Problem]:
    found = []
    for fault in error.errors():
        place = [str(part) for part in fault["loc"]]
        key = ".".join((*prefix, *place))
        if fault["type"] == "extra_forbidden":
            fields = list(_section_at(root, place[:-1]).model_fields)
            found.append(registry.unknown("key-unknown", place[-1], fields, key=key))
        elif fault["type"] == "missing":
            found.append(Problem("key-missing", {"value": place[-1]}, key=key))
        else:
            reason = fault["msg"].removeprefix("Value error, ")
            found.append(Problem("value-refused", {"value": _short(fault["input"]), "reason": reason}, key=key))
    return found


def _section_at(root: type[Section], place: list[str]) -> type[Section]:
    """The section class that a path of keys leads to."""
    for name in place:
        annotation = root.model_fields[name].annotation
        options = [annotation, *get_args(annotation)]
        root = next(option for option in options if isinstance(option, type) and issubclass(option, Section))
    return root


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _override(values: dict[str, Any], override: str) -> None:
    """Lay ``axis.key=value`` over recipe values; the value is YAML."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError.of("override-malformed", key=override, value=override)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    node = values
    for depth, part in enumerate(parts[:-1]):
        inner = node.get(part)
        if isinstance(inner, str):  # the axis stands in its short form
            inner = {_short_field(parts[: depth + 1]): inner}
        node[part] = dict(inner or {})
        node = node[part]
    if len(parts) == 1 and isinstance(node.get(parts[0]), dict) and parts[0] in registry.AXES:
        node[parts[0]] = {"kind": value} if isinstance(value, str) else value
    else:
        node[parts[-1]] = value


def _short_field(place: list[str]) -> str:
    if place[0] in registry.AXES:
        return "kind"
    try:
        return _section_at(Recipe, place).shorthand or place[-1]
    except (KeyError, StopIteration):
        return place[-1]


def _lines(node: yaml.Node | None, prefix: str = "") -> dict[str, int]:
    """The line (from 1) of every key of a YAML document, by its dotted path."""
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{prefix}{key.value}"
            lines[path] = key.start_mark.line + 1
            lines |= _lines(value, f"{path}.")
    return lines


def _anchored(data: Data, folder: Path) -> Data:
    """File names relative to the recipe's folder become absolute; a hub id stays as it is."""

    def anchor(name: str | None) -> str | None:
        if name is None or Path(name).is_absolute() or data.format == "hub":
            return name
        beside = (folder / name).resolve()
        return str(beside) if beside.exists() or beside.suffix.lower() in FORMATS else name

    fields = {name: anchor(getattr(data, name)) for name in ("path", "validation", "test")}
    return data.model_copy(update=fields)
