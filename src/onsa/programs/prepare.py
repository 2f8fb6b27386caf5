"""Prepare: from a recipe as it was written to everything a run needs: the resolved recipe, rows, tokens and a plan.

``onsa check``, ``plan`` and ``train`` all begin here, so what the preflight says is what training does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, cast

from onsa.accel.passes import ROWS, check_names
from onsa.accel.plan import Plan, decide
from onsa.adaptations.base import Adaptation
from onsa.data.dataset import load_dataset, load_rows, read_tables
from onsa.data.profiling import profile
from onsa.data.quality import balance, examine
from onsa.data.table import Dataset, Row
from onsa.engine.batches import encode, padding
from onsa.engine.sessions.base import Engine
from onsa.engine.tokenised import tokenised
from onsa.models.batch import Example
from onsa.models.fetch import Located, locate
from onsa.models.load import load_tokenizer, tokenizer_hash
from onsa.programs import preflight
from onsa.programs.resolve import (
    Choice,
    conflicts,
    misfits,
    steps_an_epoch,
    unwatched,
    with_axes,
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
    recipe, choices = with_task(recipe, profile(tables["train"]))
    given = load_rows(recipe.data, cast(Task, recipe.task), tables)
    task = _fitted(cast(Task, recipe.task), given)
    recipe = recipe.model_copy(update={"task": task})
    problems = [*conflicts(recipe), *examine(given, task)]
    _stop_at_errors(problems)
    dataset = load_dataset(recipe.data, task, tables)
    _stop_at_errors(unwatched(recipe, dataset))
    if task.provides is Form.LABELLED:  # the split may have left one class alone
        _stop_at_errors(balance(dataset.train, task.answer))
    base = locate(recipe.model, progress=progress)
    recipe, more = with_axes(recipe, base, task.head)
    choices += more
    _stop_at_errors(misfits(recipe))
    cast(Engine, recipe.engine).place()
    tokenizer = load_tokenizer(base.folder, recipe.model)
    problems += preflight.template(task, dataset, tokenizer, recipe.model.name)
    _stop_at_errors(problems)
    context = _context(base, cast(Adaptation, recipe.adaptation))
    longest = recipe.train.max_length or context
    encoded = encode if recipe.accel.mode == "off" else tokenised
    examples = {side: encoded(task, rows, tokenizer, longest) for side, rows in dataset.sides.items()}
    lengths = {side: [len(example.token_T) for example in found] for side, found in examples.items()}
    recipe, more = with_training(recipe, lengths["train"], max([1, *chain(*lengths.values())]), context)
    choices += more
    cut_at = recipe.train.max_length or context
    if cut_at < longest:
        examples = {side: encoded(task, rows, tokenizer, cut_at) for side, rows in dataset.sides.items()}
    problems += preflight.tokens(recipe, dataset, examples, tokenizer, context)
    _stop_at_errors(problems)
    recipe = with_rhythm(recipe, steps_an_epoch(recipe.train, [len(e.token_T) for e in examples["train"]]))
    feed = Feed(examples["train"], recipe.train, recipe.seed)
    total = cast(Source, recipe.source).total(feed)
    plan = _plan(recipe, base, examples, feed)
    return Prepared(recipe, base, dataset, tokenizer, examples, plan, total, tuple(choices), tuple(problems))


def _fitted(task: Task, given: dict[str, list[Row]]) -> Task:
    usable = [row for rows in given.values() for row in rows if task.problem_of(row) is None]
    return task.fit(usable) if usable else task


def padded_share(recipe: Recipe, feed: Feed, plan: Plan) -> float:
    """The share of what goes through the network in a run's first steps that is padding."""
    steps = islice(cast(Source, recipe.source).steps(feed, Cursor()), PADDED_STEPS)
    return padding((examples for examples, _ in steps), plan, recipe.train.accumulate)


def _plan(recipe: Recipe, base: Located, examples: Mapping[str, Sequence[Example]], feed: Feed) -> Plan:
    task, optimizer, train = cast(Task, recipe.task), recipe.optimizer, examples["train"]
    lengths = tuple(len(example.token_T) for example in train)
    seen = [*lengths, *(len(example.token_T) for example in examples["validation"])]
    plain = Plan(
        head=task.head,
        device=cast(Engine, recipe.engine).place(),
        optimizer=optimizer.kind if optimizer else "",
        lengths=lengths,
        supervised_share=sum(example.supervised for example in train) / max(1, sum(lengths)),
        plain_head=not any(base.config.get(name) for name in SHAPED_HEADS),
        epochs=cast(Source, recipe.source).total(feed) / steps_an_epoch(recipe.train, lengths),
        rows=len(seen),
        tokens=sum(seen),
        states=recipe.accel.states,
        states_gb=recipe.accel.states_gb,
    )
    plan = decide(plain, recipe.accel, ROWS)
    return replace(plan, padding=padded_share(recipe, feed, plan))


def _context(base: Located, adaptation: Adaptation) -> int:
    """The tokens of a row that a base can look at.

    Raises:
        RecipeError: the adaptation leaves none of them to the rows.
    """
    whole, virtual = min(base.context or UNLIMITED, UNLIMITED), adaptation.places()
    if whole - virtual < LEAST:
        key = "adaptation.tokens" if "tokens" in type(adaptation).model_fields else "adaptation.settings"
        raise RecipeError.of("tokens-over-context", key=key, value=virtual, context=whole, most=whole - LEAST)
    return whole - virtual


def _stop_at_errors(problems: list[Problem]) -> None:
    errors = [problem for problem in problems if problem.level is Level.ERROR]
    if errors:
        raise (DataError if errors[0].key is None else RecipeError)(errors)
