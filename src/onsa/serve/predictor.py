"""Predictor: a tuned model (or its base) answering rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from onsa.adaptations.base import Adaptation
from onsa.data.table import Row
from onsa.engine.sessions.base import Engine
from onsa.models.batch import collate
from onsa.models.fetch import locate
from onsa.models.load import hold_in, load
from onsa.models.policy import Policy
from onsa.spec.errors import StoreError
from onsa.spec.recipe import Recipe
from onsa.tasks.base import Task, TokenTask
from onsa.tasks.text_classification import TextClassification

BATCH_ROWS = 32
MODEL = "model"


@dataclass(frozen=True)
class Predictor:
    """A model with the task it answers for."""

    task: Task
    policy: Policy
    tokenizer: Any
    max_length: int
    max_new_tokens: int

    def predict(self, rows: Iterable[str | dict[str, Any]]) -> list[dict[str, Any]]:
        """An answer for each row: a text, or a mapping of the task's roles to values.

        Classification gives ``label`` and ``scores`` (``labels``, or ``value``); language tasks give ``text``.
        """
        given = [self._row(row, line) for line, row in enumerate(rows, 1)]
        answers: list[dict[str, Any]] = []
        for start in range(0, len(given), BATCH_ROWS):
            part = given[start : start + BATCH_ROWS]
            if isinstance(self.task, TokenTask):
                answers += [{"text": text} for text in self.answers(part)]
            else:
                answers += self._classified(part)
        return answers

    def answers(self, rows: Sequence[Row]) -> list[str]:
        """Greedy answers of a language task to some rows."""
        task = cast(TokenTask, self.task)
        prompts = [task.prompt(row, self.tokenizer)[-self.max_length :] for row in rows]
        stops = {self.tokenizer.eos_token_id, self.policy.network.generation_config.eos_token_id}
        found = self.policy.generate(prompts, self.max_new_tokens, [s for s in stops if isinstance(s, int)])
        return [self.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in found]

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """The assistant's next turn in a conversation."""
        return self.answers([Row({"messages": list(messages)}, "", 0)])[0]

    @torch.inference_mode()
    def _classified(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        task = cast(TextClassification, self.task)
        unlabelled = [Row({k: v for k, v in row.values.items() if k != "label"}, row.file, row.line) for row in rows]
        examples = [
            replace(task.encode(row, self.tokenizer, self.max_length), row=index, target=0)
            for index, row in enumerate(unlabelled)
        ]
        self.policy.network.eval()
        return [task.describe(output_C) for output_C in task.link(self.policy.classes(collate(examples))).tolist()]

    def _row(self, row: str | dict[str, Any], line: int) -> Row:
        if isinstance(row, str):
            row = self.task.from_text(row)
        return Row(row, "", line)


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
    start = saved if whole else locate(recipe.model).folder
    loaded = load(start, recipe.model, task.head, task.outputs, task.hf_problem, recipe.seed)
    network = adaptation.reload(loaded.network, saved) if tuned else loaded.network.requires_grad_(False)
    engine, train = cast(Engine, recipe.engine), recipe.train
    device = torch.device(engine.place())
    precision = train.precision or "fp32"
    # As in training: what was tuned stays in fp32, what was frozen takes the run's precision.
    hold_in(network, precision, device)
    network.requires_grad_(False).eval()
    policy = Policy(network, loaded.tokenizer.pad_token_id, device, precision)
    return Predictor(task, policy, loaded.tokenizer, train.max_length or 512, recipe.evaluate.max_new_tokens)
