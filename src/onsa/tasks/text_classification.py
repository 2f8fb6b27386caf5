"""Text classification: one label a row, several labels a row, or a number a row.

Shape legend: R rows, C outputs.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from sys import intern
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from torch import Tensor
from torch.nn import functional

from onsa.data.profile import Look, Profile
from onsa.data.table import Row
from onsa.models.batch import Batch, Example
from onsa.models.heads import Head
from onsa.spec.component import Form
from onsa.spec.errors import DataError
from onsa.tasks.base import Match, Outcome, Task, text_of

if TYPE_CHECKING:
    from onsa.models.policy import Policy

TEXT_NAMES = ("text", "review", "sentence", "question", "content", "body", "title", "comment")
TEXT_NAMES_JA = ("テキスト", "本文", "文", "質問", "レビュー", "内容")
LABEL_NAMES = ("label", "labels", "category", "class", "topic", "target", "sentiment", "intent", "stars", "rating")
LABEL_NAMES_NUMBER = ("score", "value", "grade", "price", "得点", "点数")
LABEL_NAMES_JA = ("ラベル", "分類", "カテゴリ", "カテゴリー", "感情", "評価", "種類")
SEPARATORS = re.compile(r"\s*[;|]\s*")
Problem = Literal["single-label", "multi-label", "regression"]
MEASURES = {
    "single-label": ("accuracy", "precision_macro", "recall_macro", "f1_macro"),
    "multi-label": ("f1_micro", "f1_macro", "precision_micro", "recall_micro", "exact_match"),
    "regression": ("mae", "rmse", "r2"),
}


class TextClassification(Task):
    """Sort texts, tag them, or give them a number.

    problem: one label a row, several labels a row, or a number; found from the labels where it is not given.
    labels: the names of the classes, in the order of the outputs; found from the training rows where not given.
    threshold: the probability from which a label counts as given (several labels).
    """

    kind: ClassVar[str] = "text-classification"
    objectives: ClassVar[tuple[str, ...]] = ("cross-entropy", "binary-cross-entropy", "squared-error")
    roles: ClassVar[dict[str, bool]] = {"text": True, "text_pair": False, "label": True}

    problem: Problem | None = None
    labels: tuple[str, ...] | None = None
    threshold: float = 0.5

    @property
    def head(self) -> Head:
        return Head.ROWS

    @property
    def provides(self) -> Form:
        forms = {"multi-label": Form.MULTILABELLED, "regression": Form.SCORED}
        return forms.get(self.problem or "", Form.LABELLED)

    @property
    def headline(self) -> str:
        return {"multi-label": "f1_micro", "regression": "mae"}.get(self.problem or "", "accuracy")

    @property
    def measures(self) -> tuple[str, ...]:
        return ("loss", *MEASURES[self.problem or "single-label"])

    @property
    def outputs(self) -> tuple[str, ...]:
        assert self.labels is not None, "a resolved recipe has labels"
        return self.labels

    @property
    def hf_problem(self) -> str:
        return {"multi-label": "multi_label_classification", "regression": "regression"}.get(
            self.problem or "", "single_label_classification"
        )

    @classmethod
    def recognise(cls, profile: Profile) -> Match | None:
        labels = [c for c in profile.columns if c.look in (Look.CATEGORY, Look.LABELS, Look.NUMBER)]
        label = next(
            (c for c in labels if c.name.strip().lower() in (*LABEL_NAMES, *LABEL_NAMES_JA, *LABEL_NAMES_NUMBER)), None
        )
        named = label is not None
        label = label or next((c for c in labels if c.look is not Look.NUMBER), None)
        texts = [c for c in profile.columns if c.look in (Look.TEXT, Look.CATEGORY) and c is not label]
        text = profile.named(*TEXT_NAMES, *TEXT_NAMES_JA)
        if text is None or text not in texts:
            text = max(texts, key=lambda c: c.mean_length, default=None)
        if text is None or label is None:
            return None
        reason = ("why-labels", {"column": label.name, "distinct": label.distinct, "text": text.name})
        return Match({"text": text.name, "label": label.name}, 0.9 if named else 0.6, [reason])

    def fit(self, rows: Sequence[Row]) -> TextClassification:
        """This task with its problem and labels.

        Raises:
            DataError: no row has a label.
        """
        found = (row.values["label"] for row in rows)
        values = [intern(value) if type(value) is str else value for value in found]  # each text once in memory
        problem = self.problem or _guess_problem(values)
        if problem == "regression":
            return self.model_copy(update={"problem": problem, "labels": ("value",)})
        names = Counter(name for value in values for name in _names(value, problem))
        labels = self.labels or tuple(sorted(names))
        if not labels:
            raise DataError.of("labels-none", rows=len(rows))
        return self.model_copy(update={"problem": problem, "labels": labels})

    def problem_of(self, row: Row) -> tuple[str, dict[str, Any]] | None:
        if fault := self.unanswerable(row):
            return fault
        label = row.values.get("label")
        listed = isinstance(label, list | tuple) and self.problem in (None, "multi-label")
        if not listed and (label in ([], ()) or not text_of(label).strip()):  # an empty list says: none of the labels
            return "row-unlabelled", {"role": "label"}
        if self.problem == "regression" and _number(label) is None:
            return "label-not-number", {"value": label}
        if self.labels and self.problem in ("single-label", "multi-label"):
            strangers = [name for name in _names(label, self.problem) if name not in self.labels]
            if strangers:
                return "label-unknown", {"value": strangers[0], "choices": ", ".join(self.labels)}
        return None

    def unanswerable(self, row: Row) -> tuple[str, dict[str, Any]] | None:
        return None if text_of(row.values.get("text")).strip() else ("row-empty", {"role": "text"})

    def from_text(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def inputs(self, row: Row) -> str:
        return "\n".join(text for text in _texts(row) if text is not None)

    def answer(self, row: Row) -> str:
        return "; ".join(_names(row.values["label"], self.problem))

    def encode(self, row: Row, tokenizer: Any, max_length: int) -> Example:
        texts = _texts(row)
        encoded = tokenizer(*texts, truncation=False, verbose=False)
        cut = max(0, len(encoded["input_ids"]) - max_length)
        if cut:
            encoded = tokenizer(*texts, truncation=True, max_length=max_length)
        target = self._target(row.values["label"]) if "label" in row.values else 0
        types = encoded.get("token_type_ids") if texts[1] is not None else None
        type_T = None if types is None else np.asarray(types, np.int32)
        return Example(np.asarray(encoded["input_ids"], np.int32), target=target, cut=cut, type_T=type_T)

    def link(self, logit_RC: Tensor) -> Tensor:
        """Logits as probabilities (or, for numbers, as they are)."""
        if self.problem == "regression":
            return logit_RC
        return logit_RC.sigmoid() if self.problem == "multi-label" else logit_RC.softmax(1)

    def outcome(self, policy: Policy, batch: Batch) -> Outcome:
        logit_RC = policy.classes(batch)
        target = batch.target_M.to(logit_RC.device)
        if self.problem == "regression":
            loss_R = (logit_RC[:, 0] - target).square()
        elif self.problem == "multi-label":
            loss_R = functional.binary_cross_entropy_with_logits(logit_RC, target, reduction="none").mean(1)
        else:
            loss_R = functional.cross_entropy(logit_RC, target, reduction="none")
        return Outcome(
            np.asarray(batch.row_R),
            loss_R.double().cpu().numpy(),
            np.ones(len(batch.row_R)),
            self.link(logit_RC).double().cpu().numpy(),
            target.cpu().numpy(),
        )

    def metrics(self, outcome: Outcome) -> dict[str, float]:
        assert outcome.output_RC is not None and outcome.target_R is not None
        loss = {"loss": float(outcome.loss_R.sum() / outcome.weight_R.sum())}
        if self.problem == "regression":
            return loss | _regression_metrics(outcome.output_RC[:, 0], outcome.target_R)
        if self.problem == "multi-label":
            return loss | _multilabel_metrics(outcome.output_RC > self.threshold, outcome.target_R > 0.5)
        return loss | _single_label_metrics(outcome.output_RC.argmax(1), outcome.target_R, outcome.output_RC.shape[1])

    def asked(self, row: Row, tokenizer: Any, max_length: int) -> Example:
        values = {name: value for name, value in row.values.items() if name != "label"}
        return self.encode(Row(values, row.file, row.line), tokenizer, max_length)

    def described(self, logit_RC: Tensor, examples: Sequence[Example]) -> list[dict[str, Any]]:
        return [self._described(output_C) for output_C in self.link(logit_RC).tolist()]

    def _described(self, output_C: Any) -> dict[str, Any]:
        """One row's output as an answer: ``label`` and ``scores``, ``labels``, or ``value``."""
        assert self.labels is not None
        if self.problem == "regression":
            return {"value": float(output_C[0])}
        scores = {label: float(p) for label, p in zip(self.labels, output_C, strict=True)}
        if self.problem == "multi-label":
            return {"labels": [label for label, p in scores.items() if p > self.threshold], "scores": scores}
        return {"label": max(scores, key=scores.__getitem__), "scores": scores}

    def _target(self, value: Any) -> Any:
        if self.problem == "regression":
            return np.float32(_number(value) or 0.0)
        assert self.labels is not None
        names = _names(value, self.problem)
        if self.problem == "multi-label":
            return np.asarray([label in names for label in self.labels], np.float32)
        return self.labels.index(names[0])


def _texts(row: Row) -> tuple[str, str | None]:
    """The text of a row, and its second text where it has one."""
    pair = row.values.get("text_pair")
    return text_of(row.values.get("text")), None if pair is None or pair != pair else str(pair)


def _names(value: Any, problem: str | None) -> list[str]:
    """The label names in a cell: one, or several in a list, a JSON list, or a text with ``;`` or ``|`` between them."""
    if problem != "multi-label":
        # A whole float is how a table reader gives an integer column that has gaps.
        return [str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()]
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = value.strip("[] ")
    parts = value if isinstance(value, list | tuple) else SEPARATORS.split(str(value))
    return [name for part in parts if (name := str(part).strip())]


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _guess_problem(values: list[Any]) -> Problem:
    texts = [value for value in values if isinstance(value, str)]
    if any(isinstance(value, list | tuple) for value in values) or any(text.lstrip().startswith("[") for text in texts):
        return "multi-label"
    if sum(bool(SEPARATORS.search(text)) for text in texts) > 0.2 * len(values) > 0:
        return "multi-label"
    numbers = [_number(value) for value in values]
    distinct = {number for number in numbers if number is not None}
    if values and None not in numbers and (len(distinct) > 20 or any(not number.is_integer() for number in distinct)):
        return "regression"
    return "single-label"


def _single_label_metrics(predicted_R: Any, target_R: Any, classes: int) -> dict[str, float]:
    confusion_CC = np.zeros((classes, classes))
    np.add.at(confusion_CC, (target_R, predicted_R), 1)
    precision, recall, f1 = _prf(confusion_CC.diagonal(), confusion_CC.sum(0), confusion_CC.sum(1))
    seen = (confusion_CC.sum(0) + confusion_CC.sum(1)) > 0  # as scikit-learn: classes that occur in either
    return {
        "accuracy": float(confusion_CC.trace() / max(1, len(target_R))),
        "precision_macro": float(precision[seen].mean()),
        "recall_macro": float(recall[seen].mean()),
        "f1_macro": float(f1[seen].mean()),
    }


def _multilabel_metrics(given_RC: Any, target_RC: Any) -> dict[str, float]:
    hit_C, given_C, true_C = (given_RC & target_RC).sum(0), given_RC.sum(0), target_RC.sum(0)
    micro = _prf(hit_C.sum(keepdims=True), given_C.sum(keepdims=True), true_C.sum(keepdims=True))
    return {
        "f1_micro": float(micro[2][0]),
        "f1_macro": float(_prf(hit_C, given_C, true_C)[2].mean()),
        "precision_micro": float(micro[0][0]),
        "recall_micro": float(micro[1][0]),
        "exact_match": float((given_RC == target_RC).all(1).mean()),
    }


def _regression_metrics(predicted_R: Any, target_R: Any) -> dict[str, float]:
    error_R = predicted_R - target_R
    spread = float(((target_R - target_R.mean()) ** 2).sum())
    return {
        "mae": float(np.abs(error_R).mean()),
        "rmse": float(np.sqrt((error_R**2).mean())),
        "r2": 1 - float((error_R**2).sum()) / spread if spread else 0.0,
    }


def _prf(hit_C: Any, given_C: Any, true_C: Any) -> tuple[Any, Any, Any]:
    """Precision, recall and F1 from counts; 0 where a quotient has nothing below it."""
    precision = hit_C / np.maximum(given_C, 1)
    recall = hit_C / np.maximum(true_C, 1)
    return precision, recall, 2 * hit_C / np.maximum(given_C + true_C, 1)
