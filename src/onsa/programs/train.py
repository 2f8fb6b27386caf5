"""Train: a recipe becomes a run, from preflight to report. ``onsa train``, the Python API and the demo call this."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from onsa.engine import checkpoint, loop
from onsa.engine.events import Begun, Evaluated, Event, Stepped
from onsa.engine.returning import give_back
from onsa.engine.sessions.base import Session
from onsa.evaluate.alarms import alarms
from onsa.evaluate.document import Document, headline, read_document, write_document
from onsa.models import critic
from onsa.objectives.base import Objective
from onsa.optim.optimizers.base import Optimizer
from onsa.programs.forecast import Built, Forecast, build, forecast, work
from onsa.programs.history import Journal, read_history
from onsa.programs.measure import document, measure
from onsa.programs.preflight import places
from onsa.programs.prepare import Prepared, prepare
from onsa.programs.report import METRICS, REPORT, write_report
from onsa.programs.rollouts import examiner, feed, graders
from onsa.programs.verify import verify
from onsa.regularisers.base import Regulariser
from onsa.serve.predictor import MODEL
from onsa.spec.errors import Level, MachineError, OnsaError, Problem, StoreError, TrainingError
from onsa.spec.recipe import Recipe
from onsa.store.atomic import ensure_space, explained, publish, write_text
from onsa.store.home import home
from onsa.store.run import Run, State
from onsa.store.runs import Store

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Opened:
    """The run that a recipe leads to, before its first step.

    resumed: it goes on.
    deploy: writes the model, as it is when this is called, into a folder.
    """

    run: Run
    prepared: Prepared
    resumed: bool
    deploy: Callable[[Path], None]


@dataclass(frozen=True)
class Alarmed:
    """Something goes wrong, so far: a code of :mod:`onsa.evaluate.alarms`."""

    step: int
    code: str


@dataclass(frozen=True)
class Measuring:
    """Training is over; base and tuned answer the held-out rows."""

    run: Run
    stopped_early: bool


@dataclass(frozen=True)
class Finished:
    """The run is done; ``document`` is what its ``metrics.json`` holds."""

    run: Run
    document: Document


Progress = Callable[[str], None]
Told = Opened | Event | Alarmed | Measuring | Finished


def train(
    recipe: Recipe, fresh: bool = False, progress: Progress | None = None, named: str | None = None
) -> Iterator[Told]:
    """Train, yielding events; break off to pause, call again to go on.

    A recipe whose run is finished yields that run at once; ``fresh`` runs it anew. ``progress`` hears of downloads.
    Under an id that is ``named`` it is the run with that id that goes on, or begins; who names it has seen to it that
    nobody else is at it.

    Raises:
        OnsaError: preflight found errors (before any training), or training had to stop.
    """
    prepared = prepare(recipe, progress)
    with Store() as store:
        run = None if fresh else store.named(named) if named else store.by_identity(prepared.identity)
        if run is not None and run.state is State.FINISHED:
            yield Finished(run, read_document(run.folder / METRICS))
            return
        yield from _run(store, run, prepared, named)


def finish(recipe: Recipe, fresh: bool = False) -> Run:
    """Train to the end and return the finished run (``onsa.run``)."""
    *_, last = train(recipe, fresh)
    assert isinstance(last, Finished)
    return last.run


def _run(store: Store, run: Run | None, prepared: Prepared, named: str | None = None) -> Generator[Told, None, None]:
    if prepared.recipe.accel.mode == "verify":
        verify(prepared)
    built = build(prepared)
    prepared = built.prepared
    # Both before there is a run, so that one that cannot begin leaves none behind.
    seen = _fitting(built)
    grades = graders(prepared)
    session = prepared.engine.open(work(built))
    resumed = run is not None
    run = store.start(run or _created(store, prepared, named or ""), fenced=named is not None)
    with _stated(store, run):
        try:
            write_text(run.folder / RECIPE, prepared.recipe.dump())
            yield Opened(run, prepared, resumed, partial(_deploy, session, prepared))
            job = loop.Job(
                session=session,
                source=prepared.source,
                feed=feed(prepared, session, grades),
                task=prepared.task,
                examiner=examiner(prepared, "validation", grades),
                objective=cast(Objective, prepared.recipe.objective),
                plan=prepared.plan,
                validation=prepared.examples["validation"],
                checkpoints=run.folder / "checkpoints",
            )
            stopped = yield from _followed(store, run, prepared, job)
            yield Measuring(run, stopped)
            _keep_best(session, prepared, run, job.checkpoints)
        finally:
            session.close()
        told = read_history(run.folder)
        told.parameters, told.trainable = seen.parameters, seen.trainable
        del session, job, built  # the base is loaded anew to be measured: two at once need not fit
        gc.collect()  # a network holds itself in cycles
        give_back()
        found = document(prepared, run, told, measure(prepared, run.folder, grades))
        run = publish_run(store, run, found)
    yield Finished(run, found)  # out here, where a caller that stops listening no longer pauses the run


def _fitting(built: Built) -> Forecast:
    """The forecast of a run that fits into memory and onto the disk.

    Raises:
        MachineError: it does not.
    """
    prepared, seen = built.prepared, forecast(built)
    problem = seen.problem()
    if problem is not None and problem.level is Level.ERROR:
        raise MachineError(problem)
    recipe = prepared.recipe
    # A checkpoint holds values, the optimizer's state, and an average and what is deployed of it where one is kept: of
    # checkpoints there are those that are kept, the best one, and the next. In the end comes what is saved.
    averages = sum(8 for r in cast(tuple[Regulariser, ...], recipe.regulariser) if r.share(0, 1) is not None)
    size = (4 + cast(Optimizer, recipe.optimizer).state_bytes + averages) * seen.trainable
    saved = 4 * (seen.trainable if prepared.adaptation.adapter else seen.parameters)
    ensure_space(home(), (recipe.train.keep + 2) * size + saved)
    return seen


def _created(store: Store, prepared: Prepared, named: str) -> Run:
    return store.create(
        prepared.identity,
        name=named,
        task=prepared.task.kind,
        model=prepared.recipe.model.name,
        data=prepared.recipe.data.path,
        adaptation=prepared.adaptation.kind,
        recipe=prepared.recipe.document(),
    )


@contextmanager
def _stated(store: Store, run: Run) -> Iterator[None]:
    """Write down how a run was left, where it was left before its end."""
    try:
        yield
    except GeneratorExit:
        store.set_state(run, State.PAUSED)
        raise
    except BaseException as error:
        store.set_state(run, State.FAILED, _reason(error))
        raise


def _followed(store: Store, run: Run, prepared: Prepared, job: loop.Job) -> Generator[Told, None, bool]:
    """The loop's events, journalled; returns whether early stopping ended them."""
    stop = prepared.recipe.train.early_stop
    steps = loop.run(job)
    journal: Journal | None = None
    figures: list[dict[str, float]] = []
    raised: list[str] = []
    try:
        for event in steps:
            if isinstance(event, Begun):
                journal = Journal(run.folder, event.step)
            elif isinstance(event, Stepped | Evaluated) and journal is not None:
                journal.write(event)
                if isinstance(event, Evaluated):
                    store.add_metrics(run, event.step, event.metrics)
            yield event
            if isinstance(event, Stepped):
                figures.append(event.metrics)
            elif isinstance(event, Evaluated):
                new = [code for code in alarms(figures) if code not in raised]
                raised += new
                yield from (Alarmed(event.step, code) for code in new)
            if stop and isinstance(event, Evaluated) and event.stale >= stop.patience:
                return True
    except TrainingError as error:
        raise TrainingError(_placed(problem, prepared) for problem in error.problems) from None
    finally:
        steps.close()  # type: ignore[attr-defined]  # a generator: closing it keeps the place
        if journal is not None:
            journal.close()
    return False


def _placed(problem: Problem, prepared: Prepared) -> Problem:
    """A problem of a step with its rows as places in the user's file, in place of their numbers."""
    if "rows" not in problem.values:
        return problem
    rows, index_R = prepared.dataset.train, np.array(str(problem.values["rows"]).split(", "), np.int64)
    first = rows[int(index_R[0])]
    values = {**problem.values, "rows": places(rows, index_R)}
    return replace(problem, values=values, file=first.file, line=first.line)


def _keep_best(session: Session, prepared: Prepared, run: Run, checkpoints: Path) -> None:
    """Put the best checkpoint's weights into the network, and write the model that is deployed and measured."""
    found, _ = checkpoint.latest(checkpoints)
    if found is None:
        raise StoreError.of("run-without-checkpoint", file=str(run.folder))
    best = checkpoint.progress_of(found).best_step
    chosen = checkpoints / f"step-{best:07d}" if best is not None else found
    session.restore(chosen if checkpoint.verified(chosen) else found, optimizer=False)
    draft, final = run.folder / ".draft-model", run.folder / MODEL
    if final.exists():
        return
    draft.mkdir(exist_ok=True)
    critic.detach(session.network())
    _deploy(session, prepared, draft)
    with explained(run.folder, 0):
        publish(draft, final)


def _deploy(session: Session, prepared: Prepared, to: Path) -> None:
    with explained(to, 0):
        prepared.adaptation.save(session.network(), prepared.tokenizer, to)


def publish_run(store: Store, run: Run, found: Document) -> Run:
    """Write what was measured into a run's folder, with its report and card, and finish the run."""
    write_document(found, run.folder / METRICS)
    write_report(run)
    for kind, name in (("recipe", RECIPE), ("metrics", METRICS), ("report", REPORT)):
        store.add_artifact(run, kind, run.folder / name)
    for path in sorted((run.folder / MODEL).glob("*.safetensors")):
        store.add_artifact(run, "weights", path)
    entry = headline(found)
    summary: dict[str, Any] = {"metric": found["verdict"]["metric"], "better": found["verdict"]["better"]}
    if entry is not None:
        summary |= {"tuned": entry["tuned"]["value"], "base": entry["base"]["value"] if entry["base"] else None}
    store.set_summary(run, summary)
    return store.set_state(run, State.FINISHED)


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, OnsaError) else f"{type(error).__name__}: {error}"
