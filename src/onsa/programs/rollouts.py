"""Rollouts: a session's policy at its desk, with everything that grades its answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from onsa.data.table import Row
from onsa.engine.desk import Answering, Graded
from onsa.engine.sessions.base import Session
from onsa.models.catalog import catalog
from onsa.models.sampling import Answer, Sampling
from onsa.objectives.base import Rewarded
from onsa.programs.endpoint import Endpoint
from onsa.programs.feedback import Candidate
from onsa.programs.judge import open_judge, open_scorer
from onsa.programs.predict import load, open_run
from onsa.programs.prepare import Prepared
from onsa.rewards.base import Grader, Reward, Sample
from onsa.serve.predictor import Predictor, load_run
from onsa.serve.prompter import said, stops
from onsa.serve.residents import base_recipe
from onsa.sources.base import Feed
from onsa.sources.rollouts import Rollouts
from onsa.spec.errors import OnsaError, Problem, StoreError, TrainingError
from onsa.tasks.base import Examiner, Floats, Task, TokenTask

SHOWN = 200  # characters of an answer in a message


class Runs:
    """Other models that a reward may ask for: finished runs; for words also bases, and models behind an API."""

    def scorer(self, run: str) -> Grader:
        judge = open_scorer(run)
        return lambda samples: judge.scores([(list(one.prompt), one.answer) for one in samples])

    def judge(self, ref: str, rubric: str | None) -> Callable[[Sample, Sample], float]:
        judge = open_judge(ref, rubric)

        def first(one: Sample, other: Sample) -> float:
            if one.answer == other.answer or not (one.answer and other.answer):
                return 0.5 + 0.5 * (bool(one.answer) - bool(other.answer))
            return judge.first(Candidate(list(one.prompt), one.text, (one.answer, other.answer)))[0]

        return first

    def speaker(self, ref: str, most: int) -> Callable[[list[dict[str, str]]], str]:
        endpoint = Endpoint.of(ref)
        if endpoint is not None:
            return lambda messages: endpoint.says(messages, most)
        if ref in catalog():
            return _brief(load_run(Path(), base_recipe(ref), tuned=False), most)
        run, recipe = open_run(ref)
        if not cast(Task, recipe.task).talks:
            raise StoreError.of("run-not-chat", file=run.id, task=cast(Task, recipe.task).kind)
        return _brief(load(run), most)


def _brief(predictor: Predictor, most: int) -> Callable[[list[dict[str, str]]], str]:
    """A model that says so many tokens at most."""
    return replace(predictor, max_new_tokens=min(most, predictor.max_length // 2)).chat


@dataclass(frozen=True)
class Graders:
    """All rewards of a recipe, made ready."""

    prepared: Prepared
    opened: tuple[tuple[Reward, Grader], ...]

    @staticmethod
    def of(prepared: Prepared) -> Graders:
        """
        Raises:
            OnsaError: what a reward needs is not there.
        """
        rewards = cast(tuple[Reward, ...], cast(Rollouts, prepared.source).reward)
        return Graders(prepared, tuple((reward, reward.open(Runs())) for reward in rewards))

    @property
    def names(self) -> tuple[str, ...]:
        """What an answer is graded with: the sum, each reward where there are several, and how long it is."""
        several = tuple(reward.label for reward, _ in self.opened) if len(self.opened) > 1 else ()
        return ("reward", "ended", "length", *several)

    def grade(self, rows: Sequence[Row], answers: Sequence[Sequence[Answer]]) -> list[dict[str, Floats]]:
        """What each row's answers are graded with.

        Raises:
            TrainingError: a reward failed, or gave what is no number; the message names the row and the answer.
        """
        samples = [self._sample(row, answer) for row, group in zip(rows, answers, strict=True) for answer in group]
        ends = np.cumsum([len(group) for group in answers])[:-1]
        sums, found = np.zeros(len(samples)), {}
        for reward, grader in self.opened:
            value_A = _graded(reward, grader, samples)
            sums += reward.weight * value_A
            found[reward.label] = value_A
        facts = {"ended": [each.ended for each in samples], "length": [each.tokens for each in samples]}
        found |= {"reward": sums, **{name: np.asarray(values, np.float64) for name, values in facts.items()}}
        parts = {name: np.split(found[name], ends) for name in self.names}
        return [{name: part[index] for name, part in parts.items()} for index in range(len(rows))]

    def _sample(self, row: Row, answer: Answer) -> Sample:
        task, tokenizer = cast(TokenTask, self.prepared.task), self.prepared.tokenizer
        return Sample(
            prompt=tuple(task.prompt_messages(row)),
            text=task.inputs(row),
            item=row.values,
            answer=said(tokenizer, answer.tokens),
            tokens=len(answer.tokens),
            ended=answer.ended,
            place=(row.file, row.line),
        )


def feed(prepared: Prepared, session: Session, graders: Graders | None) -> Feed:
    """What a run's source draws from; where it makes answers, with a desk at which the session's policy gives them."""
    if graders is None:
        return prepared.feed
    rows, objective = prepared.dataset.train, cast(Rewarded, prepared.recipe.objective)
    desk = Answering(
        session=session,
        objective=objective,
        plan=prepared.plan,
        sampling=_sampling(prepared, session.network()),
        grade=lambda numbers, answers: graders.grade([rows[number] for number in numbers], answers),
        beta=objective.beta,
    )
    return replace(prepared.feed, desk=desk)


def graders(prepared: Prepared) -> Graders | None:
    """What grades the answers of a run that makes some."""
    return Graders.of(prepared) if isinstance(prepared.source, Rollouts) else None


def examiner(prepared: Prepared, side: str, graders: Graders | None) -> Examiner:
    """Who says how good a network is at the rows of a side."""
    task, rows = prepared.task, prepared.dataset.sides[side]
    if graders is None:
        return task
    return Graded(
        sampling=lambda network: _sampling(prepared, network),
        grade=lambda numbers, answers: graders.grade([rows[number] for number in numbers], answers),
        names=graders.names,
        shown=lambda number, answer: (task.inputs(rows[number]), said(prepared.tokenizer, answer.tokens)),
    )


def _sampling(prepared: Prepared, network: Any) -> Sampling:
    source, task = cast(Rollouts, prepared.source), cast(TokenTask, prepared.task)
    ends = stops(network.generation_config, task, prepared.tokenizer)
    return Sampling(source.max_new_tokens, source.temperature, source.top_p, ends)


def _graded(reward: Reward, grader: Grader, samples: Sequence[Sample]) -> Floats:
    """A reward's number for each answer.

    Raises:
        TrainingError: it failed at one of them.
    """
    try:
        value_A = np.asarray(grader(samples), np.float64)
    except OnsaError:
        raise
    except Exception as error:  # what grades may be anyone's program
        raise _failed(reward, grader, samples, error) from error
    for sample, value in zip(samples, value_A, strict=True):
        if not math.isfinite(value):
            raise TrainingError(_fault(reward, sample, str(value)))
    return value_A


def _failed(reward: Reward, grader: Grader, samples: Sequence[Sample], error: Exception) -> TrainingError:
    """The first answer at which a reward fails, by asking for each alone."""
    for sample in samples:
        try:
            grader([sample])
        except Exception as fault:
            return TrainingError(_fault(reward, sample, f"{type(fault).__name__}: {fault}"))
    return TrainingError(_fault(reward, samples[0], f"{type(error).__name__}: {error}"))


def _fault(reward: Reward, sample: Sample, reason: str) -> Problem:
    answer = sample.answer if len(sample.answer) <= SHOWN else f"{sample.answer[:SHOWN]}…"
    values = {"reward": reward.label, "reason": reason, "answer": answer}
    file, line = sample.place
    return Problem("reward-fails", values, file, line, "source.reward")
