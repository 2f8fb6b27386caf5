"""Fold: an adapter goes into the weights of its base, and the whole model is held against the two apart."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from onsa.evaluate.baselines import outcome_of
from onsa.evaluate.bootstrap import paired_all
from onsa.evaluate.document import Compared, compared
from onsa.models.batch import Example
from onsa.models.load import load, quiet
from onsa.programs.adapters import check_base, full_precision
from onsa.programs.predict import open_run
from onsa.programs.prepare import Prepared, prepare
from onsa.programs.report import METRICS
from onsa.programs.rollouts import examiner, graders
from onsa.serve.predictor import deployed, load_run
from onsa.spec.errors import Level, Problem, StoreError
from onsa.spec.recipe import Recipe
from onsa.store.atomic import explained, publish, ready_folder
from onsa.store.run import Run
from onsa.tasks.base import Examiner, Outcome

PROOF_ROWS, PROOF_TOKENS = 16, 64  # logits are compared over so many rows, and so many tokens of each
# Of the largest logit: fp32 rounds by 6e-8, and over the sums of a large network (32 layers of width 4096) these errors
# add up to about sqrt(32 · 4096) times as much, 2e-5. An update that is wrongly folded is far above.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Folded:
    """A whole model, and how it differs from base and adapter apart, both in fp32.

    apart: the largest difference of logits; ``logits`` of them were compared, on ``rows`` rows.
    limit: what rounding alone explains of it.
    comparisons: every metric on the held-out rows, apart (``base``) and folded (``tuned``).
    """

    run: Run
    folder: Path
    apart: float
    limit: float
    rows: int
    logits: int
    metric: str
    comparisons: list[Compared]

    @property
    def holds(self) -> bool:
        """Whether the folded model says what the two apart say."""
        return self.apart <= self.limit

    @property
    def problems(self) -> tuple[Problem, ...]:
        """A warning where it does not."""
        values = {"apart": f"{self.apart:.2g}", "limit": f"{self.limit:.2g}"}
        return () if self.holds else (Problem("fold-unlike", values, level=Level.WARNING),)

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        logits = {"largest_difference": self.apart, "limit": self.limit, "compared": self.logits, "rows": self.rows}
        return {
            "run": self.run.id,
            "folder": str(self.folder),
            "holds": self.holds,
            "logits": logits,
            "metric": self.metric,
            "comparisons": [
                {
                    "metric": entry["metric"],
                    "unfolded": entry["base"],
                    "folded": entry["tuned"],
                    "difference": entry["difference"],
                }
                for entry in self.comparisons
            ],
        }


def fold(ref: str, to: Path) -> Folded:
    """Write a run's model with its adapter folded in, as transformers saves models, and read it back to compare.

    A quantised base cannot take an adapter up: the base's own weights do.

    Raises:
        StoreError: the run is no adapter, or of a kind that cannot be folded, its base has changed, or the folder is
            there already.
        MachineError: the folder cannot be written.
    """
    run, recipe = open_run(ref)
    to = to.expanduser().resolve()
    prepared = _checked(run, recipe, to)
    adaptation, task = prepared.adaptation, prepared.task
    shown = (prepared.examples["test"] or prepared.examples["train"])[:PROOF_ROWS]
    apart = load_run(run.folder, prepared.recipe)
    by = examiner(prepared, "test", graders(prepared))
    logits, before = _logits(apart.policy.network, shown), _outcome(apart.policy, by, prepared)
    whole: Any = adaptation.merge(apart.policy.network)
    with _drafted(to) as draft, quiet():
        whole.save_pretrained(draft)
        prepared.tokenizer.save_pretrained(draft)
    del whole, apart
    model = prepared.recipe.model.model_copy(update={"name": str(to)})
    loaded = load(to, model, task.head, task.outputs, task.hf_problem, prepared.recipe.seed)
    policy = deployed(loaded.network, loaded.tokenizer, prepared.recipe)
    folded = _logits(policy.network, shown)
    differences = [(one - other).abs().max() for one, other in zip(logits, folded, strict=True)]
    return Folded(
        run=run,
        folder=to,
        apart=float(torch.stack(differences).max()),  # not a number where one of them is not
        limit=ROUNDING * max(1.0, *(float(one.abs().max()) for one in logits)),
        rows=len(shown),
        logits=sum(one.numel() for one in logits),
        metric=task.headline,
        comparisons=_compared(prepared, by, before, _outcome(policy, by, prepared)),
    )


def _checked(run: Run, recipe: Recipe, to: Path) -> Prepared:
    """The run prepared in full precision.

    Raises:
        StoreError: it cannot be folded, or not there.
        MachineError: the folder cannot be written.
    """
    adaptation: Any = recipe.adaptation
    if not adaptation.adapter:
        raise StoreError.of("fold-whole-already", file=run.id, adaptation=adaptation.kind, folder=run.folder / "model")
    if not adaptation.merges:
        raise StoreError.of("fold-impossible", file=run.id, adaptation=adaptation.kind)
    if not (run.folder / METRICS).is_file():
        raise StoreError.of("run-without-metrics", file=run.id, state=run.state.value)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise StoreError.of("fold-folder-taken", file=str(to))
    ready_folder(to if to.is_dir() else to.parent)
    train = recipe.train.model_copy(update={"precision": "fp32"})
    prepared = prepare(full_precision(recipe.model_copy(update={"train": train})))
    check_base(run, prepared.base)
    return prepared


@contextmanager
def _drafted(to: Path) -> Iterator[Path]:
    """A hidden folder whose files become those of ``to`` in the end, and are gone where that fails."""
    there = to.is_dir()  # empty, as was checked; it stays the folder that it is, since someone may stand in it
    draft = (to if there else to.parent) / f".{to.name}.{uuid4().hex[:8]}.tmp"
    try:
        with explained(to.parent, 0):
            yield draft
            if there:
                for path in draft.iterdir():
                    path.rename(to / path.name)
            else:
                publish(draft, to)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@torch.inference_mode()
def _logits(network: Any, examples: Sequence[Example]) -> list[Tensor]:
    device = next(network.parameters()).device
    tokens = [torch.from_numpy(example.token_T[:PROOF_TOKENS]).long()[None].to(device) for example in examples]
    return [network(input_ids=token_1T).logits[0].float().cpu() for token_1T in tokens]


def _outcome(policy: Any, by: Examiner, prepared: Prepared) -> Outcome | None:
    test = prepared.examples["test"]
    return outcome_of(policy, by, test, prepared.plan) if test else None


def _compared(prepared: Prepared, by: Examiner, before: Outcome | None, after: Outcome | None) -> list[Compared]:
    if before is None or after is None:
        return []
    recipe, task = prepared.recipe, prepared.task
    lower = task.lower_is_better
    results = paired_all(by.metrics, before, after, recipe.evaluate.bootstrap, recipe.seed, lower)
    return [compared(name, found, name in lower) for name, found in results.items()]
