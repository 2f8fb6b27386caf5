"""Parameters by patterns of their names, as a user knows them from the base."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from onsa.models.lowering import base_network
from onsa.spec.errors import Problem, RecipeError

EMBEDDINGS = "embeddings"  # the input embeddings, whatever they are called
# What PEFT puts into the names of modules that it wraps: those it adapts, those that train, and the latter's originals.
WRAPPED = re.compile(r"\.(base_layer|modules_to_save\.\w+|original_module)(?=\.)")
NEAREST = 5


def plain(network: nn.Module) -> dict[str, str]:
    """The names of a network's parameters, and how they are called in the base."""
    inner = base_network(network)
    wrapper = next(name for name, module in network.named_modules() if module is inner)
    return {name: WRAPPED.sub("", name.removeprefix(f"{wrapper}.")) for name, _ in network.named_parameters()}


def matching(network: nn.Module, patterns: Sequence[str], key: str) -> frozenset[str]:
    """The names of a network's parameters that any of some patterns matches.

    A pattern is a name with ``*`` and ``?``, the path of a module (all of it is meant), or ``embeddings``.

    Raises:
        RecipeError: patterns match nothing; the message lists near names.
    """
    names = plain(network)
    found: set[str] = set()
    problems = []
    for pattern in patterns:
        if pattern == EMBEDDINGS:
            inputs = {id(p) for p in base_network(network).get_input_embeddings().parameters()}
            matched = {name for name, p in network.named_parameters() if id(p) in inputs}
        else:
            matched = {n for n, seen in names.items() if fnmatchcase(seen, pattern) or seen.startswith(f"{pattern}.")}
        if not matched:
            values = {"value": pattern, "near": ", ".join(_nearest(pattern, list(names.values())))}
            problems.append(Problem("pattern-unmatched", values, key=key))
        found |= matched
    if problems:
        raise RecipeError(problems)
    return frozenset(found)


def _nearest(pattern: str, names: list[str]) -> list[str]:
    bare = pattern.strip("*.")
    within = [name for name in names if bare and bare in name]
    return within[:NEAREST] or get_close_matches(bare, names, NEAREST, cutoff=0.0)
