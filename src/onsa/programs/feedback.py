"""Feedback: two answers to a prompt are held beside each other, and a person or a judge says which is the better one.

What was said is kept as rows of the task ``preference``, a line each, in the run's folder ``feedback/``: one file of
people's verdicts, and one of each judge's. A prompt's two answers are a function of the run, the prompt and a seed, so
that people and judges see the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from onsa.data.compare import Messages
from onsa.data.read import read_file
from onsa.data.split import normal, unit
from onsa.data.table import Row
from onsa.models.sampling import Sampling
from onsa.programs.predict import as_rows, open_run
from onsa.programs.prepare import prepare
from onsa.serve.predictor import Predictor, load_run
from onsa.spec.errors import DataError, RecipeError, StoreError
from onsa.spec.recipe import Recipe
from onsa.spec.sections import Data
from onsa.store.atomic import explained
from onsa.store.run import Run
from onsa.tasks.base import Task, TokenTask

FOLDER, PEOPLE = "feedback", "people.jsonl"
DRAWS = 6  # answers that are drawn, so that two differ
Side = Literal["first", "second", "tie"]


@dataclass(frozen=True)
class Candidate:
    """A prompt, as messages and as text, and two answers that differ."""

    prompt: Messages
    text: str
    answers: tuple[str, str]

    @property
    def key(self) -> int:
        """What the prompt is known by."""
        return unit(normal(self.text))


@dataclass(frozen=True)
class Verdict:
    """Which of a prompt's answers is better, as a row that can be learnt from.

    by: who says so; ``notes`` are what a judge's verdict rests on.
    """

    prompt: Messages
    chosen: str
    rejected: str
    tie: bool
    by: str
    notes: dict[str, Any] | None = None

    def text(self, task: TokenTask) -> str:
        """The prompt as a task has it in words."""
        return task.inputs(Row(task.from_messages(self.prompt), "", 0))

    @staticmethod
    def of(candidate: Candidate, better: Side, by: str, notes: dict[str, Any] | None = None) -> Verdict:
        first, second = candidate.answers
        chosen, rejected = (second, first) if better == "second" else (first, second)
        return Verdict(candidate.prompt, chosen, rejected, better == "tie", by, notes)


@dataclass(frozen=True)
class Bench:
    """A run whose answers are ranked: how they are drawn, and the rows that are asked.

    temperature, top_p: how answers are drawn.
    """

    run: Run
    recipe: Recipe
    predictor: Predictor
    rows: Sequence[Row]
    seed: int = 7
    temperature: float = 1.0
    top_p: float = 0.95

    def candidates(self, told: Sequence[int] = ()) -> Iterator[Candidate]:
        """Two answers to each prompt but those told of; a prompt to which only one answer comes is left out."""
        task, known = cast(TokenTask, self.predictor.task), set(told)
        sampling = Sampling(self.predictor.max_new_tokens, self.temperature, self.top_p, self.predictor.prompter.stops)
        for row in self.rows:
            text = task.inputs(row)
            key = unit(normal(text))
            if key in known:
                continue
            known.add(key)
            seeds = np.random.SeedSequence([self.seed, key]).generate_state(DRAWS, np.uint64).tolist()
            (drawn,) = self.predictor.drawn([row], [seeds], sampling)
            answers = list(dict.fromkeys(answer for answer in drawn if answer))
            if len(answers) > 1:
                yield Candidate(task.prompt_messages(row), text, (answers[0], answers[1]))


def bench(ref: str | Run, source: Path | None = None, seed: int = 7, temperature: float = 1.0) -> Bench:
    """A run whose answers can be ranked: to the prompts of a file, or to those it was trained on, so that what is held
    out stays so.

    Raises:
        StoreError: no such run, no model in it, or one that gives no answers in words.
        RecipeError: its adaptation puts a soft prompt in front of every row.
        DataError: the file cannot be read, or lacks a column.
    """
    run, recipe = open_run(ref)
    task = cast(Task, recipe.task)
    if not task.talks:
        raise StoreError.of("run-not-chat", file=run.id, task=task.kind)
    if recipe.adaptation is not None and cast(Any, recipe.adaptation).places():
        raise RecipeError.of("feedback-soft-prompt", key="adaptation", adaptation=recipe.adaptation.kind)
    predictor = load_run(run.folder, recipe)
    if source is None:
        rows: Sequence[Row] = prepare(recipe).dataset.train
    else:
        rows = as_rows(read_file(source, Data(path=str(source))), recipe)
    return Bench(run, recipe, predictor, rows, seed, temperature)


def path_of(run: Run, by: str | None = None) -> Path:
    """The file of people's verdicts on a run's answers, or of a judge's."""
    return run.folder / FOLDER / (PEOPLE if by is None else f"judge-{by}.jsonl")


def verdicts(path: Path) -> list[Verdict]:
    """All verdicts of a file, in their order; none where there is no file.

    Raises:
        DataError: a line is not what this module wrote.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(Verdict(**json.loads(line)))
        except (ValueError, TypeError):
            raise DataError.of("feedback-broken", file=str(path), line=number) from None
    return found


def keep(path: Path, verdict: Verdict) -> None:
    """Add a verdict to a file."""
    line = json.dumps({name: value for name, value in asdict(verdict).items() if value is not None}, ensure_ascii=False)
    with explained(path.parent.parent, len(line)):
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def known(path: Path, task: TokenTask) -> list[int]:
    """The prompts that a file has verdicts on, by what they are known by."""
    return [unit(normal(one.text(task))) for one in verdicts(path)]


@dataclass(frozen=True)
class Agreement:
    """How far two say the same of the same answers.

    count: prompts on which both spoke and neither saw a tie; ``share`` of them on which they agree; ``kappa``: the same
    over chance (Cohen 1960), for the answers in the order of their letters; ``None`` where one of the two orders is all
    that either of them saw.
    """

    count: int
    share: float | None
    kappa: float | None


def agreement(one: Sequence[Verdict], other: Sequence[Verdict]) -> Agreement:
    """Hold verdicts against each other."""
    orders = {(_said(verdict), *sorted((verdict.chosen, verdict.rejected))): verdict for verdict in one}
    pairs = []
    for verdict in other:
        same = orders.get((_said(verdict), *sorted((verdict.chosen, verdict.rejected))))
        if same is not None and not same.tie and not verdict.tie:
            pairs.append((same.chosen < same.rejected, verdict.chosen < verdict.rejected))
    if not pairs:
        return Agreement(0, None, None)
    from sklearn.metrics import cohen_kappa_score

    mine, theirs = zip(*pairs, strict=True)
    kappa = float(cohen_kappa_score(mine, theirs)) if len({*mine, *theirs}) > 1 else None
    return Agreement(len(pairs), float(np.mean(np.equal(mine, theirs))), kappa)


def _said(verdict: Verdict) -> str:
    return json.dumps(verdict.prompt, sort_keys=True)
