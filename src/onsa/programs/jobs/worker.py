"""Worker: the process in which one job is validated or run. Its life is the lease that the supervisor gave it.

A thread renews the lease; where it finds it lost, the process ends at once, and whatever it still writes is refused by
the job's fence.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onsa.spec.errors import DataError, MachineError, MissingError, OnsaError, Problem, StoreError
from onsa.spec.messages import say
from onsa.store.atomic import publish
from onsa.store.database import Database
from onsa.store.files import RESULTS, Files
from onsa.store.home import home
from onsa.store.job import Job, JobEvent, Lease, Status, Wish, model_name, told_metrics
from onsa.store.jobs import LEASE_S, Jobs
from onsa.store.models import Models
from onsa.store.process import this_process

if TYPE_CHECKING:
    from onsa.spec.recipe import Recipe

BEATS = 5  # in the time of a lease
LEAST_ROWS = 10  # of a training file
SERVED, MODEL, WHOLE = "served", "model", "whole"  # in a run's folder: checkpoints that answer, and itself folded
LOST = 75  # the exit status of a worker that had lost its job (EX_TEMPFAIL)


@dataclass
class Work:
    """A job in this process's hands.

    leaving: the process was asked to end.
    stepping: between steps it is asked whether it is wanted still; at other times, such as while it measures, not.
    """

    database: Database
    jobs: Jobs
    files: Files
    job: Job
    lease: Lease
    leaving: threading.Event = field(default_factory=threading.Event)
    stepping: bool = False

    def wanted(self) -> bool:
        """Whether the job is to be put down now: a user wants something of it, or the process has to leave."""
        return self.jobs.beat(self.lease, this_process()) is not None or self.leaving.is_set()


def main(arguments: list[str]) -> int:
    """``validate`` or ``run``, the job's id, and the fence of the lease."""
    what, name, fence = arguments
    with Database() as database:
        jobs = Jobs(database)
        work = Work(database, jobs, Files(database), jobs.get(None, name), Lease(name, int(fence)))
        signal.signal(signal.SIGTERM, lambda *_: work.leaving.set())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal that ends the service: the supervisor decides
        with _beating(work), _told(work):
            (validate if what == "validate" else run)(work)
    return 0


def validate(work: Work) -> None:
    """Look at a job's files and recipe, and queue it."""
    from onsa.programs.forecast import build
    from onsa.programs.jobs.recipe import chosen
    from onsa.programs.prepare import prepare

    prepared = prepare(_recipe(work, _folder(work)))
    build(prepared)
    warned = [JobEvent(_shown(work, str(problem)), "warn") for problem in prepared.problems]
    method = chosen(work.job.order, prepared.recipe)
    work.jobs.end(work.lease, Status.QUEUED, *warned, JobEvent(say("event-queued")), method=method)


def run(work: Work) -> None:
    """Train a job to its end, or until a user wants something else."""
    from onsa.programs.train import train

    steps = train(_recipe(work, _folder(work)), named=work.job.id)
    follow = Following(work)
    try:
        for event in steps:
            follow.heard(event)
            if follow.over or work.wanted():
                break
    finally:
        steps.close()  # type: ignore[attr-defined]  # a generator: closing it keeps the place
    if follow.over:
        follow.succeed()
    else:
        work.jobs.end(work.lease, Status.QUEUED, *([JobEvent(say("event-leaving"))] if work.leaving.is_set() else []))


@dataclass
class Following:
    """What is told of a run's events. over: the run has finished."""

    work: Work
    opened: Any = None
    run: Any = None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    over: bool = False

    def heard(self, event: Any) -> None:
        """Tell of one event, where there is something to tell."""
        from onsa.engine.events import Begun, Evaluated, Saved, Stepped
        from onsa.programs.train import Finished, Measuring, Opened

        if isinstance(event, Opened):
            self.opened = event
        elif isinstance(event, Begun):
            self.work.stepping = True
            told = say("event-goes-on", step=event.step) if event.step else say("event-started")
            self._tell(JobEvent(told), run=self.work.job.id)
        elif isinstance(event, Stepped):
            self._stepped(event)
        elif isinstance(event, Evaluated):
            self._evaluated(event)
        elif isinstance(event, Saved):
            self._saved(event)
        elif isinstance(event, Measuring):
            self.work.stepping = False
            self._tell(JobEvent(say("event-measuring")), estimated=None)
        elif isinstance(event, Finished):
            self.run, self.over = event.run, True

    def succeed(self) -> None:
        """The end of a job that did what it was to do, with its files."""
        from onsa.programs.history import read_history
        from onsa.programs.jobs.results import results

        work, name = self.work, model_name(self.work.job)
        made = [self._file(*one) for one in results(self.run.folder)]
        trained = read_history(self.run.folder).tokens
        told = (JobEvent(say("event-made", model=name)), JobEvent(say("event-succeeded")))
        given = {"fine_tuned_model": name, "folder": str(self.run.folder), "result_files": made}
        work.jobs.end(work.lease, Status.SUCCEEDED, *told, **given, trained_tokens=trained)

    def _file(self, filename: str, content: bytes) -> str:
        """The id of a file of the job: always the same, so that a worker that dies here leaves no second one."""
        job, shown = self.work.job, _shown(self.work, content.decode()).encode()
        name = f"file-{job.id.removeprefix('ftjob-')}-{Path(filename).stem}"
        return self.work.files.create(job.project, filename, RESULTS, [shown], name=name).id

    def _stepped(self, event: Any) -> None:
        self.seconds.append(event.seconds)
        left_s = sum(self.seconds) / len(self.seconds) * (event.total - event.step)
        trained = {f"train_{name}": value for name, value in event.metrics.items()} | {"train_loss": event.loss}
        self.metrics = trained
        data = {"step": event.step, "total_steps": event.total, **event.metrics, **told_metrics(trained)}
        message = say("event-step", step=event.step, total=event.total, loss=f"{event.loss:.2f}")
        self._tell(JobEvent(message, type="metrics", data=data), estimated=time.time() + left_s)

    def _evaluated(self, event: Any) -> None:
        self.metrics = {**self.metrics, **event.metrics}
        if data := told_metrics(event.metrics):
            message = say("event-evaluated", step=event.step, loss=f"{event.metrics['loss']:.2f}")
            self._tell(JobEvent(message, type="metrics", data={"step": event.step, **data}))

    def _saved(self, event: Any) -> None:
        """A checkpoint of an adapter can be asked as a model."""
        prepared = self.opened.prepared
        if not prepared.adaptation.adapter:
            return
        folder = self.opened.run.folder / SERVED / event.folder.name / MODEL
        if not folder.is_dir():
            draft = folder.with_name(f".{folder.name}.tmp")
            draft.mkdir(parents=True, exist_ok=True)
            self.opened.deploy(draft)
            publish(draft, folder)
        name = model_name(self.work.job, event.step)
        for gone in self.work.jobs.checkpoint(self.work.lease, event.step, name, self.metrics, str(folder.parent)):
            shutil.rmtree(gone, ignore_errors=True)

    def _tell(self, event: JobEvent, **values: Any) -> None:
        self.work.jobs.tell(self.work.lease, event, **values)


def _folder(work: Work) -> Path:
    """Where a job's files lie while it is worked on, and afterwards, since its run names them."""
    folder = home() / "jobs" / work.job.id
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _recipe(work: Work, folder: Path) -> Recipe:
    """A job's recipe, with its files in a folder.

    Raises:
        DataError: a file that is gone, or has too few rows.
    """
    from onsa.programs.jobs.graders import speakers
    from onsa.programs.jobs.recipe import job_recipe, rate_times
    from onsa.programs.prepare import prepare

    order = work.job.order
    training = _fetched(work, order.training_file, "training_file", folder)
    validation = None
    if order.validation_file is not None:
        validation = _fetched(work, order.validation_file, "validation_file", folder)
    named = speakers(work.database, work.job.project, work.job.id)
    recipe = job_recipe(order, _base(work, order.model), training, validation, named)
    if (times := rate_times(order)) == 1:
        return recipe
    optimizer: Any = prepare(recipe).recipe.optimizer  # with its usual rate
    return recipe.model_copy(update={"optimizer": optimizer.model_copy(update={"lr": optimizer.lr * times})})


def _fetched(work: Work, name: str, param: str, folder: Path) -> Path:
    """A file of the job's project in a folder.

    Raises:
        DataError: it is gone, or has too few rows.
    """
    try:
        path = work.files.fetch(work.files.get(work.job.project, name), folder)
    except MissingError as error:
        raise DataError(replace(problem, key=param) for problem in error.problems) from None
    if param == "training_file":
        with path.open("rb") as lines:
            rows = sum(1 for line in lines if line.strip())
        if rows < LEAST_ROWS:
            raise DataError.of("job-few-rows", key=param, rows=rows, least=LEAST_ROWS)
    return path


def _base(work: Work, model: str) -> str:
    """What a job's model is called in a recipe: a tuned one is folded into a whole model first."""
    served = Models(work.database).find(work.job.project, model)
    if served is None:
        return model
    if not served.whole:
        raise DataError.of("job-of-checkpoint", key="model", value=model)
    from onsa.adaptations.base import CONFIG

    tuned = Path(served.folder) / MODEL
    if not (tuned / CONFIG).is_file():  # as a whole
        return str(tuned)
    whole = Path(served.folder) / WHOLE
    if not whole.is_dir():
        from onsa.programs.fold import fold

        fold(served.run, whole)
    return str(whole)


@contextmanager
def _told(work: Work) -> Iterator[None]:
    """Say in the job what went wrong with it; what happens to a worker that lost it, nobody is told."""
    try:
        yield
    except StoreError as error:
        codes = {problem.code for problem in error.problems}
        if "job-taken" in codes:
            os._exit(LOST)
        if "store-unreachable" in codes:  # no fault of the job's: another worker goes on with it
            raise
        _fail(work, error)
    except OnsaError as error:
        _fail(work, error)


def _fail(work: Work, error: OnsaError) -> None:
    """A job that cannot be done, by a fault in what it was given, or of this machine: file, line, value and fix are
    named."""
    param = next((_param(work, problem) for problem in error.problems), None)
    code = "invalid_training_file" if param == "training_file" else "invalid_request_error"
    code = "server_error" if isinstance(error, MachineError) else code
    message = "\n".join(_shown(work, str(problem)) for problem in error.problems)
    failed = {"code": code, "message": message, "param": param}
    work.jobs.end(work.lease, Status.FAILED, JobEvent(message, "error"), error=failed)


def _param(work: Work, problem: Problem) -> str | None:
    """The parameter of a job that a problem is about."""
    for param in ("validation_file", "training_file"):
        name = getattr(work.job.order, param)
        if problem.key == param or (name is not None and name in (problem.file or "")):
            return param
    return problem.key


def _shown(work: Work, message: str) -> str:
    """A message without the folders of this machine: files are named as their project knows them."""
    for folder in (home() / "jobs" / work.job.id, home()):
        message = message.replace(f"{folder}/", "")
    return message


@contextmanager
def _beating(work: Work) -> Iterator[None]:
    """Within, the lease is renewed; the process ends where it is lost, or its job cancelled while it takes no steps."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(LEASE_S / BEATS):
            try:
                if work.jobs.beat(work.lease, this_process()) is Wish.CANCEL and not work.stepping:
                    work.jobs.end(work.lease, Status.QUEUED)  # the queue knows better
                    os._exit(0)
            except StoreError as error:
                if not over.is_set() and any(problem.code == "job-taken" for problem in error.problems):
                    os._exit(LOST)

    work.jobs.beat(work.lease, this_process())
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
