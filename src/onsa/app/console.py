"""What a person sees in the terminal: tables, progress, problems.

Logs go to standard error, results to standard output. What is shown comes from users' files, so it is never read as
markup (``[/INST]``) or as an emoji's name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from onsa.spec.errors import Level, Problem
from onsa.spec.messages import say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from onsa.programs.train import Told

SHOWN_METRICS = 2
MARKS = {Level.ERROR: ("✗", "bold red"), Level.WARNING: ("!", "yellow"), Level.NOTE: ("·", "dim")}


def err() -> Console:
    """The console of messages: standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def out() -> Console:
    """The console of results: standard output."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def emit(document: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=1, default=str) + "\n")


def show_problems(console: Console, problems: Iterable[Problem]) -> None:
    """Problems, each with its place and its fix."""
    from rich.text import Text

    for problem in problems:
        mark, style = MARKS[problem.level]
        line = Text(f"{mark} ", style=style)
        if problem.where:
            line.append(f"{problem.where}: ", style="bold")
        line.append(problem.what, style="default")
        console.print(line, soft_wrap=True)
        if problem.fix:
            console.print(Text(f"  → {problem.fix}", style="cyan"), soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> Any:
    """A plain table; ``right`` are the columns of numbers. The first column's names stay in one piece, to be copied."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        first = index == 0
        made.add_column(name, justify="right" if index in right else "left", overflow="fold", no_wrap=first)
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    return made


class Follower:
    """Shows the events of a run: a bar with loss, tokens a second and what is left; evaluations as lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.rate = 0.0

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def see(self, event: Told) -> None:
        """Show one event."""
        from onsa.engine import events
        from onsa.evaluate.wording import metric_name
        from onsa.programs import train

        match event:
            case train.Opened():
                code = "train-resumes" if event.resumed else "train-begins"
                model, file = event.prepared.recipe.model.name, event.prepared.recipe.data.path
                self.console.print(say(code, run=event.run.id, model=model, data=file))
            case events.Begun():
                for name in event.broken:
                    self.console.print(say("train-broken", name=name), style="yellow")
                self._start(event.step, event.total)
            case events.Stepped():
                self._advance(event)
            case events.Evaluated():
                first = list(event.metrics.items())[:SHOWN_METRICS]  # the rest is in the report
                shown = "  ".join(f"{metric_name(name)} {value:.4f}" for name, value in first)
                mark = f"  ← {say('train-best')}" if event.best else ""
                self.console.print(say("train-evaluated", step=event.step, epoch=event.epoch + 1, shown=shown) + mark)
            case train.Alarmed():
                self.console.print(say(f"report.rewards.alarm-{event.code}"), style="yellow")
            case train.Measuring():
                if self.bar is not None:
                    self.bar.stop()
                if event.stopped_early:
                    self.console.print(say("train-stopped-early"))
                self.console.print(say("train-measuring"))

    def _start(self, step: int, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn(say("train-bar")),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TextColumn(say("train-left")),
            TimeRemainingColumn(compact=True),
            console=self.console,
        )
        self.task = self.bar.add_task("", total=total, completed=step, figures="")
        self.bar.start()

    def _advance(self, event: Any) -> None:
        assert self.bar is not None and self.task is not None
        now = event.tokens / max(event.seconds, 1e-9)
        self.rate = now if not self.rate else 0.9 * self.rate + 0.1 * now
        figures = say("train-figures", loss=f"{event.loss:.4f}", rate=f"{self.rate:,.0f}")
        self.bar.update(self.task, completed=event.step, figures=figures)
