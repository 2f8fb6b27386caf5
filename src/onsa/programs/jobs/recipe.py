"""The recipe of a job: its method and settings in the words of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from onsa.adaptations.base import Adaptation
from onsa.programs.jobs.graders import Named, reward_of
from onsa.spec.errors import RecipeError, unknown
from onsa.spec.recipe import Recipe, parse_recipe
from onsa.store.job import Order

AUTO = "auto"
SUPERVISED, DPO, REINFORCEMENT = "supervised", "dpo", "reinforcement"
METHODS = (SUPERVISED, DPO, REINFORCEMENT)
GROUP = 8  # answers to a prompt, times the job's compute_multiplier
# The sections of a recipe that a job may lay over its own: none that names a file, a model or code to run.
OPEN_SECTIONS = ("adaptation", "objective", "optimizer", "schedule", "regulariser", "train", "evaluate", "accel")


def job_recipe(order: Order, base: str, training: Path, validation: Path | None, named: Named) -> Recipe:
    """What a job runs.

    All rows of the training file train, and those of the validation file name the best checkpoint and measure it, as
    with a job of OpenAI's.

    Args:
        base: what to start from, as a recipe names it.
        named: finds the models that graders ask.

    Raises:
        RecipeError: a setting that cannot be followed.
    """
    kind = order.method["type"]
    settings, given = order.method.get(kind) or {}, _given(order)
    recipe: dict[str, Any] = {
        "model": base,
        "data": {"path": str(training), "validation": str(validation) if validation else None, "split": "1:0:0"},
        "adaptation": {"kind": "lora"},
        "train": {"epochs": given.get("n_epochs"), "batch_rows": given.get("batch_size")},
        "seed": order.seed,
    }
    if kind == REINFORCEMENT:
        _reinforcement(recipe, settings, given, named)
    else:
        {SUPERVISED: _supervised, DPO: _dpo}[kind](recipe, given)
    for section, value in (settings.get("recipe") or {}).items():
        if section not in OPEN_SECTIONS:
            raise RecipeError(unknown("job-section", section, OPEN_SECTIONS, key=f"method.{kind}.recipe.{section}"))
        recipe[section] = {**recipe.get(section, {}), **value} if isinstance(value, Mapping) else value
    made = parse_recipe(recipe)
    _harmless(made, f"method.{kind}.recipe")
    return made


def _harmless(recipe: Recipe, key: str) -> None:
    """Refuse what a job may not set within the sections that it may.

    Raises:
        RecipeError: a judge, which is a run or any address; an adaptation that may name files, or adds tokens.
    """
    adaptation = cast(Adaptation, recipe.adaptation)
    if recipe.evaluate.judge is not None:
        raise RecipeError(unknown("job-section", "evaluate.judge", OPEN_SECTIONS, key=f"{key}.evaluate.judge"))
    if adaptation.kind == "peft":
        raise RecipeError(unknown("job-section", "adaptation: peft", OPEN_SECTIONS, key=f"{key}.adaptation"))
    if adaptation.places():
        raise RecipeError.of("job-soft-prompt", key=f"{key}.adaptation", value=adaptation.kind)


def _given(order: Order) -> dict[str, Any]:
    """The hyperparameters that an order does not leave to us."""
    settings = order.method.get(order.method["type"]) or {}
    given = (settings.get("hyperparameters") or {}).items()
    return {name: value for name, value in given if value not in (None, AUTO)}


def chosen(order: Order, recipe: Recipe) -> dict[str, Any]:
    """An order's method, with what was chosen where it left the choice."""
    kind, train = order.method["type"], recipe.train
    settings = order.method.get(kind) or {}
    found = {"n_epochs": train.epochs, "batch_size": train.batch_rows, "learning_rate_multiplier": 1.0}
    numbers = {name: AUTO if value is None else value for name, value in found.items()}
    return {"type": kind, kind: {**settings, "hyperparameters": {**numbers, **_given(order)}}}


def rate_times(order: Order) -> float:
    """What the usual learning rate is multiplied by."""
    return float(_given(order).get("learning_rate_multiplier", 1.0))


def _supervised(recipe: dict[str, Any], given: Mapping[str, Any]) -> None:
    recipe["task"] = "chat"


def _dpo(recipe: dict[str, Any], given: Mapping[str, Any]) -> None:
    recipe["task"] = "preference"
    recipe["objective"] = {"kind": "dpo", **({"beta": given["beta"]} if "beta" in given else {})}


def _reinforcement(recipe: dict[str, Any], settings: Mapping[str, Any], given: Mapping[str, Any], named: Named) -> None:
    recipe["task"] = "prompt"
    recipe["objective"] = {"kind": "grpo"}
    group = max(2, round(GROUP * given.get("compute_multiplier", 1)))
    recipe["source"] = {"kind": "rollouts", "group": group, "reward": reward_of(settings["grader"], named)}
    recipe["train"]["eval_steps"] = given.get("eval_interval")
