"""The loop: the only one in the project. Read it top to bottom.

It is a generator of events. Early stopping, pruning and pausing are the caller's ``break``: closing the generator
keeps the place in a checkpoint. What a step is, the source says; what is minimised, the objective; where it runs, the
session.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onsa.accel.plan import Plan
from onsa.engine import checkpoint
from onsa.engine.batches import micro_batches
from onsa.engine.checkpoint import Progress
from onsa.engine.events import Begun, Evaluated, Event, Saved, Stepped
from onsa.engine.sessions.base import Session
from onsa.models.batch import Example
from onsa.objectives.base import Objective
from onsa.sources.base import Feed, Source
from onsa.tasks.base import Examiner, Task


@dataclass(frozen=True)
class Job:
    """Everything the loop needs, put together by the caller."""

    session: Session
    source: Source
    feed: Feed
    task: Task
    examiner: Examiner
    objective: Objective
    plan: Plan
    validation: Sequence[Example]
    checkpoints: Path

    def save(self, to: Path) -> None:
        """Write what a checkpoint holds of the session, and of the answers that are being learnt from."""
        self.session.save(to)
        if self.feed.desk is not None:
            self.feed.desk.save(to)


def run(job: Job) -> Iterator[Event]:
    """Train from the newest sound checkpoint to the end.

    Raises:
        TrainingError: a loss or a gradient is not finite; the last checkpoint stays.
    """
    train, session = job.feed.train, job.session
    found, broken = checkpoint.latest(job.checkpoints)
    progress = checkpoint.progress_of(found) if found else Progress()
    if found:
        session.restore(found)
        if job.feed.desk is not None:
            job.feed.desk.restore(found)
    total = job.source.total(job.feed)
    yield Begun(progress.cursor.step, total, tuple(folder.name for folder in broken))
    yield from progress.told
    saved = progress.cursor.step
    started = time.perf_counter()
    try:
        for examples, after in job.source.steps(job.feed, progress.cursor):
            metrics = session.forward_backward(micro_batches(examples, job.plan, train.accumulate), job.objective)
            moved = session.step()
            stepped = Stepped(
                step=after.step,
                total=total,
                epoch=progress.cursor.epoch,
                loss=metrics.pop("loss"),
                lr=moved.lr,
                grad_norm=moved.grad_norm,
                tokens=sum(len(example.token_T) for example in examples),
                trained=sum(example.supervised for example in examples),
                seconds=time.perf_counter() - started,
                rates=moved.rates,
                metrics={**job.source.told(examples), **metrics, **moved.metrics},
            )
            progress, last = replace(progress, cursor=after, stepped=stepped, evaluated=None), after.step == total
            if job.validation and (last or _due(after.step, train.eval_steps)):
                measured = job.examiner.metrics(session.evaluate(job.validation, job.examiner))
                progress = _judged(progress, stepped, measured, job)
            events: list[Event] = [*progress.told]
            if last or progress.best_step == after.step or _due(after.step, train.save_steps):
                events.append(Saved(after.step, checkpoint.write(job.checkpoints, progress, job.save)))
                checkpoint.prune(job.checkpoints, train.keep, progress.best_step)
                saved = after.step
            # A step's events come when all of it is done, so that wherever the caller breaks off, the place is whole.
            yield from events
            started = time.perf_counter()
    except GeneratorExit:
        if progress.cursor.step > saved:
            checkpoint.write(job.checkpoints, progress, job.save)
        raise


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _judged(progress: Progress, stepped: Stepped, measured: dict[str, float], job: Job) -> Progress:
    metric = job.feed.train.best or job.task.headline
    stop = job.feed.train.early_stop
    lower = metric in job.task.lower_is_better
    job.session.observe(measured[metric] if lower else -measured[metric])
    progress = progress.seen(measured[metric], lower, stop.min_delta if stop else 0.0)
    best = progress.best_step == stepped.step
    evaluated = Evaluated(stepped.step, stepped.epoch, measured, best, progress.stale, job.examiner.said())
    return replace(progress, evaluated=evaluated)
