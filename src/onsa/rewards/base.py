"""Reward: a number for an answer. Where a recipe names several, their weighted sum is the answer's reward."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from onsa.spec.component import Component

ANSWER = "{{ sample.output_text }}"


@dataclass(frozen=True)
class Sample:
    """An answer, with what it answers.

    prompt: the messages, and as one text.
    item: the row's values, by the names of their columns.
    tokens: of the answer; ``ended`` tells whether it came to an end, or was cut off.
    place: file and line of the row.
    """

    prompt: tuple[dict[str, Any], ...]
    text: str
    item: Mapping[str, Any]
    answer: str
    tokens: int
    ended: bool
    place: tuple[str, int] = ("", 0)


Grader = Callable[[Sequence[Sample]], Sequence[float]]  # a number for each of some answers


class Access(Protocol):
    """What a reward may ask for beside the answers: other models."""

    def scorer(self, run: str) -> Grader:
        """A reward model's scores.

        Raises:
            StoreError: there is no such run, or it is no reward model.
        """

    def judge(self, ref: str, rubric: str | None) -> Callable[[Sample, Sample], float]:
        """How likely the first of two answers to a prompt is the better one, by a run or an endpoint.

        Raises:
            StoreError: there is no such run, or it does not talk.
        """

    def speaker(self, ref: str, most: int) -> Callable[[list[dict[str, str]]], str]:
        """What a run that talks, or a model behind an API, answers to a conversation, in so many tokens at most.

        Raises:
            StoreError: there is no such run, or it does not talk.
        """


class Reward(Component):
    """The base of every reward.

    weight: of this reward in the sum.
    name: what its figures are called; its kind if not given.
    """

    weight: float = 1.0
    name: str | None = None

    @property
    def label(self) -> str:
        """What its figures are called."""
        return self.name or self.kind

    @abstractmethod
    def open(self, access: Access) -> Grader:
        """What grades, made ready once for a run.

        Raises:
            OnsaError: what it needs is not there.
        """


class OneByOne(Reward):
    """The base of rewards that look at one answer at a time."""

    def open(self, access: Access) -> Grader:
        return lambda samples: [self.score(sample) for sample in samples]

    @abstractmethod
    def score(self, sample: Sample) -> float:
        """The reward of one answer, without its weight."""


_JINJA = ImmutableSandboxedEnvironment()


def filled(template: str, sample: Sample) -> str:
    """A template with ``{{ item.column }}``, ``{{ sample.output_text }}`` and ``{{ sample.output_json.key }}`` filled.

    Raises:
        ValueError: it is no template, or asks for what cannot be read.
    """
    try:
        return _JINJA.from_string(template).render(item=dict(sample.item), sample=shown(sample))
    except TemplateError as error:
        raise ValueError(f"{template}: {error}") from error


def shown(sample: Sample) -> dict[str, Any]:
    """An answer as templates and functions see it: as text, and parsed where it is JSON."""
    try:
        parsed = json.loads(sample.answer)
    except ValueError:
        parsed = None
    return {"output_text": sample.answer, "output_json": parsed}
