"""Label smoothing: torch's own values, for classes, labels and tokens; and validation goes without it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import trial
from onsa.engine.batches import micro_batches
from onsa.models.batch import Batch
from onsa.objectives.binary_cross_entropy import BinaryCrossEntropy
from onsa.objectives.cross_entropy import CrossEntropy
from onsa.objectives.sft import Sft

SMOOTHING = 0.3
torch.manual_seed(0)
LOGIT_RC = torch.randn(6, 4)


def batch_of(target_M: Tensor) -> Batch:
    return Batch(torch.arange(6), (1,) * 6, None, target_M, torch.ones(6), tuple(range(6)))


def policy() -> Any:
    return cast(Any, SimpleNamespace(policy=SimpleNamespace(classes=lambda batch: LOGIT_RC)))


def test_classes() -> None:
    target_R = torch.tensor([0, 1, 2, 3, 0, 1])
    found = CrossEntropy(label_smoothing=SMOOTHING)(policy(), batch_of(target_R)).total
    wanted = functional.cross_entropy(LOGIT_RC, target_R, reduction="sum", label_smoothing=SMOOTHING)
    assert torch.equal(found, wanted)


def test_labels() -> None:
    target_RL = torch.tensor([[1.0, 0, 0, 1]] * 6)
    found = BinaryCrossEntropy(label_smoothing=SMOOTHING)(policy(), batch_of(target_RL)).total
    # Each label is a choice of two classes, given and not given, with the logits x and 0.
    logit_XC = torch.stack([torch.zeros(24), LOGIT_RC.flatten()], 1)
    wanted = functional.cross_entropy(logit_XC, target_RL.flatten().long(), reduction="sum", label_smoothing=SMOOTHING)
    assert float(found) == pytest.approx(float(wanted) / 4, rel=1e-6)


@pytest.mark.parametrize("accel", ["auto", "off"])
def test_tokens(accel: str, attempt: Any) -> None:
    prepared = attempt("tokens", adaptation="full", accel=accel, objective={"kind": "sft"})
    session = trial.opened(prepared)
    (batch,) = micro_batches(prepared.examples["train"][:4], prepared.plan, 1)
    found = Sft(label_smoothing=SMOOTHING)(session.models, batch).total
    network, total = trial.network(session), 0.0
    for example in prepared.examples["train"][:4]:
        token_T = torch.from_numpy(example.token_T).long()
        with torch.no_grad():
            logit_TV = network(input_ids=token_T[None]).logits[0, :-1]
        trains_T = torch.from_numpy(example.weight_T[1:]) > 0
        total += float(
            functional.cross_entropy(
                logit_TV[trains_T], token_T[1:][trains_T], reduction="sum", label_smoothing=SMOOTHING
            )
        )
    assert float(found.detach()) == pytest.approx(total, rel=1e-5)


def test_what_is_validated_is_not_smoothed(attempt: Any, tmp_path: Path) -> None:
    measured = []
    for smoothing in (0.0, SMOOTHING):
        objective = {"kind": "sft", "label_smoothing": smoothing}
        prepared = attempt("tokens", adaptation="full", objective=objective)
        session = trial.opened(prepared)
        measured.append(prepared.task.metrics(session.evaluate(prepared.examples["validation"], prepared.task)))
    assert measured[0] == measured[1]
