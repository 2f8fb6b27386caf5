"""Find a learning rate: the range test (Smith 2017, section 3.3) on a session that is thrown away.

The rate grows from step to step by a constant factor, and the loss is watched: where it falls fastest the rate is
good, where it turns up it is too high. All groups of parameters keep their relative rates. Nothing is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from onsa.engine.batches import micro_batches
from onsa.evaluate.report.rates import sweep_page
from onsa.objectives.base import Objective
from onsa.optim.optimizers.base import Optimizer
from onsa.optim.schedules.base import Schedule
from onsa.programs.forecast import build, forecast, work
from onsa.programs.prepare import Prepared, prepare
from onsa.sources.base import Cursor
from onsa.spec.errors import Level, MachineError, RecipeError, TrainingError
from onsa.spec.messages import say
from onsa.spec.recipe import Recipe
from onsa.store.atomic import ready_folder, write_text

KEPT = 0.9  # share of the smoothed loss that stays from step to step
DIVERGED = 4.0  # times the least smoothed loss, from which the sweep goes no further
FEWEST = 10  # steps from which a curve says something
BELOW_LEAST = 10.0  # the loss still falls well at a tenth of the rate of its minimum


@dataclass(frozen=True)
class Sweep:
    """From which rate to which, in how many steps at most."""

    low: float = 1e-7
    high: float = 10.0
    steps: int = 100


class Rising(Schedule):
    """From ``low`` up to ``high`` by a constant factor a step.

    low, high: multiples of the base rate.
    """

    kind: ClassVar[str] = "rising"
    low: float
    high: float

    def factor(self, step: int, total: int, seen: Sequence[float] = ()) -> float:
        return self.after_warmup(step, total, seen)

    def after_warmup(self, step: int, total: int, seen: Sequence[float]) -> float:
        return float(self.low * (self.high / self.low) ** (step / max(1, total - 1)))


@dataclass(frozen=True)
class Found:
    """A sweep's curve and what it suggests.

    rates, losses, smooth: of each step; ``smooth`` is the running mean of the losses, corrected for its start.
    steepest: the rate where the loss falls fastest; ``tenth``: a tenth of the rate at its minimum.
    diverged: the sweep ended before its last step.
    ratio_new: the rate of what the base does not have, over that of the rest; nothing where none of it trains.
    """

    model: str
    rates: list[float]
    losses: list[float]
    smooth: list[float]
    steepest: float
    tenth: float
    diverged: bool
    ratio_new: float | None

    @property
    def suggestion(self) -> float:
        """The more careful of the two, in two digits."""
        return float(f"{min(self.steepest, self.tenth):.1e}")

    @property
    def overrides(self) -> list[str]:
        """What sets the suggested rates in the recipe; both keep the ratio that they had in the sweep."""
        rates = {"lr": self.suggestion}
        if self.ratio_new is not None:
            rates["lr_new"] = self.suggestion * self.ratio_new
        return [f"optimizer.{name}={rate:g}" for name, rate in rates.items()]

    def document(self) -> dict[str, Any]:
        """The whole as plain JSON values."""
        return {**vars(self), "suggestion": self.suggestion, "set": self.overrides}


def lr_find(recipe: Recipe, sweep: Sweep, progress: Callable[[str], None] | None = None) -> Found:
    """The range test of a recipe, with its own data, adaptation, optimizer and groups.

    Args:
        progress: is told about downloads and conversions of the base.

    Raises:
        OnsaError: the recipe, its data or its base stop a run from beginning.
        TrainingError: the loss fell nowhere in the range.
    """
    if not 0 < sweep.low < sweep.high:
        raise RecipeError.of("lr-range-empty", low=f"{sweep.low:g}", high=f"{sweep.high:g}")
    prepared = prepare(recipe, progress)
    if prepared.source.makes:
        raise RecipeError.of("lr-find-rewarded", key="source", source=prepared.source.kind)
    prepared = _lasting(prepared, sweep.steps)
    if progress is not None:
        progress(say("lr-find-begins", steps=sweep.steps, low=f"{sweep.low:g}", high=f"{sweep.high:g}"))
    rates, losses, smooth, new = _swept(prepared, sweep)
    steepest, tenth = suggest(rates, smooth)
    return Found(
        model=prepared.recipe.model.name,
        rates=rates,
        losses=losses,
        smooth=smooth,
        steepest=steepest,
        tenth=tenth,
        diverged=len(rates) < sweep.steps,
        ratio_new=_ratio(prepared.recipe) if new else None,
    )


def place_for_plot(to: Path) -> None:
    """Make sure, before a sweep, that its plot can be written.

    Raises:
        MachineError: there is a folder of this name, or that for it cannot be made or written.
    """
    if to.is_dir():
        raise MachineError.of("plot-is-folder", file=str(to))
    ready_folder(to.parent)


def write_plot(found: Found, to: Path) -> Path:
    """The curve with its suggestion as a page that needs nothing but itself."""
    write_text(to, sweep_page(found.model, found.document()))
    return to


def suggest(rates: Sequence[float], smooth: Sequence[float]) -> tuple[float, float]:
    """The rate of the steepest descent before the minimum, and a tenth of the rate at the minimum.

    Raises:
        TrainingError: the loss does not fall.
    """
    least = int(np.argmin(smooth))
    slope_N = np.gradient(np.asarray(smooth), np.log(rates)) if len(rates) > 1 else np.zeros(1)
    if least < FEWEST // 2 or slope_N[: least + 1].min() >= 0:
        raise TrainingError.of("lr-find-flat", low=f"{rates[0]:.1e}", high=f"{rates[-1]:.1e}")
    return float(rates[int(np.argmin(slope_N[: least + 1]))]), float(rates[least] / BELOW_LEAST)


def _lasting(prepared: Prepared, steps: int) -> Prepared:
    """A run of so many steps, over the rows as often as that takes."""
    train = prepared.recipe.train
    an_epoch = prepared.source.an_epoch(prepared.feed)
    train = train.model_copy(update={"epochs": -(-steps // an_epoch), "max_steps": steps})
    return replace(prepared, recipe=prepared.recipe.model_copy(update={"train": train}), total=steps)


def _ratio(recipe: Recipe) -> float:
    optimizer = cast(Optimizer, recipe.optimizer)
    assert optimizer.lr is not None and optimizer.lr_new is not None, "a resolved recipe has both rates"
    return optimizer.lr_new / optimizer.lr


def _swept(prepared: Prepared, sweep: Sweep) -> tuple[list[float], list[float], list[float], bool]:
    """Rates, losses and smoothed losses, up to where the loss runs away; and whether anything new trains."""
    lr = cast(Optimizer, prepared.recipe.optimizer).lr
    assert lr is not None, "a resolved recipe has a learning rate"
    built = build(prepared)
    prepared, problem = built.prepared, forecast(built).problem()
    if problem is not None and problem.level is Level.ERROR:
        raise MachineError(problem)
    rising = Rising(low=sweep.low / lr, high=sweep.high / lr)
    objective = cast(Objective, prepared.recipe.objective)
    rates: list[float] = []
    losses: list[float] = []
    smooth: list[float] = []
    mean, new = 0.0, False
    with closing(prepared.engine.open(replace(work(built), schedule=rising))) as session:
        for examples, at in prepared.source.steps(prepared.feed, Cursor()):
            try:
                batches = micro_batches(examples, prepared.plan, prepared.recipe.train.accumulate)
                loss = session.forward_backward(batches, objective)["loss"]
                moved = session.step()
            except TrainingError:  # a loss or a gradient that is not finite
                if len(rates) < FEWEST:
                    raise
                break
            new = "new" in moved.rates
            mean = KEPT * mean + (1 - KEPT) * loss
            rates.append(moved.lr)
            losses.append(loss)
            smooth.append(mean / (1 - KEPT**at.step))
            if not math.isfinite(smooth[-1]) or (len(smooth) > FEWEST and smooth[-1] > DIVERGED * min(smooth)):
                break
    return rates, losses, smooth, new
