"""Predictor: a tuned model (or its base) answering rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch

from onsa.adaptations.base import Adaptation
from onsa.data.table import Row
from onsa.engine.sessions.base import Engine
from onsa.models.batch import Example, collate
from onsa.models.fetch import locate
from onsa.models.heads import Head
from onsa.models.load import hold_in, load
from onsa.models.policy import Policy
from onsa.models.sampling import Sampling, sample
from onsa.serve.prompter import Given, Prompter, as_row, checked, stops
from onsa.spec.errors import StoreError
from onsa.spec.recipe import Recipe
from onsa.tasks.base import Task, TokenTask

BATCH_ROWS = 32
MODEL = "model"


@dataclass(frozen=True)
class Predictor:
    """A model with the task it answers for.

    max_length: tokens that the model can look at, less those of an answer that it generates; longer rows are cut.
    normalise: how the texts that it learnt from were normalised.
    """

    task: Task
    policy: Policy
    tokenizer: Any
    max_length: int
    max_new_tokens: int
    normalise: Literal["none", "nfkc"] = "none"

    def predict(self, rows: Iterable[Given]) -> list[dict[str, Any]]:
        """An answer for each row: a text, or a mapping of the task's roles to values.

        Classification gives ``label`` and ``scores`` (``labels``, or ``value``), a reward model ``score`` (of several
        answers ``scores``), and language tasks give ``text``.

        Raises:
            DataError: a row that cannot be answered, by its number counted from 1.
        """
        return list(self.stream(rows))

    def stream(self, rows: Iterable[Given]) -> Iterator[dict[str, Any]]:
        """As :meth:`predict`, each answer when it is there; all rows are checked before the first."""
        given = [checked(self.task, self.normalise, row, number) for number, row in enumerate(rows, 1)]
        for start in range(0, len(given), BATCH_ROWS):
            part = given[start : start + BATCH_ROWS]
            if self.task.head is Head.TOKENS:
                yield from ({"text": text} for text in self.answers(part))
            else:
                yield from self.described([self.asked(row) for row in part])

    def answers(self, rows: Sequence[Row]) -> list[str]:
        """Greedy answers of a language task to some rows."""
        asked = self.prompter
        return [asked.said(one) for one in self.policy.generate(asked.prompts(rows), self.max_new_tokens, asked.stops)]

    def drawn(self, rows: Sequence[Row], seeds: Sequence[Sequence[int]], sampling: Sampling) -> list[list[str]]:
        """Answers that are drawn: to each row as many as it has seeds."""
        found = sample(self.policy, self.prompter.prompts(rows), seeds, sampling)
        return [[self.prompter.said(answer.tokens) for answer in answers] for answers in found]

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """The assistant's next turn in a conversation."""
        values = cast(TokenTask, self.task).from_messages(messages)
        return self.answers([as_row(self.task, self.normalise, values)])[0]

    @cached_property
    def prompter(self) -> Prompter:
        """How a language task is asked."""
        task = cast(TokenTask, self.task)
        ends = stops(self.policy.network.generation_config, task, self.tokenizer)
        return Prompter(task, self.tokenizer, self.max_length, ends, self.normalise)

    def asked(self, row: Row) -> Example:
        """A row as it is put to a row head."""
        return self.task.asked(row, self.tokenizer, self.max_length)

    @torch.inference_mode()
    def described(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """What a row head says to some examples, in words and numbers."""
        self.policy.network.eval()
        parts = [examples[start : start + BATCH_ROWS] for start in range(0, len(examples), BATCH_ROWS)]
        return [one for part in parts for one in self.task.described(self.policy.classes(collate(part)), part)]


def load_run(folder: Path, recipe: Recipe, tuned: bool = True) -> Predictor:
    """The tuned model of a run's folder, or its base.

    Raises:
        StoreError: the run has no model yet.
    """
    task, adaptation = cast(Task, recipe.task), cast(Adaptation, recipe.adaptation)
    saved = folder / MODEL
    if tuned and not saved.is_dir():
        raise StoreError.of("run-without-model", file=str(folder))
    whole = tuned and not adaptation.adapter
    start = locate(recipe.model.model_copy(update={"name": str(saved)}) if whole else recipe.model)
    loaded = load(start.folder, recipe.model, task.head, task.outputs, task.hf_problem, recipe.seed)
    network = adaptation.reload(loaded.network, saved) if tuned else loaded.network.requires_grad_(False)
    policy = deployed(network, loaded.tokenizer, recipe)
    return predictor(policy, loaded.tokenizer, start.context, recipe, adaptation.places() if tuned else 0)


def deployed(network: Any, tokenizer: Any, recipe: Recipe) -> Policy:
    """A network as it answers: what was tuned, and is marked, stays in fp32; the rest takes the run's precision."""
    device, precision = torch.device(cast(Engine, recipe.engine).place()), recipe.train.precision or "fp32"
    hold_in(network, precision, device)
    network.requires_grad_(False).eval()
    return Policy(network, tokenizer.pad_token_id, device, precision)


def predictor(policy: Policy, tokenizer: Any, context: int | None, recipe: Recipe, virtual: int = 0) -> Predictor:
    """A policy that answers for the task of a recipe, over a base that can look at ``context`` tokens.

    Args:
        virtual: tokens of these that the adaptation takes for itself.
    """
    task = cast(Task, recipe.task)
    context = (context or tokenizer.model_max_length) - virtual
    # Answers take their part of what the base can look at, but never more than half of it.
    generated = min(recipe.evaluate.max_new_tokens, context // 2) if task.head is Head.TOKENS else 0
    return Predictor(task, policy, tokenizer, context - generated, generated, recipe.data.normalise)
