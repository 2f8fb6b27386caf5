"""Measure: base against tuned on the held-out rows, from the files that a user would deploy, into ``metrics.json``."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

from onsa.evaluate import curves, mistakes
from onsa.evaluate.baselines import probe, untuned
from onsa.evaluate.bootstrap import Comparison, Interval, intervals, paired_all
from onsa.evaluate.document import (
    FORMAT,
    Answer,
    Asked,
    DataRecord,
    Document,
    Figures,
    Mistake,
    ModelRecord,
    Verdict,
    Versions,
    compared,
)
from onsa.evaluate.document import Run as RunRecord
from onsa.models.catalog import catalog
from onsa.models.heads import Head
from onsa.optim.optimizers.base import Optimizer
from onsa.programs.history import Told
from onsa.programs.prepare import Prepared
from onsa.serve.predictor import MODEL, Predictor, load_run
from onsa.spec.component import Form
from onsa.spec.errors import Level
from onsa.store.run import Run
from onsa.tasks.base import Outcome, TokenTask


@dataclass(frozen=True)
class Measured:
    """Outcomes on the test rows; ``base`` is ``None`` where no baseline was asked for."""

    base: Outcome | None
    tuned: Outcome
    baseline: Literal["untuned", "probe"] | None
    answers: list[Answer]


def measure(prepared: Prepared, folder: Path) -> Measured:
    """Answer the test rows with the saved model and with its base."""
    recipe, task, test = prepared.recipe, prepared.task, prepared.examples["test"]
    tuned = load_run(folder, recipe)
    tuned_outcome = untuned(tuned.policy, task, test, prepared.plan)
    answers = _answers(prepared, tuned, None)
    if not recipe.evaluate.baseline:
        return Measured(None, tuned_outcome, None, answers)
    base = load_run(folder, recipe, tuned=False)
    if task.head is Head.ROWS:
        train = prepared.examples["train"]
        outcome = probe(base.policy, task, train, test, prepared.plan, recipe.seed)
        return Measured(outcome, tuned_outcome, "probe", answers)
    outcome = untuned(base.policy, task, test, prepared.plan)
    return Measured(outcome, tuned_outcome, "untuned", _answers(prepared, tuned, base))


def _answers(prepared: Prepared, tuned: Predictor, base: Predictor | None) -> list[Answer]:
    task = prepared.task
    rows = prepared.dataset.test[: prepared.recipe.evaluate.answers]
    if not isinstance(task, TokenTask) or not rows:
        return []
    given = tuned.answers(rows)
    before: Sequence[str | None] = base.answers(rows) if base else [None] * len(rows)
    return [
        Answer(prompt=task.inputs(row), expected=task.answer(row), base=old, tuned=new)
        for row, old, new in zip(rows, before, given, strict=True)
    ]


def document(prepared: Prepared, run: Run, told: Told, found: Measured) -> Document:
    """Everything that a run proved, as plain values."""
    recipe, task = prepared.recipe, prepared.task
    resamples, lower = recipe.evaluate.bootstrap, task.lower_is_better
    results: dict[str, Comparison] | dict[str, Interval]
    if found.base is None:
        results = intervals(task.metrics, found.tuned, resamples, recipe.seed)
    else:
        results = paired_all(task.metrics, found.base, found.tuned, resamples, recipe.seed, lower)
    entries = [compared(name, result, name in lower) for name, result in results.items()]
    headline = next(entry for entry in entries if entry["metric"] == task.headline)
    packaged = catalog().get(recipe.model.name)
    written = Document(
        format=FORMAT,
        run=RunRecord(id=run.id, created=run.created.isoformat(), seconds=told.seconds, state="finished"),
        asked=_asked(prepared),
        baseline=found.baseline,
        verdict=Verdict(metric=task.headline, better=headline["better"], rows=len(found.tuned.row_R)),
        comparisons=entries,
        history=told.history(recipe.train.best),
        errors=_mistakes(prepared, found.tuned),
        answers=found.answers,
        figures=_figures(prepared, run, told),
        data=DataRecord(
            file=Path(recipe.data.path).name,
            sha256=prepared.dataset.sha256,
            removed={reason: len(rows) for reason, rows in prepared.dataset.removed.items()},
        ),
        model=ModelRecord(
            base=packaged.hub if packaged else recipe.model.name,
            sha256=prepared.base.sha256,
            licence=packaged.licence if packaged else None,
            saved_as="peft" if prepared.adaptation.adapter else "transformers",
        ),
        versions=versions(),
        recipe=recipe.dump(),
        warnings=[str(problem) for problem in prepared.problems if problem.level is Level.WARNING],
    )
    _add_curves(written, prepared, found)
    return written


def _add_curves(written: Document, prepared: Prepared, found: Measured) -> None:
    task = prepared.task
    if task.provides is Form.LABELLED:
        written["classification"] = curves.classification(found.base, found.tuned, task.outputs)
    elif task.provides is Form.MULTILABELLED:
        threshold = cast(Any, task).threshold
        written["multilabel"] = curves.multilabel(found.base, found.tuned, task.outputs, threshold)
    elif task.provides is Form.SCORED:
        written["regression"] = curves.regression(found.base, found.tuned)


def _mistakes(prepared: Prepared, tuned: Outcome) -> list[Mistake]:
    task, rows = prepared.task, prepared.dataset.test

    def look(index: int) -> tuple[str, str]:
        row = rows[index]
        return task.inputs(row), f"{Path(row.file).name}:{row.line}"

    if task.provides is Form.LABELLED:
        return mistakes.labelled(tuned, task.outputs, look)
    if task.provides is Form.MULTILABELLED:
        return mistakes.multilabelled(tuned, task.outputs, look, threshold=cast(Any, task).threshold)
    if task.provides is Form.SCORED:
        return mistakes.scored(tuned, look)
    return []


def _asked(prepared: Prepared) -> Asked:
    recipe = prepared.recipe
    objective, optimizer, schedule = recipe.objective, cast(Optimizer, recipe.optimizer), recipe.schedule
    assert objective is not None and schedule is not None, "a resolved recipe has every axis"
    return Asked(
        task=prepared.task.kind,
        model=recipe.model.name,
        data=Path(recipe.data.path).name,
        language=recipe.data.language,
        adaptation=prepared.adaptation.kind,
        objective=objective.kind,
        optimizer=optimizer.kind,
        schedule=schedule.kind,
        learning_rate=optimizer.lr,
        epochs=recipe.train.epochs,
        max_length=recipe.train.max_length,
        precision=recipe.train.precision,
        seed=recipe.seed,
    )


def _figures(prepared: Prepared, run: Run, told: Told) -> Figures:
    size = sum(path.stat().st_size for path in (run.folder / MODEL).glob("*.safetensors"))
    return Figures(
        rows={side: len(rows) for side, rows in prepared.dataset.sides.items()},
        tokens=told.tokens,
        parameters=told.parameters,
        trainable_parameters=told.trainable,
        seconds=told.seconds,
        tokens_per_s=told.tokens / told.seconds if told.seconds else 0.0,
        peak_memory_bytes=peak_memory(prepared.plan.device),
        adapter_bytes=size,
    )


def peak_memory(device: str) -> int:
    """The most memory this process has held, in bytes: of the GPU where it trains there, else resident."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> Versions:
    """What the figures were measured with."""
    return Versions(
        python=platform.python_version(),
        torch=version("torch"),
        transformers=version("transformers"),
        peft=version("peft"),
        onsa=version("onsa"),
        platform=f"{platform.system()} {platform.machine()}",
    )
