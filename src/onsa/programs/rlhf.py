"""RLHF: three stages, each a run of its own, and one report of them.

1. Imitation: the model learns from conversations what an answer looks like.
2. Reward: another model learns from preferences to say how good an answer is.
3. Practice: the first answers prompts itself, the second grades it, and it learns to earn more (PPO).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onsa.evaluate.document import Document, read_document
from onsa.evaluate.report.staged import render_stages, staged_verdict
from onsa.programs.fold import fold
from onsa.programs.prepare import prepare
from onsa.programs.report import METRICS, REPORT
from onsa.programs.train import Told, finish, train
from onsa.spec.recipe import Recipe
from onsa.spec.rlhf import STAGES, Rlhf, Stage, laid_over, of_stage
from onsa.store.atomic import write_text
from onsa.store.home import home
from onsa.store.run import Run

FOLDER, IMITATOR = "rlhf", "imitator"
QUICK: dict[Stage, dict[str, Any]] = {
    "sft": {"train": {"max_steps": 12}, "evaluate": {"answers": 3, "max_new_tokens": 24}},
    "reward": {"train": {"max_steps": 12, "batch_rows": 8}, "evaluate": {"baseline": False}},
    "ppo": {
        "source": {"prompts": 8, "passes": 1, "max_new_tokens": 24},
        "train": {"max_steps": 8, "eval_steps": 4},
        "evaluate": {"answers": 3, "judged": 12, "max_new_tokens": 24},
    },
}


@dataclass(frozen=True)
class Began:
    """A stage begins; ``events`` are those of its run."""

    stage: Stage
    recipe: Recipe
    events: Iterator[Told]


@dataclass(frozen=True)
class Staged:
    """All three runs, and their report."""

    runs: dict[Stage, Run]
    report: Path
    documents: dict[Stage, Document]

    @property
    def verdict(self) -> str:
        """What came of it, in a sentence."""
        return staged_verdict(self.documents["ppo"])

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        runs = {stage: run.id for stage, run in self.runs.items()}
        return {"runs": runs, "report": str(self.report), "metrics": self.documents}


def check_rlhf(given: Rlhf, progress: Callable[[str], None] | None = None) -> None:
    """Look at all stages before the first one trains.

    Raises:
        OnsaError: one of them could not begin.
    """
    for stage in STAGES:
        recipe = given.recipe(stage)
        with of_stage(stage):
            prepare(recipe, progress)


def rlhf(given: Rlhf, fresh: bool = False, progress: Callable[[str], None] | None = None) -> Iterator[Began | Staged]:
    """The stages one after the other, and in the end all of them; a stage that is finished is told at once.

    Each stage's events are to be gone through to their end before the next is asked for.

    Raises:
        OnsaError: a stage cannot begin, or had to stop.
    """
    folder = home() / FOLDER / given.identity()
    runs: dict[Stage, Run] = {}
    start: str | None = None
    for stage in STAGES:
        recipe = given.recipe(stage, start, runs["reward"].id if "reward" in runs else None)
        yield Began(stage, recipe, train(recipe, fresh, progress))
        runs[stage] = finish(recipe)
        if stage == "sft":
            start = _imitator(runs[stage], folder)
    documents = {stage: read_document(run.folder / METRICS) for stage, run in runs.items()}
    report = folder / REPORT
    links = {stage: Path(os.path.relpath(run.folder / REPORT, folder)).as_posix() for stage, run in runs.items()}
    told = {str(stage): (documents[stage], links[stage]) for stage in STAGES}
    write_text(report, render_stages(told))
    yield Staged(runs, report, documents)


def quick(given: Rlhf) -> Rlhf:
    """The same with a few steps a stage: what is told is how it goes, not what it can come to."""
    return given.model_copy(update={stage: laid_over(getattr(given, stage), QUICK[stage]) for stage in STAGES})


def _imitator(run: Run, folder: Path) -> str:
    """What came of the first stage as a whole model, which the others start from."""
    to = folder / f"{IMITATOR}-{run.id}"
    if not to.exists():
        folder.mkdir(parents=True, exist_ok=True)
        fold(run.id, to)
    return str(to)
