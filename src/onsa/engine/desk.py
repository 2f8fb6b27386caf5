"""Desk: the policy that is being trained answers prompts, and its answers are graded.

Shape legend: A answers, T tokens of a row, M predictions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from onsa.accel.plan import Plan
from onsa.engine.batches import evaluation_batches
from onsa.engine.sessions.base import Session
from onsa.models.batch import Batch, Example
from onsa.models.policy import Policy
from onsa.models.sampling import Answer, Sampling, sample
from onsa.objectives.base import Rewarded, Role
from onsa.sources.base import Desk
from onsa.tasks.base import Floats, Outcome

ANSWERS, FACTS = "answers.safetensors", "answers.json"
TOKENS, WEIGHTS, TOLD, GRADED = "token", "weight", "told.", "graded."
SHOWN = 3  # prompts of an evaluation whose answers are told
# What answers to a row of some number are graded with, by name, an entry each; ``reward`` is the sum.
Grade = Callable[[Sequence[int], Sequence[Sequence[Answer]]], list[dict[str, Floats]]]


@dataclass
class Answering(Desk):
    """A session's policy, as it is when it is asked.

    grade: of training rows, by their numbers.
    beta: the weight of the divergence from the reference, as it is now.
    rows: what was answered last.
    """

    session: Session
    objective: Rewarded
    plan: Plan
    sampling: Sampling
    grade: Grade
    beta: float
    rows: list[Example] = field(default_factory=list)

    def answer(self, prompts: Sequence[Example], seeds: Sequence[Sequence[int]], often: bool) -> list[Example]:
        self.session.begin()
        policy = self.session.models.policy
        answers = sample(policy, [prompt.token_T.tolist() for prompt in prompts], seeds, self.sampling)
        graded = self.grade([prompt.row for prompt in prompts], answers)
        rows = [_row(*each) for each in zip(prompts, answers, graded, strict=True)]
        rows = self._told(rows, often or self.objective.remembers)
        self.beta = self.objective.steered(rows, self.beta)
        self.rows = self.objective.credit(rows, self.beta)
        return self.rows

    def again(self) -> list[Example]:
        return self.rows

    @torch.no_grad()
    def _told(self, rows: list[Example], remembers: bool) -> list[Example]:
        """Rows with what the policy, its critic and the reference say to their tokens now."""
        models, asks = self.session.models, self.objective.asks
        found: dict[str, Callable[[Batch], dict[str, Tensor]]] = {}
        if Role.CRITIC in asks:
            found["policy"] = lambda batch: dict(zip(("old", "value"), models.policy.valued(batch), strict=True))
        elif remembers:
            found["policy"] = lambda batch: {"old": models.policy.logprobs(batch)}
        if Role.REFERENCE in asks:
            assert models.reference is not None, "what an objective asks is there"
            reference = models.reference
            found["reference"] = lambda batch: {"reference": reference.logprobs(batch)}
        models.policy.network.eval()
        numbered = [replace(row, row=index) for index, row in enumerate(rows)]
        for ask in found.values():
            for batch in evaluation_batches(numbered, self.plan):
                for name, value_M in ask(batch).items():
                    for index, value_L in _by_row(batch, value_M):
                        rows[index] = rows[index].telling(**{name: _placed(rows[index], value_L)})
        return rows

    def save(self, to: Path) -> None:
        """All that is kept; of each row its parts stand in ``answers.json``."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        facts = []
        for index, row in enumerate(self.rows):
            assert row.part_P is not None and row.weight_T is not None
            arrays |= {f"{index}.{TOKENS}": row.token_T, f"{index}.{WEIGHTS}": row.weight_T}
            arrays |= {f"{index}.{TOLD}{name}": value_T for name, value_T in row.told.items()}
            arrays |= {f"{index}.{GRADED}{name}": value_A for name, value_A in row.graded.items()}
            facts.append({"row": row.row, "cut": row.cut, "part_P": row.part_P})
        save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, to / ANSWERS)
        (to / FACTS).write_text(json.dumps({"beta": self.beta, "rows": facts}))

    def restore(self, at: Path) -> None:
        arrays, told = load_file(at / ANSWERS), json.loads((at / FACTS).read_text())
        self.beta, self.rows = told["beta"], []
        for index, facts in enumerate(told["rows"]):
            own = {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(f"{index}.")}
            graded = _under(own, GRADED)
            self.rows.append(
                Example(
                    token_T=own[TOKENS],
                    weight_T=own[WEIGHTS],
                    target=graded["reward"].astype(np.float32),
                    row=facts["row"],
                    cut=facts["cut"],
                    part_P=tuple(facts["part_P"]),
                    told=_under(own, TOLD),
                    graded=graded,
                )
            )


@dataclass
class Graded:
    """An examiner of answers: the likeliest ones, graded.

    sampling: how a network answers.
    grade: of the rows that are examined, by their numbers.
    shown: a row's prompt and an answer to it, as texts.
    told: takes up what the first few rows were answered.
    """

    sampling: Callable[[object], Sampling]
    grade: Grade
    names: tuple[str, ...]
    shown: Callable[[int, Answer], tuple[str, str]]
    told: dict[str, str] = field(default_factory=dict)

    def outcome(self, policy: Policy, batch: Batch) -> Outcome:
        prompts = [token_T.tolist() for token_T, _ in batch.rows()]
        greedy = replace(self.sampling(policy.network), temperature=0.0, top_p=1.0)
        answers = sample(policy, prompts, [[0]] * len(prompts), greedy)
        graded = self.grade(batch.row_R, answers)
        for row, (answer,) in zip(batch.row_R, answers, strict=True):
            if row < SHOWN:
                self.told |= [self.shown(row, answer)]
        output_RC = np.asarray([[one[name][0] for name in self.names] for one in graded], np.float64)
        none_R = np.zeros(len(prompts))
        return Outcome(np.asarray(batch.row_R), none_R, none_R, output_RC)

    def metrics(self, outcome: Outcome) -> dict[str, float]:
        assert outcome.output_RC is not None
        return dict(zip(self.names, map(float, outcome.output_RC.mean(0)), strict=True))

    def said(self) -> dict[str, str]:
        return dict(self.told)


def _row(prompt: Example, answers: Sequence[Answer], graded: dict[str, Floats]) -> Example:
    """A prompt with its answers, and what their tokens were drawn with."""
    parts = (len(prompt.token_T), *(len(answer.tokens) for answer in answers))
    token_T = np.concatenate([prompt.token_T, *(np.asarray(answer.tokens, np.int32) for answer in answers)])
    drawn_T = np.concatenate([np.zeros(parts[0]), *(np.asarray(answer.logprobs) for answer in answers)])
    row = replace(
        prompt,
        token_T=token_T,
        weight_T=(np.arange(len(token_T)) >= parts[0]).astype(np.float32),
        target=graded["reward"].astype(np.float32),
        part_P=parts,
        graded=graded,
    )
    return row.telling(drawn=drawn_T)


def _by_row(batch: Batch, value_M: Tensor) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """A figure of each prediction, row by row."""
    value_M, segment_M = value_M.float().cpu(), batch.segment_M.cpu()
    for place, row in enumerate(batch.row_R):
        yield row, value_M[segment_M == place].numpy()


def _placed(row: Example, value_L: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A figure of a row's predictions on the tokens that are predicted, ``value_T``."""
    assert row.weight_T is not None
    value_T = np.zeros(len(row.token_T), np.float32)
    value_T[row.weight_T > 0] = value_L
    return value_T


def _under(arrays: dict[str, npt.NDArray[Any]], prefix: str) -> dict[str, Any]:
    return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}
