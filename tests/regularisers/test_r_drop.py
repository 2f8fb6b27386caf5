"""R-Drop: equation 4 of the paper in numpy, for classes, labels and tokens; and where it has nothing to compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

import trial
from onsa.models.batch import Batch
from onsa.models.policy import Models
from onsa.objectives.base import Objective
from onsa.objectives.binary_cross_entropy import BinaryCrossEntropy
from onsa.objectives.cross_entropy import CrossEntropy
from onsa.objectives.sft import Sft
from onsa.regularisers.r_drop import RDrop
from onsa.spec.errors import RecipeError

ALPHA = 3.0  # the paper's
ROWS, CLASSES = 5, 4
torch.manual_seed(0)
PASSES = [torch.randn(ROWS, CLASSES, dtype=torch.float64) for _ in range(2)]
WEIGHT_M = torch.tensor([1.0, 0.5, 0, 2, 1])


@dataclass(frozen=True)
class Twofold:
    """A policy whose second answer differs from its first, as with dropout."""

    keep: list[Tensor] | None = None

    def classes(self, batch: Batch) -> Tensor:
        assert self.keep is not None
        self.keep.append(PASSES[len(self.keep)])
        return self.keep[-1]

    def logprobs(self, batch: Batch, smoothing: float) -> Tensor:
        return self.classes(batch).log_softmax(1).gather(1, batch.target_M[:, None])[:, 0]

    def told(self, batch: Batch, smoothing: float) -> tuple[Tensor, Tensor]:
        return self.logprobs(batch, smoothing), torch.ones(ROWS)


def loss(objective: Objective, target_M: Tensor) -> tuple[float, float]:
    batch = Batch(torch.arange(ROWS), (1,) * ROWS, None, target_M, WEIGHT_M, tuple(range(ROWS)))
    found = RDrop(strength=ALPHA / 2).around(objective)(Models(cast(Any, Twofold())), batch)
    return float(found.total), float(found.weight)


def softmax(x: Any) -> Any:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def paper(nll: Any, p: Any, q: Any) -> float:
    """Equations 2 to 4, with the sum over classes (or over both cases of a label) in the last dimension."""
    divergence = ((p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1)) / 2
    if divergence.ndim == 2:
        divergence = divergence.mean(1)
    return float((WEIGHT_M.numpy() * (nll + ALPHA * divergence)).sum())


@pytest.mark.parametrize("objective", [CrossEntropy(), Sft()])
def test_classes_and_tokens(objective: Objective) -> None:
    target_M = torch.tensor([0, 1, 2, 3, 0])
    p, q = (softmax(logits.numpy()) for logits in PASSES)
    each = np.arange(ROWS)
    total, weight = loss(objective, target_M)
    # Both losses are added in the paper, where this takes their mean: half of everything.
    assert total == pytest.approx(paper(-np.log(p[each, target_M]) - np.log(q[each, target_M]), p, q) / 2)
    assert weight == float(WEIGHT_M.sum())


def test_labels() -> None:
    target_ML = torch.tensor([[1.0, 0, 0, 1]] * ROWS)
    cases = [np.stack([1 / (1 + np.exp(-x.numpy())), 1 / (1 + np.exp(x.numpy()))], -1) for x in PASSES]
    given = target_ML.numpy()
    nll = sum(-(given * np.log(p[..., 0]) + (1 - given) * np.log(p[..., 1])).mean(1) for p in cases)
    assert loss(BinaryCrossEntropy(), target_ML)[0] == pytest.approx(paper(nll, *cases) / 2, rel=1e-5)


def test_the_gradient_makes_passes_agree(attempt: Any) -> None:
    ends = []
    for strength in (1e-9, 100.0):
        given = [{"kind": "r-drop", "strength": strength}, {"kind": "dropout", "rate": 0.3}]
        lively = {"optimizer": {"kind": "adamw", "lr": 3e-3}, "train": {"max_steps": 20, "epochs": 20}}
        prepared = attempt("tokens", regulariser=given, adaptation="full", **lively)
        said, _ = trial.advance(prepared, trial.opened(prepared), 20)
        ends.append(sum(step["divergence"] for step in said[-5:]))
    assert ends[1] < 0.7 * ends[0]


@pytest.mark.parametrize("head", ["rows", "tokens"])
def test_without_dropout_it_is_refused(head: str, attempt: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        trial.opened(attempt(head, regulariser=["r-drop"]))
    assert [problem.code for problem in caught.value.problems] == ["r-drop-without-dropout"]
    trial.opened(attempt("rows", dropout=True, regulariser=["r-drop"], adaptation="full"))
    trial.opened(attempt(head, regulariser=["r-drop", "dropout"], adaptation="full"))
    trial.opened(attempt(head, regulariser=["r-drop"], adaptation={"kind": "lora", "dropout": 0.5}))


def test_a_number_has_no_distribution(attempt: Any, tmp_path: Any, tiny_bert: Any) -> None:
    data = tmp_path / "scores.csv"
    data.write_text("text,label\n" + "".join(f"this is text {n},{n / 7:.3f}\n" for n in range(40)))
    with pytest.raises(RecipeError) as caught:
        trial.ready(
            tiny_bert, data, task={"kind": "text-classification", "problem": "regression"}, regulariser=["r-drop"]
        )
    assert [problem.code for problem in caught.value.problems] == ["r-drop-without-distribution"]
