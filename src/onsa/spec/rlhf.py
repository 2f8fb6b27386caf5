"""Rlhf: three recipes in one: imitate, learn what people prefer, and practise with that as the grade.

Ouyang et al. 2022, figure 2. A stage's recipe is made of what the stages share and of its own section, whose keys are
those of a recipe.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from onsa.spec.component import Section
from onsa.spec.errors import OnsaError, RecipeError
from onsa.spec.faults import problems as faults
from onsa.spec.recipe import Recipe, anchored, anchored_model, parse_recipe, written
from onsa.spec.sections import Data, Model

Stage = Literal["sft", "reward", "ppo"]
STAGES: tuple[Stage, ...] = ("sft", "reward", "ppo")


LATER = "later"  # in place of a run that is not there yet
USUAL: dict[Stage, dict[str, Any]] = {
    "sft": {"task": {"kind": "chat"}, "adaptation": {"kind": "lora"}},
    "reward": {"task": {"kind": "preference"}, "objective": {"kind": "reward"}, "adaptation": {"kind": "lora"}},
    "ppo": {
        "task": {"kind": "prompt"},
        "objective": {"kind": "ppo", "beta": 0.05},
        "adaptation": {"kind": "lora"},
        "optimizer": {"kind": "adamw", "lr": 1e-4},
        "source": {"kind": "rollouts", "group": 4, "prompts": 16, "passes": 2, "max_new_tokens": 48},
        "train": {"batch_rows": 8},
    },
}


class Rlhf(Section):
    """What the three stages share, and what each has for itself.

    model: what the first stage starts from; the others start from what comes of it.
    data: conversations to imitate, whose prompts are also what is practised on.
    preferences: answers to prompts, of which one is better.
    sft, reward, ppo: sections of a recipe, for that stage alone.
    """

    model: Model
    data: Data
    preferences: Data
    sft: dict[str, Any] = Field(default_factory=dict)
    reward: dict[str, Any] = Field(default_factory=dict)
    ppo: dict[str, Any] = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 7

    def identity(self) -> str:
        """What the three are known by together: 8 hex digits."""
        return sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:8]

    def recipe(self, stage: Stage, model: str | None = None, scorer: str | None = None) -> Recipe:
        """A stage's recipe.

        Args:
            model: what it starts from; the first stage's model if not given.
            scorer: the run whose grades are practised for; of a recipe that is only looked at there need be none.

        Raises:
            RecipeError: its section says what cannot be.
        """
        start = self.model if model is None else self.model.model_copy(update={"name": model})
        data = self.preferences if stage == "reward" else self.data
        shared = {"model": start.model_dump(), "data": data.model_dump(), "seed": self.seed}
        usual = USUAL[stage]
        if stage == "ppo":
            rewards = [{"kind": "model", "run": scorer or LATER}]
            usual = {**usual, "source": {**usual["source"], "reward": rewards}, "evaluate": {"judge": scorer}}
        with of_stage(stage):
            return parse_recipe(laid_over({**shared, **usual}, getattr(self, stage)))


def read_rlhf(path: str | Path, overrides: Iterable[str] = ()) -> Rlhf:
    """The three stages of a YAML file, with ``key=value`` overrides laid over it; paths are relative to its folder.

    Raises:
        RecipeError: every problem of the file at once, each with its line.
    """
    with written(Path(path), overrides) as values:
        try:
            found = Rlhf.model_validate(values)
        except ValidationError as error:
            raise RecipeError(faults(error, Rlhf, values)) from None
        for stage in STAGES:
            found.recipe(stage)
    folder = Path(path).parent
    places = {name: anchored(getattr(found, name), folder) for name in ("data", "preferences")}
    return found.model_copy(update={**places, "model": anchored_model(found.model, folder)})


@contextmanager
def of_stage(stage: Stage) -> Iterator[None]:
    """Give errors that name a key of a stage's recipe the key under which that stands."""
    try:
        yield
    except OnsaError as error:
        found = (one if one.key is None else replace(one, key=f"{stage}.{one.key}") for one in error.problems)
        raise type(error)(found) from None


def laid_over(usual: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values laid over others, mapping by mapping; another kind takes none of the settings of the one before."""
    found = dict(usual)
    for key, value in given.items():
        inner = found.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping) and value.get("kind") in (None, inner.get("kind")):
            value = laid_over(inner, value)
        found[key] = value
    return found
