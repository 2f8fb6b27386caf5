"""Baselines: what the base does on the same held-out rows without being tuned.

A row head has no meaning before it is trained, so the baseline of a row task is a linear model on the frozen base's
embeddings, fitted on the same training rows (a "linear probe"; Alain and Bengio 2016). A language model is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from onsa.accel.plan import Plan
from onsa.engine.batches import evaluation_batches
from onsa.models.batch import Example, collate
from onsa.models.policy import Policy
from onsa.spec.component import Form
from onsa.tasks.base import Examiner, Outcome, Task
from onsa.tasks.preference import Preference

Floats = npt.NDArray[np.float64]
SMALLEST = 1e-12


@torch.inference_mode()
def outcome_of(policy: Policy, examiner: Examiner, examples: Sequence[Example], plan: Plan) -> Outcome:
    """What a policy, as it is, makes of some examples, computed as the plan says."""
    policy.network.eval()
    policy = replace(policy, logits=plan.logits)
    return Outcome.join([examiner.outcome(policy, batch) for batch in evaluation_batches(examples, plan)])


def probe(
    policy: Policy, task: Task, train: Sequence[Example], test: Sequence[Example], plan: Plan, seed: int
) -> Outcome:
    """A linear model on the frozen base's embeddings: logistic regression (of ranks on differences), ridge for numbers.

    Returns its probabilities (or numbers) on the test examples, with the loss of the task's own kind.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    if task.provides is Form.RANKED:
        return _preferring(policy, cast(Preference, task), train, test, plan)
    train_RD, test_RD = (np.concatenate(_embedded(policy, rows, plan)) for rows in (train, test))
    target_R = np.asarray([example.target for example in test])
    fitted_R = np.asarray([example.target for example in train])
    if task.provides is Form.SCORED:
        ridge = make_pipeline(StandardScaler(), Ridge(alpha=10.0)).fit(train_RD, fitted_R)
        output_RC = ridge.predict(test_RD)[:, None]
        loss_R = (output_RC[:, 0] - target_R) ** 2
    else:
        model = LogisticRegression(C=10.0, max_iter=2000, random_state=seed)
        several = task.provides is Form.MULTILABELLED
        fitted = make_pipeline(Normalizer(), OneVsRestClassifier(model) if several else model)
        fitted.fit(train_RD, fitted_R)
        output_RC = _all_columns(fitted, test_RD, len(task.outputs))
        likely_RC = np.clip(output_RC, SMALLEST, 1 - SMALLEST)
        if several:
            loss_R = -(target_R * np.log(likely_RC) + (1 - target_R) * np.log(1 - likely_RC)).mean(1)
        else:
            loss_R = -np.log(likely_RC[np.arange(len(target_R)), target_R])
    rows = np.asarray([example.row for example in test])
    return Outcome(rows, loss_R.astype(np.float64), np.ones(len(rows)), output_RC, target_R)


def _all_columns(fitted: Any, test_RD: Floats, classes: int) -> Floats:
    """Probabilities with a column for every class, also for one that has no training row."""
    found_RC = fitted.predict_proba(test_RD)
    if found_RC.shape[1] == classes:
        return np.asarray(found_RC, np.float64)
    output_RC = np.zeros((len(test_RD), classes))
    output_RC[:, fitted.classes_] = found_RC
    return output_RC


@torch.inference_mode()
def _embedded(policy: Policy, examples: Sequence[Example], plan: Plan) -> list[Floats]:
    """Of each example its vector, or those of its answers."""
    policy.network.eval()
    found: dict[int, Floats] = {}
    for batch in evaluation_batches(examples, plan):
        parts = torch.split(policy.embed(batch).double().cpu(), batch.counts())
        found |= {row: vector_AD.numpy() for row, vector_AD in zip(batch.row_R, parts, strict=True)}
    return [found[example.row] for example in examples]


def _preferring(
    policy: Policy, task: Preference, train: Sequence[Example], test: Sequence[Example], plan: Plan
) -> Outcome:
    """A linear score of embeddings, fitted to the differences of answers of which one is better."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import normalize

    batch = collate(train)
    assert batch.answers is not None, "rows of this task hold answers"
    pairs, vector_AD = batch.answers.pairs(), normalize(np.concatenate(_embedded(policy, train, plan)))
    apart_P = pairs.win_P.numpy() == 1
    ahead_PD = (vector_AD[pairs.first_P] - vector_AD[pairs.second_P])[apart_P]
    both_PD, won_P = np.concatenate([ahead_PD, -ahead_PD]), np.repeat([1, 0], len(ahead_PD))
    fitted = LogisticRegression(C=10.0, max_iter=2000, fit_intercept=False).fit(both_PD, won_P)
    value_A = normalize(np.concatenate(_embedded(policy, test, plan))) @ fitted.coef_[0]
    return task.valued(collate(test), torch.from_numpy(value_A))
