"""Axes and their kinds: a folder is an axis, a file in it a kind, and third parties add kinds through entry points.

Nothing is listed by hand: the built-in kinds are the files of the axis' folder, and a kind's module is imported only
when a recipe names it, so that what does not train never imports torch.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec

from onsa.spec.component import Component
from onsa.spec.errors import RecipeError, unknown

AXES = {
    "task": "onsa.tasks",
    "adaptation": "onsa.adaptations",
    "objective": "onsa.objectives",
    "regulariser": "onsa.regularisers",
    "source": "onsa.sources",
    "optimizer": "onsa.optim.optimizers",
    "schedule": "onsa.optim.schedules",
    "engine": "onsa.engine.sessions",
    "reward": "onsa.rewards",
}
SEVERAL = frozenset({"regulariser"})  # axes on which a recipe may name several kinds, or none
INNER = {"reward": "source.reward"}  # axes whose kinds stand inside another axis' kinds, and under which key
# The kind that is meant where a recipe names none; on the other axes it depends on the data and the base.
USUAL = {"source": "dataset", "optimizer": "adamw", "schedule": "linear", "engine": "local"}


def key_of(axis: str) -> str:
    """The key of a recipe under which the kinds of an axis stand."""
    return INNER.get(axis, axis)


@cache
def kinds(axis: str) -> dict[str, str]:
    """The kinds of an axis and the module of each: the folder's files, then the entry points of ``onsa.<axis>``."""
    package = AXES[axis]
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    found = {
        name.replace("_", "-"): f"{package}.{name}"
        for _, name, _ in pkgutil.iter_modules(spec.submodule_search_locations)
        if name != "base" and not name.startswith("_")
    }
    for point in entry_points(group=f"onsa.{axis}"):
        found.setdefault(point.name, point.value)
    return dict(sorted(found.items()))


@cache
def load(axis: str, kind: str) -> type[Component]:
    """The class of one kind.

    Raises:
        RecipeError: the axis has no such kind; the message names the nearest and all there are.
    """
    modules = kinds(axis)
    if kind not in modules:
        raise RecipeError(unknown("kind-unknown", kind, modules, key=f"{key_of(axis)}.kind", axis=axis))
    module, _, attribute = modules[kind].partition(":")
    imported = import_module(module)
    if attribute:
        chosen = getattr(imported, attribute)
    else:
        (chosen,) = [
            member
            for member in vars(imported).values()
            if isinstance(member, type) and issubclass(member, Component) and member.__module__ == module
        ]
    assert isinstance(chosen, type) and issubclass(chosen, Component) and chosen.kind == kind, (module, kind)
    return chosen
