"""Prepare: from a recipe as it was written to everything a run needs: the resolved recipe, rows, tokens and a plan.

``onsa check``, ``plan`` and ``train`` all begin here, so what the preflight says is what training does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from typing import Any, cast

import numpy as np

from onsa.accel.passes import ROWS, check_names
from onsa.accel.plan import Plan, decide
from onsa.adaptations.base import Adaptation
from onsa.data.dataset import dealt, load_rows, read_tables, settled
from onsa.data.profiling import profile
from onsa.data.quality import balance, examine
from onsa.data.rows import Part
from onsa.data.survey import survey
from onsa.data.table import Dataset
from onsa.engine.batches import encode, padding
from onsa.engine.sessions.base import Engine
from onsa.engine.tokenised import tokenised
from onsa.models.batch import Example, sizes
from onsa.models.companions import Companioned
from onsa.models.fetch import Located, locate
from onsa.models.load import load_tokenizer, tokenizer_hash
from onsa.objectives.base import Objective
from onsa.programs import preflight
from onsa.programs.resolve import (
    Choice,
    conflicts,
    misfits,
    unwatched,
    with_axes,
    with_judge,
    with_rhythm,
    with_task,
    with_training,
)
from onsa.sources.base import Cursor, Feed, Source
from onsa.spec.component import Form
from onsa.spec.errors import DataError, Level, Problem, RecipeError
from onsa.spec.recipe import Recipe
from onsa.tasks.base import Task

SHAPED_HEADS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
UNLIMITED = 1_000_000
PADDED_STEPS = 50  # that padding is counted over
LEAST = 2  # tokens of a row: one to read and one to predict


@dataclass(frozen=True)
class Prepared:
    """A run that could begin.

    examples: encoded rows by side of the split.
    plan: as far as rows decide it; :func:`onsa.programs.forecast.build` has the passes over the network decide.
    total: optimizer steps of the whole run.
    choices: the defaults that were chosen, with reasons; ``problems``: warnings and notes of the preflight.
    """

    recipe: Recipe
    base: Located
    dataset: Dataset
    tokenizer: Any
    examples: Mapping[str, Sequence[Example]]
    plan: Plan
    total: int
    choices: tuple[Choice, ...]
    problems: tuple[Problem, ...]

    @property
    def task(self) -> Task:
        return cast(Task, self.recipe.task)

    @property
    def adaptation(self) -> Adaptation:
        return cast(Adaptation, self.recipe.adaptation)

    @property
    def engine(self) -> Engine:
        return cast(Engine, self.recipe.engine)

    @property
    def source(self) -> Source:
        return cast(Source, self.recipe.source)

    @property
    def feed(self) -> Feed:
        return Feed(self.examples["train"], self.recipe.train, self.recipe.seed)

    @property
    def identity(self) -> str:
        return self.recipe.identity(self.dataset.sha256, f"{self.base.sha256} {tokenizer_hash(self.tokenizer)}")


def prepare(recipe: Recipe, progress: Callable[[str], None] | None = None) -> Prepared:
    """Resolve a recipe against its data, its base and this machine.

    Args:
        progress: is told about downloads and conversions of the base, in the interface's language.

    Raises:
        RecipeError, DataError, ModelError, MachineError: whatever stands in the way of training, all that can be told
            at once.
    """
    check_names(recipe.accel)
    tables = read_tables(recipe.data)
    seen = profile(tables["train"])
    recipe, choices = with_task(recipe, seen)
    given = load_rows(recipe.data, cast(Task, recipe.task), tables)
    task = _fitted(cast(Task, recipe.task), given)
    recipe = with_judge(recipe.model_copy(update={"task": task}))
    looked = {side: survey(rows, task) for side, rows in given.items()}
    problems = [*conflicts(recipe), *examine(looked, task)]
    _stop_at_errors(problems)
    problems += task.worth_knowing({side: found.where(found.usable_R).rows for side, found in looked.items()})
    sides, removed = dealt(looked, recipe.data, task)
    if task.provides is Form.LABELLED:  # the split may have left one class alone
        _stop_at_errors(balance(sides["train"]))
    dataset = settled(sides, removed, recipe.data.language or seen.language)
    _stop_at_errors(unwatched(recipe, dataset))
    base = locate(recipe.model, progress=progress)
    recipe, more = with_axes(recipe, base, task.head)
    choices += more
    _stop_at_errors(misfits(recipe))
    cast(Engine, recipe.engine).place()
    tokenizer = load_tokenizer(base.folder, recipe.model)
    problems += preflight.template(task, dataset, tokenizer, recipe.model.name)
    _stop_at_errors(problems)
    context = _context(base, cast(Adaptation, recipe.adaptation), cast(Source, recipe.source))
    longest = recipe.train.max_length or context
    encoded = encode if recipe.accel.mode == "off" else tokenised
    examples = {side: encoded(task, rows, tokenizer, longest) for side, rows in dataset.sides.items()}
    lengths = {side: sizes(found).length_R for side, found in examples.items()}
    widest = max((int(length_R.max()) for length_R in lengths.values() if len(length_R)), default=1)
    recipe, more = with_training(recipe, lengths["train"], widest, context)
    choices += more
    cut_at = recipe.train.max_length or context
    if cut_at < longest:
        examples = {side: encoded(task, rows, tokenizer, cut_at) for side, rows in dataset.sides.items()}
    if cast(Objective, recipe.objective).companions:
        examples["train"] = Companioned(examples["train"], cut_at)
    problems += preflight.tokens(recipe, dataset, examples, tokenizer, context)
    _stop_at_errors(problems)
    feed = Feed(examples["train"], recipe.train, recipe.seed)
    source = cast(Source, recipe.source)
    recipe = with_rhythm(recipe, source.an_epoch(feed))
    total = source.total(feed)
    plan = _plan(recipe, base, examples, feed)
    return Prepared(recipe, base, dataset, tokenizer, examples, plan, total, tuple(choices), tuple(problems))


def _fitted(task: Task, given: Mapping[str, Part]) -> Task:
    every = reduce(Part.joined, given.values())
    usable = every.where(np.fromiter((task.problem_of(row) is None for row in every), np.bool_, len(every)))
    return task.fit(usable.settled()) if len(usable) else task


def padded_share(recipe: Recipe, feed: Feed, plan: Plan) -> float:
    """The share of what goes through the network in a run's first steps that is padding."""
    steps = islice(cast(Source, recipe.source).steps(feed, Cursor()), PADDED_STEPS)
    return padding((examples for examples, _ in steps), plan, recipe.train.accumulate)


def _plan(recipe: Recipe, base: Located, examples: Mapping[str, Sequence[Example]], feed: Feed) -> Plan:
    task, source, optimizer = cast(Task, recipe.task), cast(Source, recipe.source), recipe.optimizer
    seen = source.seen(examples["train"])
    known = sizes(seen)
    watched_R = sizes(examples["validation"]).length_R
    plain = Plan(
        head=task.head,
        device=cast(Engine, recipe.engine).place(),
        optimizer=optimizer.kind if optimizer else "",
        lengths=tuple(known.length_R.tolist()),
        repeated=_repeated(seen),
        supervised_share=int(known.supervised_R.sum()) / max(1, int(known.length_R.sum())),
        plain_head=not any(base.config.get(name) for name in SHAPED_HEADS),
        epochs=source.total(feed) / source.an_epoch(feed),
        live=bool(source.makes),
        rows=len(known.length_R) + len(watched_R),
        tokens=int(known.length_R.sum() + watched_R.sum()),
        states=recipe.accel.states,
        states_gb=recipe.accel.states_gb,
    )
    plan = decide(plain, recipe.accel, ROWS)
    return replace(plan, padding=padded_share(recipe, feed, plan))


def _repeated(examples: Sequence[Example]) -> float:
    """The share of tokens that prompts are, put before each of their answers, but for the first time."""
    parts = [example.part_P for example in examples if example.part_P is not None]
    whole = sum(sum(part_P) + part_P[0] * (len(part_P) - 2) for part_P in parts)
    return sum(part_P[0] * (len(part_P) - 2) for part_P in parts) / max(1, whole)


def _context(base: Located, adaptation: Adaptation, source: Source) -> int:
    """The tokens of a row that a base can look at.

    Raises:
        RecipeError: the adaptation, or the answers to a row, leave none of them to the rows.
    """
    whole, virtual = min(base.context or UNLIMITED, UNLIMITED), adaptation.places()
    if source.room:
        if whole - source.room < LEAST:
            key, most = "source.max_new_tokens", whole - LEAST
            raise RecipeError.of("answers-over-context", key=key, value=source.room, context=whole, most=most)
        return whole - source.room
    if whole - virtual < LEAST:
        key = "adaptation.tokens" if "tokens" in type(adaptation).model_fields else "adaptation.settings"
        raise RecipeError.of("tokens-over-context", key=key, value=virtual, context=whole, most=whole - LEAST)
    return whole - virtual


def _stop_at_errors(problems: list[Problem]) -> None:
    errors = [problem for problem in problems if problem.level is Level.ERROR]
    if errors:
        raise (DataError if errors[0].key is None else RecipeError)(errors)
