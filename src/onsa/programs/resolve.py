"""Resolve: every choice that a recipe leaves open is made from the data, the base and the machine, and written down."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from onsa.adaptations.base import Adaptation
from onsa.data.profile import Profile
from onsa.data.table import Dataset
from onsa.engine.sessions.base import Engine
from onsa.models.fetch import Located
from onsa.models.heads import Head
from onsa.models.precision import has_fast_bf16
from onsa.objectives.base import Objective
from onsa.optim.optimizers.base import Optimizer
from onsa.optim.schedules.base import Schedule
from onsa.programs.endpoint import Endpoint
from onsa.regularisers.base import Regulariser
from onsa.sources.base import Source
from onsa.spec import registry
from onsa.spec.component import Component, Form
from onsa.spec.errors import DataError, Level, Problem, RecipeError, StoreError, unknown
from onsa.spec.messages import say
from onsa.spec.recipe import Recipe, parse_recipe
from onsa.store.run import State
from onsa.store.runs import Store
from onsa.tasks.base import Match, Task

Lengths = npt.NDArray[np.int64]
SMALL_MODEL = 60_000_000  # parameters up to which full tuning is the better default for a row head
RATE_NEW = 1e-2  # of a new head, which starts from nothing; at a tenth of it 100 steps hardly move one
LONGEST = 1024  # tokens a row keeps by default
PROMPTS = 8  # whose answers a step learns from by default


@dataclass(frozen=True)
class Choice:
    """A default that was chosen: the recipe's key, and why as a message code with its values."""

    key: str
    reason: str
    values: dict[str, Any]

    @property
    def why(self) -> str:
        return say(self.reason, **self.values)


def recognise(
    profile: Profile, file: str, given: Iterable[str] = (), makes: frozenset[Form] = frozenset()
) -> tuple[type[Task], Match]:
    """The task that a table fits best, with the columns in their roles.

    Args:
        given: roles that the recipe gives columns for; only tasks that know them all come into question.
        makes: forms of rows that the source makes examples of; only tasks of these come into question, if any.

    Raises:
        DataError: no task recognises the columns; the message lists what was seen.
    """
    found = []
    for kind in registry.kinds("task"):
        task = cast(type[Task], registry.load("task", kind))
        match = task.recognise(profile)
        fits = task().provides in makes if makes else True
        if match is not None and fits and set(given) <= set(task.roles):
            found.append((match.score, kind, task, match))
    if not found:
        seen = ", ".join(f"{column.name} ({column.look.value})" for column in profile.columns)
        raise DataError.of("task-unrecognised", file=file, key="task", columns=seen)
    _, _, task, match = max(found, key=lambda entry: (entry[0], entry[1]))
    return task, match


def with_task(recipe: Recipe, profile: Profile) -> tuple[Recipe, list[Choice]]:
    """The recipe with its task and columns, as given or as recognised in the data."""
    choices: list[Choice] = []
    task, columns = cast(Task | None, recipe.task), recipe.data.columns
    if task is None:
        kind, match = recognise(profile, recipe.data.path, columns or (), _made(recipe))
        task, columns = kind(), columns or match.columns
        choices += [Choice("task", reason, values) for reason, values in match.reasons]
    elif columns is None:
        match_given = type(task).recognise(profile)
        columns = match_given.columns if match_given else _by_name(task, profile, recipe.data.path)
    objective = cast(Objective | None, recipe.objective)
    task = task.suited(frozenset() if objective is None else objective.reads)
    best = recipe.train.best or ("loss" if "loss" in task.measures else task.headline)
    language = recipe.data.language or profile.language
    data = recipe.data.model_copy(update={"columns": columns, "language": language})
    train = recipe.train.model_copy(update={"best": best})
    return recipe.model_copy(update={"task": task, "data": data, "train": train}), choices


def _made(recipe: Recipe) -> frozenset[Form]:
    """The forms of rows that a recipe's source makes examples of itself."""
    return cast(Source, recipe.source or _usual("source")).makes


def _by_name(task: Task, profile: Profile, file: str) -> dict[str, str]:
    """Columns that carry the very names of the task's roles.

    Raises:
        DataError: a role that must be there has no column of its name.
    """
    columns = {role: found.name for role in task.roles if (found := profile.named(role)) is not None}
    missing = [role for role, needed in task.roles.items() if needed and role not in columns]
    if missing or not columns:
        names = ", ".join(column.name for column in profile.columns)
        wanted = ", ".join(missing or task.roles)
        raise DataError.of("roles-unfilled", file=file, key="data.columns", task=task.kind, roles=wanted, columns=names)
    return columns


def with_axes(recipe: Recipe, base: Located, head: Head) -> tuple[Recipe, list[Choice]]:
    """The recipe with every axis filled."""
    task = cast(Task, recipe.task)
    choices: list[Choice] = []
    chosen: dict[str, Component] = {}
    if recipe.adaptation is None:
        full = head is Head.ROWS and base.parameters <= SMALL_MODEL and recipe.model.quantize is None
        chosen["adaptation"] = registry.load("adaptation", "full" if full else "lora")()
        values = {"parameters": f"{base.parameters / 1e6:.0f}"}
        choices.append(Choice("adaptation", "why-full" if full else "why-lora", values))
    adaptation = cast(Adaptation, chosen.get("adaptation", recipe.adaptation))
    if recipe.objective is None:
        options = [_objective(kind) for kind in task.objectives]
        chosen["objective"] = next(kind for kind in options if task.provides in kind.reads)()
    optimizer = cast(Optimizer, recipe.optimizer or _usual("optimizer"))
    if optimizer.lr is None:
        usual, times = adaptation.rate(head, int(base.config.get("hidden_size") or 768)), optimizer.times
        rate = float(f"{usual * times:.3g}")
        values = {"adaptation": adaptation.kind, "optimizer": optimizer.kind, "times": f"{times:g}"}
        choices.append(Choice("optimizer.lr", "why-rate" if times == 1 else "why-rate-times", values))
        optimizer = optimizer.model_copy(update={"lr": rate})
    if optimizer.lr_new is None:
        rate_new = max(RATE_NEW * optimizer.times, optimizer.lr or 0.0) if head is Head.ROWS else optimizer.lr
        optimizer = optimizer.model_copy(update={"lr_new": rate_new})
    chosen["optimizer"] = optimizer
    chosen["source"] = recipe.source or _usual("source")
    chosen["schedule"] = recipe.schedule or registry.load("schedule", optimizer.schedule)()
    chosen["engine"] = recipe.engine or _usual("engine")
    return recipe.model_copy(update=chosen), choices


def _objective(kind: str) -> type[Objective]:
    return cast(type[Objective], registry.load("objective", kind))


def _usual(axis: str) -> Component:
    return registry.load(axis, registry.USUAL[axis])()


def with_training(recipe: Recipe, length_R: Lengths, longest: int, context: int) -> tuple[Recipe, list[Choice]]:
    """The recipe with every training setting filled.

    Args:
        length_R: tokens of each training row before any cut.
        longest: tokens of the longest row of any side.
        context: tokens the base can look at.
    """
    task, train = cast(Task, recipe.task), recipe.train
    choices: list[Choice] = []
    fill: dict[str, Any] = {}
    if train.max_length is None:
        fill["max_length"] = max(2, min(context, LONGEST, longest + (-longest) % 8))
        choices.append(Choice("train.max_length", "why-length", {"longest": longest, "length": fill["max_length"]}))
    if train.epochs is None:
        usual = 3 if task.head is Head.TOKENS or len(length_R) > 5000 else 10
        fill["epochs"] = 1 if task.provides is Form.PROMPTED else usual
        choices.append(Choice("train.epochs", "why-epochs", {"rows": len(length_R), "epochs": fill["epochs"]}))
    if train.batch_tokens is None and train.batch_rows is None:
        if task.head is Head.ROWS:
            fill["batch_rows"] = 32
        elif task.provides is Form.PROMPTED:
            fill["batch_rows"] = PROMPTS
        else:
            fill["batch_tokens"] = 1024 if length_R.sum() < 200_000 else 4096
    if train.precision is None:
        place = cast(Engine, recipe.engine).place()
        # A row model is small, and its head sensitive: bf16 pays where the products are large.
        fast = task.head is Head.TOKENS and has_fast_bf16(place)
        fill["precision"] = "bf16" if fast else "fp32"
        choices.append(Choice("train.precision", "why-bf16" if fast else "why-fp32", {"device": place}))
    return recipe.model_copy(update={"train": train.model_copy(update=fill)}), choices


def with_rhythm(recipe: Recipe, steps_an_epoch: int) -> Recipe:
    """The recipe with evaluations and checkpoints spaced: once an epoch, but checkpoints at least every 50 steps."""
    train = recipe.train
    fill = {
        "eval_steps": train.eval_steps or max(1, steps_an_epoch),
        "save_steps": train.save_steps or max(1, min(50, steps_an_epoch)),
    }
    return recipe.model_copy(update={"train": train.model_copy(update=fill)})


def can_judge(task: Task) -> bool:
    """Whether a model of a task can say which of two answers is better: by scores, or in words."""
    return task.talks or task.outputs == ("score",)


def with_judge(recipe: Recipe) -> Recipe:
    """The recipe with its judge by id.

    Raises:
        StoreError: there is no such run, or it cannot judge.
        RecipeError: there is nothing to be judged.
    """
    if recipe.evaluate.judge is None:
        return recipe
    task = cast(Task, recipe.task)
    if not (task.talks and recipe.evaluate.baseline):
        raise RecipeError.of("judge-idle", key="evaluate.judge", task=task.kind)
    if Endpoint.of(recipe.evaluate.judge) is not None:
        return recipe
    with Store() as store:
        run = store.find(recipe.evaluate.judge)
    by = cast(Task, parse_recipe(run.recipe).task)
    if run.state is not State.FINISHED or not can_judge(by):
        raise StoreError.of("run-no-judge", file=run.id, task=by.kind)
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"judge": run.id})})


def conflicts(recipe: Recipe) -> list[Problem]:
    """What does not go together in a recipe whose axes are filled."""
    task, objective = cast(Task, recipe.task), recipe.objective
    found = []
    if isinstance(objective, Objective) and task.provides not in objective.reads:
        fitting = [kind for kind in task.objectives if task.provides in _objective(kind).reads]
        values = {"objective": objective.kind, "task": task.kind, "form": task.provides.value, "near": fitting[0]}
        found.append(Problem("objective-mismatch", values, key="objective"))
    best = recipe.train.best or ""
    if best not in task.measures:
        found.append(unknown("metric-unknown", best, task.measures, key="train.best", task=task.kind))
    makes = _made(recipe)
    if not (task.provides in makes if makes else task.provides is not Form.PROMPTED):
        values = {"source": (recipe.source or _usual("source")).kind, "task": task.kind}
        found.append(Problem("source-mismatch" if makes else "source-makes-none", values, key="source"))
    if recipe.model.head_dropout is not None and task.head is Head.TOKENS:
        found.append(Problem("head-dropout-tokens", {"task": task.kind}, key="model.head_dropout"))
    schedule, optimizer = cast(Schedule | None, recipe.schedule), cast(Optimizer | None, recipe.optimizer)
    if schedule is not None and optimizer is not None and optimizer.schedule == "constant" != schedule.kind:
        values = {"optimizer": optimizer.kind, "schedule": schedule.kind}
        found.append(Problem("schedule-unneeded", values, key="schedule", level=Level.WARNING))
    return found


def unwatched(recipe: Recipe, dataset: Dataset) -> list[Problem]:
    """What follows the validation rows of a data set that has none."""
    found: list[Problem] = []
    schedule = cast(Schedule | None, recipe.schedule)
    if dataset.sides["validation"]:
        return found
    if recipe.train.early_stop is not None:
        found.append(Problem("stop-unwatched", {}, key="train.early_stop"))
    if schedule is not None and schedule.watches:
        found.append(Problem("schedule-unwatched", {"schedule": schedule.kind}, key="schedule"))
    return found


def misfits(recipe: Recipe) -> list[Problem]:
    """What does not go together on the axes that a recipe need not name; all of them are filled here."""
    provides, adaptation = cast(Task, recipe.task).provides, cast(Adaptation, recipe.adaptation)
    optimizer = cast(Optimizer, recipe.optimizer)
    given = cast(tuple[Regulariser, ...], recipe.regulariser)
    found = [problem for one in given if (problem := one.refuse(provides, adaptation)) is not None]
    kinds = [one.kind for one in given]
    found += [
        Problem("regulariser-twice", {"value": kind}, key="regulariser")
        for kind in dict.fromkeys(kinds)
        if kinds.count(kind) > 1
    ]
    averages = list(dict.fromkeys(one.kind for one in given if one.share(0, 1) is not None))
    if type(optimizer).deployed is not Optimizer.deployed:
        averages.append(optimizer.kind)
    if len(averages) > 1:
        found.append(Problem("averages-twice", {"kinds": ", ".join(averages)}, key="regulariser"))
    if recipe.model.quantize is not None and not (adaptation.adapter or adaptation.keeps_base):
        values = {"adaptation": adaptation.kind, "value": recipe.model.quantize}
        found.append(Problem("quantize-trains-base", values, key="model.quantize"))
    engine = cast(Engine, recipe.engine)
    if provides is Form.PROMPTED and adaptation.places():
        found.append(Problem("rollouts-soft-prompt", {"adaptation": adaptation.kind}, key="adaptation"))
    if provides is Form.PROMPTED and not engine.alone:
        found.append(Problem("rollouts-alone", {"engine": engine.kind}, key="engine"))
    refused = engine.refuse(adaptation, optimizer, recipe.model.quantize)
    return [*found, refused] if refused else found
