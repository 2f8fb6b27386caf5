"""What every task keeps: rows become examples, metrics are scikit-learn's, and what it declares fits together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from sklearn import metrics
from transformers import AutoTokenizer

import trial
from onsa.data.table import Row
from onsa.engine.batches import encode
from onsa.engine.desk import Graded
from onsa.models.heads import Head
from onsa.models.sampling import Sampling
from onsa.objectives.base import Objective
from onsa.spec import registry
from onsa.spec.component import Form
from onsa.tasks.base import Examiner, Outcome, Task

every_kind = pytest.mark.parametrize("kind", list(registry.kinds("task")))
PAIRS = [("rain please", "weather"), ("what is soup like", "food"), ("is there rice here", "food")]
# Some usable rows of each task, by role, and one that it cannot use.
SAMPLES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "text-classification": ([{"text": text, "label": label} for text, label in PAIRS], {"text": " ", "label": "food"}),
    "text-generation": ([{"prompt": text, "completion": label} for text, label in PAIRS], {"prompt": "a"}),
    "preference": (
        [{"prompt": text, "chosen": f"about {label}", "rejected": "no idea"} for text, label in PAIRS],
        {"prompt": "a", "chosen": "same", "rejected": "same "},
    ),
    "prompt": ([{"prompt": text, "topic": label} for text, label in PAIRS], {"prompt": " "}),
    "chat": (
        [
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": label}]}
            for text, label in PAIRS
        ],
        {"messages": [{"role": "user", "content": "only asked"}]},
    ),
}


def rows(kind: str) -> list[Row]:
    assert kind in SAMPLES, "write some rows of the task here"
    return [Row(values, "here", line) for line, values in enumerate(SAMPLES[kind][0], 1)]


def task(kind: str, **settings: Any) -> Task:
    return cast(Task, registry.load("task", kind).model_validate(settings))


@pytest.fixture
def tokenizer_of(tiny_bert: Path, tiny_llama: Path) -> Any:
    return lambda head: AutoTokenizer.from_pretrained({Head.ROWS: tiny_bert, Head.TOKENS: tiny_llama}[head])


@every_kind
def test_rows_become_examples(kind: str, tokenizer_of: Any) -> None:
    given = rows(kind)
    fitted = task(kind).fit(given)
    examples = encode(fitted, given, tokenizer_of(fitted.head), 64)
    assert [example.row for example in examples] == [0, 1, 2]
    for example in examples:
        assert example.token_T.dtype == np.int32 and 2 < len(example.token_T) <= 64 and example.cut == 0
        waits = fitted.provides is Form.PROMPTED  # for answers, which are what trains
        assert example.supervised >= 1 and (example.weight_T is None) == (fitted.head is Head.ROWS or waits)
        assert example.part_P is None or sum(example.part_P) == len(example.token_T) > example.path
        assert example.weight_T is None or example.weight_T.shape == example.token_T.shape
    whole = [len(example.token_T) for example in examples]
    for example, length in zip(encode(fitted, given, tokenizer_of(fitted.head), 3), whole, strict=False):
        assert example.path <= 3 and example.cut == length - len(example.token_T)


@every_kind
def test_it_tells_rows_that_it_cannot_use(kind: str) -> None:
    given, fitted = rows(kind), task(kind).fit(rows(kind))
    assert [fitted.problem_of(row) for row in given] == [None] * 3
    assert fitted.problem_of(Row(SAMPLES[kind][1], "here", 4)) is not None
    assert len({fitted.inputs(row) for row in given}) == 3
    assert all(bool(fitted.answer(row)) == (fitted.provides is not Form.PROMPTED) for row in given)
    typed = Row(fitted.from_text("what is rain like"), "", 0)
    assert "what is rain like" in str(typed.values) and set(typed.values) <= set(fitted.roles)


@every_kind
def test_what_it_declares_fits_together(kind: str) -> None:
    found = task(kind).fit(rows(kind))
    assert found.headline in found.measures and found.objectives
    reads = [cast(type[Objective], registry.load("objective", name)).reads for name in found.objectives]
    assert any(found.provides in forms for forms in reads)
    assert found.fit(rows(kind)) == found, "fitting twice changes nothing"
    assert (found.head is Head.ROWS) == bool(found.outputs)


@every_kind
def test_the_metrics_are_those_it_names(kind: str, attempt: Any) -> None:
    head = task(kind).head.value
    prepared = attempt(head)
    if prepared.task.kind != kind:
        given = rows(kind)
        fitted = task(kind).fit(given)
        examples = encode(fitted, given, prepared.tokenizer, 64)
    else:
        fitted, examples = prepared.task, prepared.examples["validation"]
    examiner: Examiner = fitted
    if fitted.provides is Form.PROMPTED:
        graded = {"reward": np.ones(1), "ended": np.zeros(1), "length": np.ones(1)}
        examiner = Graded(
            lambda _: Sampling(3), lambda rows, _: [graded for _ in rows], tuple(graded), lambda *_: ("", "")
        )
    outcome = trial.opened(prepared).evaluate(examples, examiner)
    assert tuple(examiner.metrics(outcome)) == fitted.measures
    twice = Outcome.join([outcome.take(np.arange(1, len(examples))), outcome.take(np.array([0]))])
    assert examiner.metrics(twice) == pytest.approx(examiner.metrics(outcome))


def outcome(output_RC: Any, target_R: Any) -> Outcome:
    count = len(target_R)
    return Outcome(np.arange(count), np.ones(count), np.ones(count), output_RC, target_R)


@pytest.mark.parametrize("seed", range(8))
def test_single_label_metrics_are_scikit_learns(seed: int) -> None:
    dice = np.random.default_rng(seed)
    classes = 5
    target_R = dice.integers(0, classes - seed % 3, 37)  # some classes may not occur
    output_RC = dice.dirichlet(np.ones(classes), 37)
    if seed == 5:
        output_RC[:, 1:] = 0.0  # one class predicted throughout
    found = task("text-classification", problem="single-label", labels=list("abcde")).metrics(
        outcome(output_RC, target_R)
    )
    guess_R = output_RC.argmax(1)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        target_R, guess_R, average="macro", zero_division=0.0
    )
    wanted = {
        "accuracy": metrics.accuracy_score(target_R, guess_R),
        "precision_macro": precision,
        "recall_macro": recall,
    }
    assert found == pytest.approx({"loss": 1.0, **wanted, "f1_macro": f1})


@pytest.mark.parametrize("seed", range(8))
def test_multi_label_metrics_are_scikit_learns(seed: int) -> None:
    dice = np.random.default_rng(seed)
    target_RC = (dice.random((29, 4)) < 0.3).astype(np.float32)
    target_RC[:, 3] *= seed % 2  # a label that does not occur
    output_RC = dice.random((29, 4)) * (0.3 if seed == 2 else 1)  # and nothing given at all
    threshold = (0.5, 0.7)[seed % 2]
    found = task("text-classification", problem="multi-label", labels=list("abcd"), threshold=threshold).metrics(
        outcome(output_RC, target_RC)
    )
    given_RC, true_RC = output_RC > threshold, target_RC > 0.5
    precision, recall, micro, _ = metrics.precision_recall_fscore_support(
        true_RC, given_RC, average="micro", zero_division=0.0
    )
    assert found == pytest.approx(
        {
            "loss": 1.0,
            "f1_micro": micro,
            "f1_macro": metrics.f1_score(true_RC, given_RC, average="macro", zero_division=0.0),
            "precision_micro": precision,
            "recall_micro": recall,
            "exact_match": metrics.accuracy_score(true_RC, given_RC),
        }
    )


@pytest.mark.parametrize("seed", range(4))
def test_regression_metrics_are_scikit_learns(seed: int) -> None:
    dice = np.random.default_rng(seed)
    target_R, guess_R = dice.normal(3, 2, 31), dice.normal(3, 2, 31)
    found = task("text-classification", problem="regression", labels=["value"]).metrics(
        outcome(guess_R[:, None], target_R)
    )
    wanted = {
        "mae": metrics.mean_absolute_error(target_R, guess_R),
        "rmse": metrics.root_mean_squared_error(target_R, guess_R),
        "r2": metrics.r2_score(target_R, guess_R),
    }
    assert found == pytest.approx({"loss": 1.0, **wanted})


def test_perplexity_is_the_exponential_of_the_mean_loss() -> None:
    part = Outcome(np.arange(3), np.array([2.0, 4.0, 0.5]), np.array([2.0, 1.0, 4.0]))
    assert task("chat").metrics(part) == pytest.approx({"loss": 6.5 / 7, "perplexity": np.exp(6.5 / 7)})


def test_token_accuracy_is_the_share_of_weight_that_is_right() -> None:
    rights = Outcome(np.arange(2), np.ones(2), np.array([3.0, 1.0]), right_R=np.array([1.5, 1.0]))
    assert task("chat").metrics(rights)["token_accuracy"] == pytest.approx(2.5 / 4)
    assert Outcome.join([rights.take(np.array([1])), rights.take(np.array([0]))]).right_R == pytest.approx([1.5, 1.0])
