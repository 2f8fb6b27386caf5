"""Judge: a model in a person's place (RLAIF; Bai et al. 2022, Lee et al. 2023): which of two answers is the better one.

A reward model gives each answer a score. Any other chat model is shown a constitution, the prompt and both answers, and
asked for A or B, in both orders, whose probabilities are averaged: what it prefers by place alone cancels out, and is
told. Of a model behind an API there are no probabilities but what it says.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from onsa.data.compare import Comparison, Messages
from onsa.data.table import Row
from onsa.models.batch import Example, collate
from onsa.programs.endpoint import Endpoint
from onsa.programs.feedback import Agreement, Bench, Candidate, Verdict, agreement, keep, known, path_of, verdicts
from onsa.programs.predict import load, open_run
from onsa.programs.resolve import can_judge
from onsa.serve.predictor import Predictor
from onsa.spec.errors import RecipeError, StoreError
from onsa.spec.messages import say
from onsa.tasks.base import Task, TokenTask
from onsa.tasks.preference import Preference

LETTERS = ("A", "B")
MOST = 16  # tokens in which a model behind an API is to name one
SCORES = ("score",)  # what a reward model gives


class Judge(ABC):
    """The base of both."""

    name: str

    @abstractmethod
    def first(self, candidate: Candidate) -> tuple[float, dict[str, Any]]:
        """How likely the first answer is the better one, and what that rests on."""


@dataclass(frozen=True)
class ByScore(Judge):
    """A reward model."""

    name: str
    predictor: Predictor

    def scores(self, answered: Sequence[tuple[Messages, str]]) -> list[float]:
        """The score of each prompt's answer, which may say nothing at all."""
        task = cast(Preference, self.predictor.task)
        compared = [
            Comparison(prompt, ([{"role": "assistant", "content": answer}],), (0.0,)) for prompt, answer in answered
        ]
        tokenizer, longest = self.predictor.tokenizer, self.predictor.max_length
        found = self.predictor.described([task.encoded(each, tokenizer, longest) for each in compared])
        return [float(each["score"]) for each in found]

    def first(self, candidate: Candidate) -> tuple[float, dict[str, Any]]:
        scores = self.scores([(candidate.prompt, answer) for answer in candidate.answers])
        return float(1 / (1 + np.exp(scores[1] - scores[0]))), {"scores": scores}


class Asked(Judge):
    """The base of judges that are asked for a letter, in both orders."""

    constitution: str

    def first(self, candidate: Candidate) -> tuple[float, dict[str, Any]]:
        asked = [
            say("judge-asks", constitution=self.constitution, prompt=candidate.text, a=a, b=b)
            for a, b in (candidate.answers, candidate.answers[::-1])
        ]
        (there, one), (back, other) = map(self.letter, asked)
        said = {} if one is None else {"said": [one, other]}
        return (there + 1 - back) / 2, {"a_in_both_orders": [there, back], **said}

    @abstractmethod
    def letter(self, asked: str) -> tuple[float, str | None]:
        """How likely it says A and not B, and what it said where it was heard."""


@dataclass(frozen=True)
class ByWords(Asked):
    """A chat model, by the probabilities of the two letters."""

    name: str
    predictor: Predictor
    constitution: str

    @torch.inference_mode()
    def letter(self, asked: str) -> tuple[float, str | None]:
        task, tokenizer = cast(TokenTask, self.predictor.task), self.predictor.tokenizer
        values = task.from_messages([{"role": "user", "content": asked}])
        (prompt,) = self.predictor.prompter.prompts([Row(values, "", 0)])
        examples = []
        for letter in LETTERS:
            token = tokenizer(letter, add_special_tokens=False)["input_ids"][0]
            weight_T = np.zeros(len(prompt) + 1, np.float32)
            weight_T[-1] = 1
            examples.append(Example(np.asarray([*prompt, token], np.int32), weight_T))
        self.predictor.policy.network.eval()
        return float(self.predictor.policy.logprobs(collate(examples)).softmax(0)[0]), None


@dataclass(frozen=True)
class ByEndpoint(Asked):
    """A model behind an API, by its words: 1 where they name A, 0 where they name B, 1/2 where neither."""

    name: str
    endpoint: Endpoint
    constitution: str

    def letter(self, asked: str) -> tuple[float, str | None]:
        said = self.endpoint.says([{"role": "user", "content": asked}], MOST)
        found = re.search(rf"\b({'|'.join(LETTERS)})\b", said)
        return 0.5 if found is None else float(found[1] == LETTERS[0]), said


@dataclass
class Judged:
    """What a judge said: its verdicts, how it stands to people's, and how much it goes by place.

    bias: by how much the probability of the answer shown first lies over one half, on the mean over both orders; of a
        reward model, which sees one answer at a time, there is none.
    """

    path: Path
    verdicts: list[Verdict] = field(default_factory=list)
    agreement: Agreement | None = None
    bias: float | None = None

    def document(self) -> dict[str, Any]:
        told = self.agreement
        return {
            "file": str(self.path),
            "verdicts": len(self.verdicts),
            "ties": sum(verdict.tie for verdict in self.verdicts),
            "bias": self.bias,
            "people": None if told is None else {"count": told.count, "agree": told.share, "kappa": told.kappa},
        }


def open_judge(ref: str, constitution: str | None = None) -> Judge:
    """A finished run as a judge, or a model behind an API: ``MODEL@URL``.

    Args:
        constitution: the text that it judges by; a built-in one if not given.

    Raises:
        StoreError: there is no such run, or it neither scores answers nor talks.
        RecipeError: a reward model was given a constitution.
    """
    text = (constitution or say("constitution")).strip()
    endpoint = Endpoint.of(ref)
    if endpoint is not None:
        return ByEndpoint(endpoint.name, endpoint, text)
    run, recipe = open_run(ref)
    task = cast(Task, recipe.task)
    if task.outputs == SCORES:
        if constitution is not None:
            raise RecipeError.of("constitution-unread", file=run.id)
        return ByScore(run.id, load(run))
    if not can_judge(task):
        raise StoreError.of("run-no-judge", file=run.id, task=task.kind)
    return ByWords(run.id, load(run), text)


def open_scorer(ref: str) -> ByScore:
    """A finished run as a reward model.

    Raises:
        StoreError: there is no such run, or it does not score answers.
    """
    run, recipe = open_run(ref)
    task = cast(Task, recipe.task)
    if task.outputs != SCORES:
        raise StoreError.of("run-no-scorer", file=run.id, task=task.kind)
    return ByScore(run.id, load(run))


def read_constitution(path: Path) -> str:
    """
    Raises:
        RecipeError: the file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError.of("constitution-unreadable", file=str(path), reason=error.strerror) from None


def judge(bench: Bench, by: Judge, most: int) -> Iterator[Verdict]:
    """Have up to ``most`` prompts judged that were not yet; people's come first, so that the two can be held together.
    Each verdict is kept before it is told."""
    path, task = path_of(bench.run, by.name), cast(TokenTask, bench.predictor.task)
    done, people = known(path, task), [_again(verdict, task) for verdict in verdicts(path_of(bench.run))]
    waiting = [candidate for candidate in people if candidate.key not in done]
    spoken = [*done, *(candidate.key for candidate in people)]
    drawn = bench.candidates(spoken)
    for place in range(most):
        candidate = waiting[place] if place < len(waiting) else next(drawn, None)
        if candidate is None:
            return
        likely, notes = by.first(candidate)
        better = cast(Any, "tie" if likely == 0.5 else "first" if likely > 0.5 else "second")
        verdict = Verdict.of(candidate, better, f"judge {by.name}", {"first": likely, **notes})
        keep(path, verdict)
        yield verdict


def told(bench: Bench, by: Judge) -> Judged:
    """All that a judge has said of a run's answers."""
    path = path_of(bench.run, by.name)
    found = verdicts(path)
    orders = [np.mean(one.notes["a_in_both_orders"]) - 0.5 for one in found if one.notes and "scores" not in one.notes]
    people = verdicts(path_of(bench.run))
    bias = float(np.mean(orders)) if orders else None
    return Judged(path, found, agreement(people, found) if people else None, bias)


def _again(verdict: Verdict, task: TokenTask) -> Candidate:
    """What a person has seen, whichever of the answers it was that came first."""
    answers = sorted((verdict.chosen, verdict.rejected))
    return Candidate(verdict.prompt, verdict.text(task), (answers[0], answers[1]))
