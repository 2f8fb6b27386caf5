"""Check: preflight with a forecast, as ``onsa check`` and ``onsa plan`` show it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from onsa.programs.forecast import Forecast, build, forecast, timed, work
from onsa.programs.preflight import view
from onsa.programs.prepare import Prepared, padded_share, prepare
from onsa.spec.errors import Level, MachineError, Problem
from onsa.spec.recipe import Recipe

Pieces = list[tuple[str, bool]]


@dataclass(frozen=True)
class Checked:
    """A preflight without errors in recipe or data, its forecast, and some rows as the model will read them.

    padding: the share of what goes through the network in the first steps that is padding.
    """

    prepared: Prepared
    forecast: Forecast
    problems: tuple[Problem, ...]
    padding: float
    views: list[Pieces] = field(default_factory=list)

    def stop_at_errors(self) -> None:
        """Raise what the forecast forbids.

        Raises:
            MachineError: the run does not fit into memory.
        """
        errors = [problem for problem in self.problems if problem.level is Level.ERROR]
        if errors:
            raise MachineError(errors)

    def document(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        prepared, seen = self.prepared, self.forecast
        return {
            "identity": prepared.identity,
            "recipe": prepared.recipe.document(),
            "rows": {side: len(rows) for side, rows in prepared.dataset.sides.items()},
            "steps": prepared.total,
            "choices": [{"key": choice.key, "why": choice.why} for choice in prepared.choices],
            "passes": [{"name": d.name, "applied": d.applied, "why": d.why} for d in prepared.plan.decisions],
            "padding": self.padding,
            "forecast": {**vars(seen), "memory": seen.memory},
            "problems": [problem.document() for problem in self.problems],
            "views": [[{"text": text, "trains": trains} for text, trains in pieces] for pieces in self.views],
        }


def check(recipe: Recipe, timing: bool = True, rows: int = 3, progress: Callable[[str], None] | None = None) -> Checked:
    """Preflight a recipe, forecast its cost, and show some rows as tokens.

    Args:
        timing: run a few real steps on the throw-away session to forecast the time.
        rows: training rows to show.
        progress: is told about downloads and conversions of the base.

    Raises:
        OnsaError: the recipe, its data or its base stop a run from beginning.
    """
    built = build(prepare(recipe, progress))
    prepared, seen = built.prepared, forecast(built)
    problem = seen.problem()
    problems = (*prepared.problems, problem) if problem else prepared.problems
    if problem is None or problem.level is not Level.ERROR:
        with closing(prepared.engine.open(work(built))) as session:  # which refuses what this network cannot do
            seen = timed(prepared, session, seen) if timing else seen
    views = [view(example, prepared.tokenizer) for example in prepared.examples["train"][:rows]]
    padded = padded_share(prepared.recipe, prepared.feed, prepared.plan)
    return Checked(prepared, seen, problems, padded, views)
