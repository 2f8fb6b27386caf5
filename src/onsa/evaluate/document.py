"""The structure of ``metrics.json``: everything a run proved, and the one input of its report and its model card.

All values are plain JSON. ``Pair`` holds a figure for the base and the tuned model; ``base`` is ``None`` where the
base was not measured (``evaluate.baseline: false``) or has no such figure. Numbers that are undefined are ``None``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Literal, NotRequired, TypedDict, TypeVar, cast

from onsa.evaluate.bootstrap import Comparison, Interval
from onsa.evaluate.wording import decimals, fixed, metric_name, signed
from onsa.spec.messages import say
from onsa.store.atomic import write_text

FORMAT = 1  # rises when a reader of the old structure would misread the new one
T = TypeVar("T")


class Pair(TypedDict, Generic[T]):
    base: T | None
    tuned: T


class Run(TypedDict):
    """created: ISO 8601 with its offset; seconds: from start to end, pauses left out."""

    id: str
    created: str
    seconds: float
    state: str


class Asked(TypedDict):
    """What was asked for, after every default was filled in; ``None`` where it does not apply."""

    task: str
    model: str
    data: str
    language: str | None
    adaptation: str
    objective: str
    optimizer: NotRequired[str | None]
    schedule: NotRequired[str | None]
    learning_rate: NotRequired[float | None]
    epochs: float | None
    max_length: NotRequired[int | None]
    precision: NotRequired[str | None]
    seed: int


class Range(TypedDict):
    """A value with its 95 % interval."""

    value: float | None
    low: float | None
    high: float | None


class Compared(TypedDict):
    """One metric on the held-out rows. ``difference`` is tuned minus base; ``better`` as in ``Comparison``."""

    metric: str
    base: Range | None
    tuned: Range
    difference: Range | None
    lower_is_better: bool
    better: bool | None


class Verdict(TypedDict):
    """The metric that the verdict is about, what it says, and on how many held-out rows."""

    metric: str
    better: bool | None
    rows: int


class TrainPoint(TypedDict):
    """One optimizer step. rates: of each group of parameters, by its label; 0 while a group is frozen. figures: what
    source, objective and penalties told beside the loss."""

    step: int
    loss: float | None
    lr: float | None
    rates: NotRequired[dict[str, float]]
    figures: NotRequired[dict[str, float]]
    tokens_per_s: float | None
    grad_norm: float | None


class Evaluation(TypedDict):
    """Metrics on the validation rows. said: what the first of them were answered, by prompt, where they were."""

    step: int
    epoch: float
    metrics: dict[str, float | None]
    said: NotRequired[dict[str, str]]


class History(TypedDict):
    """best_step: the checkpoint that was kept, by the validation metric ``best_metric``."""

    train: list[TrainPoint]
    evaluations: list[Evaluation]
    best_step: int | None
    best_metric: str | None


class ClassScores(TypedDict):
    label: str
    precision: float
    recall: float
    f1: float
    support: int


class Curve(TypedDict):
    """A curve of one class against the rest; ``label`` is ``None`` for the macro average. At most 200 points."""

    label: str | None
    x: list[float]
    y: list[float]
    area: float


class Bin(TypedDict):
    """Predictions with a probability in (low, high]: their mean probability, and the share that was right."""

    low: float
    high: float
    confidence: float
    accuracy: float
    rows: int


class Calibration(TypedDict):
    bins: list[Bin]
    ece: float


class Classification(TypedDict):
    """confusion: rows are the right class, columns the predicted one."""

    labels: list[str]
    confusion: Pair[list[list[int]]]
    per_class: Pair[list[ClassScores]]
    roc: Pair[list[Curve]]
    pr: Pair[list[Curve]]
    calibration: Pair[Calibration]


class Multilabel(TypedDict):
    """counts: per label, rows that are [right yes, wrong yes, wrong no, right no]; above ``threshold`` is a yes."""

    labels: list[str]
    threshold: float
    counts: Pair[list[list[int]]]
    per_class: Pair[list[ClassScores]]
    roc: Pair[list[Curve]]
    pr: Pair[list[Curve]]
    calibration: Pair[Calibration]


class Histogram(TypedDict):
    """edges has one number more than counts."""

    edges: list[float]
    counts: list[int]


class Regression(TypedDict):
    """scatter: [right, predicted] of up to 200 rows; residuals: predicted minus right, same edges for both models."""

    scatter: Pair[list[list[float]]]
    residuals: Pair[Histogram]


class Mistake(TypedDict):
    """A row the tuned model got most wrong. place: ``file:line``; probability: what it gave to its wrong answer."""

    text: str
    expected: str
    predicted: str
    probability: float | None
    place: str


class Answer(TypedDict):
    prompt: str
    expected: str
    base: str | None
    tuned: str


class Figures(TypedDict):
    """What the run cost. rows: by side of the split; adapter_bytes: the saved weights, an adapter or a model."""

    rows: dict[str, int]
    tokens: int
    parameters: int
    trainable_parameters: int
    seconds: float
    tokens_per_s: float
    peak_memory_bytes: int | None
    adapter_bytes: int | None


class DataRecord(TypedDict):
    """removed: rows left out, by the message code of the reason."""

    file: str
    sha256: str
    removed: dict[str, int]


class ModelRecord(TypedDict):
    """base: what ``from_pretrained`` loads; saved_as: how the tuned weights lie on disk, and so how they are loaded.

    packaged: the package (and the file in it) that a base of the catalogue came from, in place of the hub.
    """

    base: str
    packaged: str | None
    sha256: str
    licence: str | None
    saved_as: Literal["peft", "transformers", "onsa"]


class Versions(TypedDict):
    python: str
    torch: str
    transformers: str
    peft: str
    onsa: str
    platform: str


class Judged(TypedDict):
    """Whose word the win rate is: a run, on how many prompts, and on how many of them it prefers neither answer."""

    judge: str
    prompts: int
    ties: int


class Document(TypedDict):
    """The whole of ``metrics.json``.

    baseline: what tuning is measured against: the base as it is, a linear probe on it, or ``None`` where nothing was.
    recipe: the resolved recipe as YAML text.
    alarms: codes of :mod:`onsa.evaluate.alarms`.
    """

    format: int
    run: Run
    asked: Asked
    baseline: Literal["untuned", "probe"] | None
    verdict: Verdict
    comparisons: list[Compared]
    history: History
    classification: NotRequired[Classification]
    multilabel: NotRequired[Multilabel]
    regression: NotRequired[Regression]
    judged: NotRequired[Judged]
    alarms: NotRequired[list[str]]
    errors: list[Mistake]
    answers: list[Answer]
    figures: Figures
    data: DataRecord
    model: ModelRecord
    versions: Versions
    recipe: str
    warnings: list[str]


def compared(metric: str, found: Comparison | Interval, lower_is_better: bool) -> Compared:
    """A bootstrap's result as an entry of the document; an ``Interval`` alone is a metric without a baseline."""
    if isinstance(found, Interval):
        alone = _range(found)
        return Compared(
            metric=metric, base=None, tuned=alone, difference=None, lower_is_better=lower_is_better, better=None
        )
    return Compared(
        metric=metric,
        base=_range(found.base),
        tuned=_range(found.tuned),
        difference=_range(found.difference),
        lower_is_better=lower_is_better,
        better=found.better,
    )


def write_document(document: Document, path: Path) -> None:
    """Write ``metrics.json``; numbers that are not finite, which JSON cannot hold, become null."""
    text = json.dumps(_plain(document), ensure_ascii=False, indent=1, allow_nan=False)
    write_text(path, text + "\n")


def read_document(path: Path) -> Document:
    """Read ``metrics.json``."""
    return cast(Document, json.loads(path.read_text(encoding="utf-8")))


def headline(document: Document) -> Compared | None:
    """The comparison that the verdict is about."""
    metric = document["verdict"]["metric"]
    return next((entry for entry in document["comparisons"] if entry["metric"] == metric), None)


def baseline_name(document: Document, lang: str | None = None) -> str | None:
    """What tuning is measured against, in words."""
    kind = document["baseline"]
    return say(f"baseline-{kind}", lang, model=document["asked"]["model"]) if kind else None


def verdict(document: Document, lang: str | None = None) -> str:
    """Whether tuning paid, in one sentence: the headline metric against the baseline, with the interval."""
    entry, rows = headline(document), document["verdict"]["rows"]
    if entry is None or entry["tuned"]["value"] is None:
        return say("report.verdict.unmeasured", lang)
    spread = entry["difference"] or entry["tuned"]
    places = decimals(spread["low"], spread["high"])
    named: dict[str, Any] = {"metric": metric_name(entry["metric"], lang), "rows": f"{rows:,}"}
    named["tuned"] = fixed(entry["tuned"]["value"], places)
    if entry["base"] is None or entry["difference"] is None:
        bounds = {"low": fixed(spread["low"], places), "high": fixed(spread["high"], places)}
        return say("report.verdict.alone", lang, **named, **bounds)
    code = {True: "paid", False: "harmed", None: "open"}[entry["better"]]
    return say(
        f"report.verdict.{code}",
        lang,
        **named,
        base=fixed(entry["base"]["value"], places),
        baseline=baseline_name(document, lang),
        difference=signed(spread["value"], places),
        low=signed(spread["low"], places),
        high=signed(spread["high"], places),
    )


def _range(found: Interval) -> Range:
    return Range(value=_finite(found.value), low=_finite(found.low), high=_finite(found.high))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """The value with numbers that are not finite as ``None``."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return _finite(value) if isinstance(value, float) else value
