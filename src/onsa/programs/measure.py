"""Measure: base against tuned on the held-out rows, from the files that a user would deploy, into ``metrics.json``."""

from __future__ import annotations

import gc
import platform
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, cast

from onsa.data.table import Row
from onsa.evaluate import curves, mistakes
from onsa.evaluate.alarms import alarms
from onsa.evaluate.baselines import outcome_of, probe
from onsa.evaluate.bootstrap import Comparison, Interval, intervals, paired_all
from onsa.evaluate.document import (
    FORMAT,
    Answer,
    Asked,
    Compared,
    DataRecord,
    Document,
    Figures,
    Judged,
    Mistake,
    ModelRecord,
    Verdict,
    Versions,
    compared,
)
from onsa.evaluate.document import Run as RunRecord
from onsa.models.catalog import Package, catalog
from onsa.models.heads import Head
from onsa.optim.optimizers.base import Optimizer
from onsa.programs.history import Told
from onsa.programs.prepare import Prepared
from onsa.programs.rollouts import Graders, examiner, graders
from onsa.programs.wins import rate, wins
from onsa.serve.predictor import BATCH_ROWS, MODEL, Predictor, load_run
from onsa.spec.component import Form
from onsa.spec.errors import Level
from onsa.store.run import Run
from onsa.tasks.base import Examiner, Outcome, Task, TokenTask
from onsa.tasks.preference import Preference
from onsa.tasks.text_classification import TextClassification


@dataclass(frozen=True)
class Measured:
    """Outcomes on the test rows: no ``base`` where no baseline was asked for, neither where no rows were held out.

    won: of each prompt whether the tuned answer is preferred to the base's, where there is a judge.
    examiner: whose metrics of the outcomes count; the task's own if not given.
    """

    base: Outcome | None
    tuned: Outcome | None
    baseline: Literal["untuned", "probe"] | None
    answers: list[Answer]
    won: Outcome | None = None
    examiner: Examiner | None = None


def measure(prepared: Prepared, folder: Path, grades: Graders | None = None) -> Measured:
    """Answer the test rows with the saved model and with its base, one after the other: both at once need not fit.

    Args:
        grades: what grades answers, of a run that makes some.
    """
    if not prepared.examples["test"]:
        return Measured(None, None, None, [])
    grades = grades or graders(prepared)
    by = examiner(prepared, "test", grades)
    tuned, given = _tuned(prepared, folder, by)
    if not prepared.recipe.evaluate.baseline:
        return Measured(None, tuned, None, _answers(prepared, given, [None] * len(given)), examiner=by)
    gc.collect()  # a network holds itself in cycles
    base, before = _base(prepared, folder, by)
    baseline: Literal["untuned", "probe"] = "probe" if prepared.task.head is Head.ROWS else "untuned"
    won = None
    if prepared.recipe.evaluate.judge is not None and before:
        gc.collect()
        rows = _asked_for(prepared)[: prepared.recipe.evaluate.judged]
        won = wins(prepared, rows, given[: len(rows)], before[: len(rows)])
    return Measured(base, tuned, baseline, _answers(prepared, given, before), won, by)


def _tuned(prepared: Prepared, folder: Path, by: Examiner) -> tuple[Outcome, list[str]]:
    model = load_run(folder, prepared.recipe)
    outcome = outcome_of(model.policy, by, prepared.examples["test"], prepared.plan)
    return outcome, _said(prepared, model)


def _base(prepared: Prepared, folder: Path, by: Examiner) -> tuple[Outcome, list[str]]:
    recipe, task, test = prepared.recipe, prepared.task, prepared.examples["test"]
    model = load_run(folder, recipe, tuned=False)
    if task.head is Head.ROWS:
        return probe(model.policy, task, prepared.examples["train"], test, prepared.plan, recipe.seed), []
    return outcome_of(model.policy, by, test, prepared.plan), _said(prepared, model)


def _asked_for(prepared: Prepared) -> list[Row]:
    """The test rows that are answered in words: those that ask something, as many as are shown or judged."""
    task, evaluate = prepared.task, prepared.recipe.evaluate
    if task.head is not Head.TOKENS:
        return []
    most = evaluate.answers if evaluate.judge is None else max(evaluate.answers, evaluate.judged)
    return [row for row in prepared.dataset.test if cast(TokenTask, task).asks(row)][:most]


def _said(prepared: Prepared, model: Predictor) -> list[str]:
    rows = _asked_for(prepared)
    parts = [rows[start : start + BATCH_ROWS] for start in range(0, len(rows), BATCH_ROWS)]
    return [answer for part in parts for answer in model.answers(part)]


def _answers(prepared: Prepared, given: Sequence[str], before: Sequence[str | None]) -> list[Answer]:
    task = prepared.task
    shown = list(zip(_asked_for(prepared), before, given, strict=True))[: prepared.recipe.evaluate.answers]
    return [Answer(prompt=task.inputs(row), expected=task.answer(row), base=old, tuned=new) for row, old, new in shown]


def document(prepared: Prepared, run: Run, told: Told, found: Measured) -> Document:
    """Everything that a run proved, as plain values."""
    recipe, task, tuned = prepared.recipe, prepared.task, found.tuned
    entries = _compared(prepared, found)
    better = next((entry["better"] for entry in entries if entry["metric"] == task.headline), None)
    written = Document(
        format=FORMAT,
        run=RunRecord(id=run.id, created=run.created.isoformat(), seconds=told.seconds, state="finished"),
        asked=_asked(prepared),
        baseline=found.baseline,
        verdict=Verdict(metric=task.headline, better=better, rows=0 if tuned is None else len(tuned.row_R)),
        comparisons=entries,
        history=told.history(recipe.train.best or task.headline),
        errors=[] if tuned is None else _mistakes(prepared, tuned),
        answers=found.answers,
        figures=_figures(prepared, run, told),
        data=DataRecord(
            file=Path(recipe.data.path).name,
            sha256=prepared.dataset.sha256,
            removed=prepared.dataset.removed,
        ),
        model=_model(prepared),
        versions=versions(),
        recipe=recipe.dump(),
        warnings=[str(problem) for problem in prepared.problems if problem.level is Level.WARNING],
    )
    if found.won is not None and found.won.output_RC is not None and recipe.evaluate.judge is not None:
        ties = int((found.won.output_RC == 0.5).sum())
        written["judged"] = Judged(judge=recipe.evaluate.judge, prompts=len(found.won.row_R), ties=ties)
    if raised := alarms([point.get("figures", {}) for point in written["history"]["train"]], entries):
        written["alarms"] = raised
    if tuned is not None:
        _add_curves(written, prepared, found.base, tuned)
    return written


def _compared(prepared: Prepared, found: Measured) -> list[Compared]:
    """Every metric with its interval, and its difference where there is a baseline."""
    recipe, task = prepared.recipe, prepared.task
    if found.tuned is None:
        return []
    resamples, lower = recipe.evaluate.bootstrap, task.lower_is_better
    metrics = (found.examiner or task).metrics
    results: dict[str, Comparison] | dict[str, Interval]
    if found.base is None:
        results = intervals(metrics, found.tuned, resamples, recipe.seed)
    else:
        results = paired_all(metrics, found.base, found.tuned, resamples, recipe.seed, lower)
    entries = [compared(name, found, name in lower) for name, found in results.items() if name not in task.neutral]
    if found.won is not None:
        won = intervals(rate, found.won, resamples, recipe.seed)
        entries += [compared(name, interval, False) for name, interval in won.items()]
    return entries


def _model(prepared: Prepared) -> ModelRecord:
    entry = catalog().get(prepared.recipe.model.name)
    return ModelRecord(
        base=entry.hub if entry else prepared.recipe.model.name,
        packaged=_source(entry.package) if entry else None,
        sha256=prepared.base.sha256,
        licence=entry.licence if entry else None,
        saved_as=prepared.adaptation.saved_as,
    )


def _source(package: Package) -> str:
    """A package, and the file in it where it is one."""
    name = f"{package.name} {package.version}"
    return f"{name}, {package.files[0]}" if len(package.files) == 1 else name


def _add_curves(written: Document, prepared: Prepared, base: Outcome | None, tuned: Outcome) -> None:
    task = prepared.task
    if task.provides is Form.LABELLED:
        written["classification"] = curves.classification(base, tuned, task.outputs)
    elif task.provides is Form.MULTILABELLED:
        written["multilabel"] = curves.multilabel(base, tuned, task.outputs, _threshold(task))
    elif task.provides is Form.SCORED:
        written["regression"] = curves.regression(base, tuned)


def _threshold(task: Task) -> float:
    return task.threshold if isinstance(task, TextClassification) else curves.THRESHOLD


def _mistakes(prepared: Prepared, tuned: Outcome) -> list[Mistake]:
    task, rows = prepared.task, prepared.dataset.test

    def look(index: int) -> tuple[str, str]:
        row = rows[index]
        return task.inputs(row), f"{Path(row.file).name}:{row.line}"

    if task.provides is Form.LABELLED:
        return mistakes.labelled(tuned, task.outputs, look)
    if task.provides is Form.MULTILABELLED:
        return mistakes.multilabelled(tuned, task.outputs, look, threshold=_threshold(task))
    if task.provides is Form.SCORED:
        return mistakes.scored(tuned, look)
    if task.provides in (Form.RANKED, Form.PREFERRED) and tuned.output_RC is not None:
        preference, margin = cast(Preference, task), task.measures.index("margin")
        return mistakes.compared(tuned, tuned.output_RC[:, margin], look, lambda index: preference.ends(rows[index]))
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
    status = Path("/proc/self/status")
    if status.exists():  # Linux: what getrusage tells there begins at the peak of the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
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
