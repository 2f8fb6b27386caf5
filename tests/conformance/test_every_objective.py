"""What every objective keeps: a sum and its weight, a finite gradient, and the value of its formula."""

from __future__ import annotations

from collections.abc import Callable
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

    def __init__(self) -> None:
        noise = torch.Generator().manual_seed(3)
        self.weight_VV = torch.randn(VOCABULARY, VOCABULARY, generator=noise, dtype=torch.float64, requires_grad=True)

    def logprobs(self, batch: Batch, smoothing: float = 0.0) -> Tensor:
        assert batch.predict_M is not None
        rows = self.weight_VV[batch.token_N[batch.predict_M]].log_softmax(1)
        return rows.gather(1, batch.target_M[:, None])[:, 0] * (1 - smoothing) + rows.mean(1) * smoothing

    def classes(self, batch: Batch) -> Tensor:
        parts = self.weight_VV[batch.token_N, :CLASSES].split(list(batch.length_R))
        return torch.stack([part.mean(0) for part in parts])


def examples(form: Form) -> list[Example]:
    """Eight rows of a form, of all lengths from 3 to 10 tokens."""
    dice = np.random.default_rng(5)
    targets: dict[Form, Callable[[], Any]] = {
        Form.LABELLED: lambda: int(dice.integers(CLASSES)),
        Form.MULTILABELLED: lambda: dice.integers(2, size=CLASSES).astype(np.float32),
        Form.SCORED: lambda: np.float32(dice.normal()),
    }
    found = []
    for row in range(8):
        token_T = dice.integers(VOCABULARY, size=3 + row).astype(np.int32)
        if form is Form.TOKENS:
            weight_T = dice.integers(2, size=3 + row).astype(np.float32)
            weight_T[1] = 1
            found.append(Example(token_T, weight_T, row=row))
        else:
            found.append(Example(token_T, target=targets[form](), row=row))
    return found


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


# Each objective's own formula, written again in numpy: sum and weight of some rows under a table of logits.
FORMULAS: dict[str, Callable[[Any, list[Example]], tuple[float, float]]] = {
    "cross-entropy": of_texts(lambda logit_C, target: float(np.log(np.exp(logit_C).sum()) - logit_C[target])),
    "binary-cross-entropy": of_texts(label_likelihood),
    "squared-error": of_texts(lambda logit_C, target: float((logit_C[0] - target) ** 2)),
    "sft": next_tokens,
}


def loss(kind: str, rows: list[Example]) -> tuple[Loss, Table]:
    table = Table()
    objective = cast(Objective, registry.load("objective", kind)())
    return objective(cast(Any, SimpleNamespace(policy=table)), collate(rows)), table


def rows_for(kind: str) -> list[Example]:
    return examples(cast(type[Objective], registry.load("objective", kind)).reads)


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
