"""Graders: those of OpenAI's reinforcement method, as rewards.

They come from whoever has a key, so only what is harmless is taken: no kind that reads files or runs code outside a
sandbox, no pattern that could take for ever, and of models only those that the key's project may ask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onsa.models.catalog import catalog
from onsa.spec.errors import DataError, RecipeError, unknown
from onsa.store.aliases import Aliases
from onsa.store.database import Database
from onsa.store.models import Models

KINDS = ("string_check", "text_similarity", "score_model", "python", "multi")
UNUSED = {"python": ("image_tag",)}
GREEDY = ("temperature", "top_p", "seed", "reasoning_effort")  # the likeliest answer is taken
Named = Callable[[str], str]


def speakers(database: Database, project: str, who: str) -> Named:
    """How a grader's model is found: a base, or what the project has tuned, by its name or an alias of it."""

    def named(name: str) -> str:
        alias = Aliases(database).find(project, name)
        leads = name if alias is None else alias.target(who)
        if leads in catalog():
            return leads
        served = Models(database).find(project, leads)
        if served is None or not served.whole:
            raise DataError.of("grader-model", key="grader.model", value=name)
        return served.run

    return named


def reward_of(grader: Mapping[str, Any], named: Named, key: str = "grader") -> dict[str, Any]:
    """A grader as a reward's settings, with the same fields under the same names.

    Raises:
        RecipeError: a kind that is not taken here.
        DataError: a model that the project may not ask.
    """
    kind = str(grader.get("kind", grader.get("type")))
    if kind not in KINDS:
        raise RecipeError(unknown("grader-type", kind, KINDS, key=f"{key}.type"))
    dropped = ("type", "kind", *UNUSED.get(kind, ()))
    found = {name: value for name, value in grader.items() if value is not None and name not in dropped}
    if kind == "multi" and isinstance(found.get("graders"), Mapping):
        inner = found["graders"].items()
        found["graders"] = {name: _inner(one, named, f"{key}.graders.{name}") for name, one in inner}
    if kind == "score_model":
        found |= _asked(found, named)
    return {"type": kind, **found}


def _inner(grader: Any, named: Named, key: str) -> Any:
    return reward_of(grader, named, key) if isinstance(grader, Mapping) else grader


def _asked(grader: Mapping[str, Any], named: Named) -> dict[str, Any]:
    """What a model is asked, in plain messages."""
    found: dict[str, Any] = {}
    if isinstance(grader.get("model"), str):
        found["model"] = named(grader["model"])
    if isinstance(grader.get("input"), list):
        found["input"] = [_message(one) for one in grader["input"]]
    if isinstance(grader.get("sampling_params"), Mapping):
        limits = grader["sampling_params"].items()
        found["sampling_params"] = {name: value for name, value in limits if value is not None and name not in GREEDY}
    return found


def _message(said: Any) -> Any:
    if not isinstance(said, Mapping):
        return said
    content = said.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = [text for part in parts if isinstance(text := part.get("text") if isinstance(part, Mapping) else part, str)]
    plain = "".join(texts) if len(texts) == len(parts) else content
    return {**{name: value for name, value in said.items() if name != "type"}, "content": plain}
