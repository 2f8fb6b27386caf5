"""What every objective keeps: a sum and its weight, a finite gradient, and the value of its formula."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from onsa.models.batch import Batch, Example, collate
from onsa.objectives.base import Loss, Objective
from onsa.spec import registry
from onsa.spec.component import Form

VOCABULARY, CLASSES = 50, 3
every_kind = pytest.mark.parametrize("kind", list(registry.kinds("objective")))


class Table:
    """A policy that is one table: its rows are the logits of the next token, their mean those of a text."""

    def __init__(self, seed: int = 3) -> None:
        noise = torch.Generator().manual_seed(seed)
        self.weight_VV = torch.randn(VOCABULARY, VOCABULARY, generator=noise, dtype=torch.float64, requires_grad=True)

    def logprobs(self, batch: Batch, smoothing: float = 0.0) -> Tensor:
        assert batch.predict_M is not None
        rows = self.weight_VV[batch.token_N[batch.predict_M]].log_softmax(1)
        return rows.gather(1, batch.target_M[:, None])[:, 0] * (1 - smoothing) + rows.mean(1) * smoothing

    def told(self, batch: Batch, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        logprob_M = self.logprobs(batch, smoothing)
        return logprob_M, torch.ones_like(logprob_M)

    def valued(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.predict_M is not None
        return self.logprobs(batch), self.weight_VV[batch.token_N[batch.predict_M]].mean(1)

    def classes(self, batch: Batch) -> Tensor:
        batch = batch.unfolded()
        parts = self.weight_VV[batch.token_N, :CLASSES].split(list(batch.length_R))
        return torch.stack([part.mean(0) for part in parts])


def examples(form: Form) -> list[Example]:
    """Eight rows of a form, of all lengths from 3 to 10 tokens; or of answers, two (one of them a tie) or three."""
    dice = np.random.default_rng(5)
    targets: dict[Form, Callable[[], Any]] = {
        Form.LABELLED: lambda: int(dice.integers(CLASSES)),
        Form.MULTILABELLED: lambda: dice.integers(2, size=CLASSES).astype(np.float32),
        Form.SCORED: lambda: np.float32(dice.normal()),
    }
    found = []
    for row in range(8):
        if form in (Form.RANKED, Form.PREFERRED, Form.JUDGED):
            count = 1 if form is Form.JUDGED else 3 if row == 7 else 2
            part_P = (1 + row, *dice.integers(1, 5, size=count).tolist())
            ranks = {1: [row % 2], 2: [0, int(row != 4)], 3: [2, 0, 1]}
            rank_A = np.asarray(ranks[count], np.float32)
            token_T = dice.integers(VOCABULARY, size=sum(part_P)).astype(np.int32)
            weight_T = (np.arange(len(token_T)) >= part_P[0]).astype(np.float32)
            scored = form is Form.RANKED
            found.append(Example(token_T, None if scored else weight_T, rank_A, row=row, part_P=part_P))
            continue
        if form is Form.PROMPTED:
            found.append(answered(dice, row))
            continue
        token_T = dice.integers(VOCABULARY, size=3 + row).astype(np.int32)
        if form is Form.TOKENS:
            weight_T = dice.integers(2, size=3 + row).astype(np.float32)
            weight_T[1] = 1
            found.append(Example(token_T, weight_T, row=row))
        else:
            found.append(Example(token_T, target=targets[form](), row=row))
    return found


def answered(dice: np.random.Generator, row: int) -> Example:
    """A prompt with three answers, and what is told of their tokens."""
    part_P = (1 + row, *dice.integers(1, 5, size=3).tolist())
    token_T = dice.integers(VOCABULARY, size=sum(part_P)).astype(np.int32)
    answers_T = np.arange(len(token_T)) >= part_P[0]
    reward_A = dice.normal(size=3)
    found = Example(
        token_T, answers_T.astype(np.float32), reward_A, row=row, part_P=part_P, graded={"reward": reward_A}
    )
    levels = {"drawn": -4.0, "old": -4.0, "reference": -4.0, "value": 0.0, "return": 0.5}
    told = {name: (level + 0.3 * dice.normal(size=len(token_T))) * answers_T for name, level in levels.items()}
    return found.telling(advantage=found.spread(dice.normal(size=3)), **told)


def of_texts(of: Callable[[Any, Any], float]) -> Callable[[Any, list[Example]], tuple[float, float]]:
    """A formula over a text's logits and target, summed over texts."""

    def total(table_VV: Any, rows: list[Example]) -> tuple[float, float]:
        return sum(of(table_VV[row.token_T, :CLASSES].mean(0), row.target) for row in rows), len(rows)

    return total


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def label_likelihood(logit_C: Any, target_C: Any) -> float:
    return float(
        np.mean([-np.log(sigmoid(x) if y else 1 - sigmoid(x)) for x, y in zip(logit_C, target_C, strict=True)])
    )


def next_tokens(table_VV: Any, rows: list[Example]) -> tuple[float, float]:
    total = weight = 0.0
    for row in rows:
        assert row.weight_T is not None
        for before, token, counts in zip(row.token_T, row.token_T[1:], row.weight_T[1:], strict=False):
            total -= counts * np.log(np.exp(table_VV[before, token]) / np.exp(table_VV[before]).sum())
            weight += counts
    return total, weight


def of_pairs(of: Callable[[float, float], float], value: str) -> Callable[[Any, list[Example]], tuple[float, float]]:
    """A formula over the values of a better and a worse answer: of a tie both ways, of three answers all pairs.

    value: of an answer: its ``score``, the ``sum`` or the ``mean`` of its tokens' log-probabilities, or of their
        ``gain`` over the reference (``mean-gain``).
    """
    other_VV = Table(4).weight_VV.detach().numpy()

    def total(table_VV: Any, rows: list[Example]) -> tuple[float, float]:
        sums = 0.0
        for row in rows:
            values = [worth(table_VV, other_VV, *text, value) for text in texts(row)]
            losses = []
            for one, other in combinations(range(len(values)), 2):
                if row.target[one] > row.target[other]:
                    one, other = other, one
                ways = [of(values[one], values[other])]
                if row.target[one] == row.target[other]:
                    ways.append(of(values[other], values[one]))
                losses.append(np.mean(ways))
            sums += float(np.mean(losses))
        return sums, len(rows)

    return total


def texts(row: Example) -> list[tuple[Any, Any]]:
    """The prompt's tokens with those of each answer."""
    assert row.part_P is not None
    prompt, *answers = np.split(row.token_T, np.cumsum(row.part_P)[:-1])
    return [(prompt, answer) for answer in answers]


def worth(table_VV: Any, other_VV: Any, prompt: Any, answer: Any, value: str) -> float:
    if value == "score":
        return float(table_VV[np.concatenate([prompt, answer]), 0].mean())
    before = np.concatenate([prompt[-1:], answer[:-1]])

    def said(weight_VV: Any) -> Any:
        return weight_VV[before, answer] - np.log(np.exp(weight_VV[before]).sum(1))

    told = said(table_VV) - said(other_VV) if "gain" in value else said(table_VV)
    return float(told.mean() if "mean" in value else told.sum())


def weighed(table_VV: Any, rows: list[Example]) -> tuple[float, float]:
    """KTO's formula, of a policy that has not moved."""
    other_VV = Table(4).weight_VV.detach().numpy()
    total, count = 0.0, 0
    for row in rows:
        for rank, text in zip(row.target, texts(row), strict=True):
            gain = worth(table_VV, other_VV, *text, "gain")
            total += 1 - sigmoid(0.1 * gain if rank == 0 else -0.1 * gain)
            count += 1
    return total, count


def contrastive(table_VV: Any, rows: list[Example]) -> tuple[float, float]:
    """CPO's formula, of sums and of means."""
    preferred = of_pairs(lambda better, worse: -np.log(sigmoid(0.1 * (better - worse))), "sum")(table_VV, rows)
    learnt = of_pairs(lambda better, worse: -better, "mean")(table_VV, rows)
    return preferred[0] + learnt[0], len(rows)


def of_answers(of: Callable[[Any, Any, Any], float]) -> Callable[[Any, list[Example]], tuple[float, float]]:
    """A formula of one answer: of its tokens' log-probabilities now, what is told of them, and the logits before."""

    def total(table_VV: Any, rows: list[Example]) -> tuple[float, float]:
        sums, count = 0.0, 0
        for row in rows:
            for answer, tokens, before in spans(row):
                logit_LV = table_VV[before]
                now_L = logit_LV[np.arange(len(tokens)), tokens] - np.log(np.exp(logit_LV).sum(1))
                told = {name: value_T[answer].astype(np.float64) for name, value_T in row.told.items()}
                sums += of(now_L, told, logit_LV)
                count += 1
        return sums, count

    return total


def spans(row: Example) -> list[tuple[slice, Any, Any]]:
    """Each answer's place, its tokens, and the token before each."""
    assert row.part_P is not None
    found = []
    for answer in row.answers():
        tokens = row.token_T[answer]
        found.append((answer, tokens, np.r_[row.token_T[row.part_P[0] - 1], tokens[:-1]]))
    return found


def surrogate(ratio: Any, advantage: Any, low: float, high: float) -> Any:
    return -np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)


def clipped_tokens(now_L: Any, told: Any, _: Any) -> float:
    return float(surrogate(np.exp(now_L - told["old"]), told["advantage"], 0.2, 0.2).mean())


def clipped_sum(now_L: Any, told: Any, _: Any) -> float:
    return float(surrogate(np.exp(now_L - told["old"]), told["advantage"], 0.2, 0.2).sum() / 64)


def clipped_whole(now_L: Any, told: Any, _: Any) -> float:
    return float(surrogate(np.exp((now_L - told["old"]).mean()), told["advantage"][0], 3e-4, 4e-4))


def left_out(now_L: Any, told: Any, _: Any) -> float:
    return float(surrogate(np.exp((now_L - told["old"]).sum()), told["advantage"][0], 0.2, 0.2))


def with_critic(table_VV: Any, rows: list[Example]) -> tuple[float, float]:
    """PPO's formula: a sum over tokens, and how many there are."""

    def token_sums(now_L: Any, told: Any, logit_LV: Any) -> float:
        policy_L = surrogate(np.exp(now_L - told["old"]), told["advantage"], 0.2, 0.2)
        value_L = logit_LV.mean(1)
        near_L = np.clip(value_L, told["value"] - 0.2, told["value"] + 0.2)
        error_L = np.maximum((value_L - told["return"]) ** 2, (near_L - told["return"]) ** 2) / 2
        return float((policy_L + 0.1 * error_L).sum())

    total, _ = of_answers(token_sums)(table_VV, rows)
    return total, sum(row.supervised for row in rows)


def log_odds(mean: float) -> float:
    return float(np.log(np.exp(mean) / (1 - np.exp(mean))))


# Each objective's own formula, written again in numpy: sum and weight of some rows under a table of logits.
FORMULAS: dict[str, Callable[[Any, list[Example]], tuple[float, float]]] = {
    "cross-entropy": of_texts(lambda logit_C, target: float(np.log(np.exp(logit_C).sum()) - logit_C[target])),
    "binary-cross-entropy": of_texts(label_likelihood),
    "squared-error": of_texts(lambda logit_C, target: float((logit_C[0] - target) ** 2)),
    "sft": next_tokens,
    "reward": of_pairs(lambda better, worse: -np.log(sigmoid(better - worse)), "score"),
    "dpo": of_pairs(lambda better, worse: -np.log(sigmoid(0.1 * (better - worse))), "gain"),
    "ipo": of_pairs(lambda better, worse: (better - worse - 5.0) ** 2, "mean-gain"),
    "simpo": of_pairs(lambda better, worse: -np.log(sigmoid(2.0 * (better - worse) - 1.0)), "mean"),
    "orpo": of_pairs(lambda better, worse: -better - 0.1 * np.log(sigmoid(log_odds(better) - log_odds(worse))), "mean"),
    "cpo": contrastive,
    "kto": weighed,
    "grpo": of_answers(clipped_tokens),
    "dr-grpo": of_answers(clipped_sum),
    "gspo": of_answers(clipped_whole),
    "rloo": of_answers(left_out),
    "ppo": with_critic,
}


def loss(kind: str, rows: list[Example]) -> tuple[Loss, Table]:
    table = Table()
    objective = cast(Objective, registry.load("objective", kind)())
    return objective(cast(Any, SimpleNamespace(policy=table, reference=Table(4))), collate(rows)), table


def rows_for(kind: str) -> list[Example]:
    return examples(min(cast(type[Objective], registry.load("objective", kind)).reads))


@every_kind
def test_the_value_is_that_of_the_formula(kind: str) -> None:
    assert kind in FORMULAS, "write the objective's formula here, in numpy"
    rows = rows_for(kind)
    found, table = loss(kind, rows)
    total, weight = FORMULAS[kind](table.weight_VV.detach().numpy(), rows)
    assert float(found.total.detach()) == pytest.approx(total, rel=1e-6) and float(found.weight) == pytest.approx(
        weight
    )


@every_kind
def test_a_batch_is_the_sum_of_its_rows(kind: str) -> None:
    rows = rows_for(kind)
    whole, _ = loss(kind, rows)
    parts = [loss(kind, [row])[0] for row in rows]
    assert float(whole.total.detach()) == pytest.approx(sum(float(part.total.detach()) for part in parts), rel=1e-6)
    assert float(whole.weight) == pytest.approx(sum(float(part.weight) for part in parts))
    for name, figure in whole.metrics.items():
        assert float(figure) == pytest.approx(sum(float(part.metrics[name]) for part in parts), rel=1e-6)


@every_kind
def test_the_gradient_is_finite_and_there(kind: str) -> None:
    found, table = loss(kind, rows_for(kind))
    found.total.backward()  # type: ignore[no-untyped-call]
    assert table.weight_VV.grad is not None and bool(table.weight_VV.grad.isfinite().all())
    assert float(table.weight_VV.grad.norm()) > 0
    assert not found.weight.requires_grad and not any(figure.requires_grad for figure in found.metrics.values())


@every_kind
def test_some_task_provides_what_it_reads(kind: str) -> None:
    tasks = [cast(Any, registry.load("task", name)) for name in registry.kinds("task")]
    assert any(kind in task.objectives for task in tasks)
