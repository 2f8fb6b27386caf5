"""Fold: an adapter goes into the weights of its base, and the whole model is held against the two apart."""

from __future__ import annotations

from collections.abc import Sequence
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
from onsa.programs.adapters import full_precision
from onsa.programs.predict import open_run
from onsa.programs.prepare import Prepared, prepare
from onsa.serve.predictor import deployed, load_run
from onsa.spec.errors import StoreError
from onsa.spec.recipe import Recipe
from onsa.store.atomic import explained, publish
from onsa.store.run import Run
from onsa.tasks.base import Outcome

PROOF_ROWS, PROOF_TOKENS = 16, 64  # logits are compared over so many rows, and so many tokens of each


@dataclass(frozen=True)
class Folded:
    """A whole model, and how it differs from base and adapter apart, both in fp32.

    apart: the largest difference of logits; ``logits`` of them were compared, on ``rows`` rows.
    comparisons: every metric on the held-out rows, apart (``base``) and folded (``tuned``).
    """

    run: Run
    folder: Path
    apart: float
    rows: int
    logits: int
    metric: str
    comparisons: list[Compared]

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "run": self.run.id,
            "folder": str(self.folder),
            "logits": {"largest_difference": self.apart, "compared": self.logits, "rows": self.rows},
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
        StoreError: the run is no adapter, or of a kind that cannot be folded, or the folder is there already.
    """
    run, recipe = open_run(ref)
    prepared = _checked(run, recipe, to)
    adaptation, task = prepared.adaptation, prepared.task
    shown = (prepared.examples["test"] or prepared.examples["train"])[:PROOF_ROWS]
    apart = load_run(run.folder, prepared.recipe)
    logits, before = _logits(apart.policy.network, shown), _outcome(apart.policy, prepared)
    whole: Any = adaptation.merge(apart.policy.network)
    draft = to.with_name(f".{to.name}.{uuid4().hex[:8]}.tmp")
    with explained(to.parent, 0), quiet():
        to.parent.mkdir(parents=True, exist_ok=True)
        whole.save_pretrained(draft)
        prepared.tokenizer.save_pretrained(draft)
        if to.is_dir():
            to.rmdir()  # empty, as was checked
        publish(draft, to)
    del whole, apart
    model = prepared.recipe.model.model_copy(update={"name": str(to)})
    loaded = load(to, model, task.head, task.outputs, task.hf_problem, prepared.recipe.seed)
    policy = deployed(loaded.network, loaded.tokenizer, prepared.recipe)
    differences = [(one - other).abs() for one, other in zip(logits, _logits(policy.network, shown), strict=True)]
    return Folded(
        run=run,
        folder=to,
        apart=max(float(difference.max()) for difference in differences),
        rows=len(shown),
        logits=sum(difference.numel() for difference in differences),
        metric=task.headline,
        comparisons=_compared(prepared, before, _outcome(policy, prepared)),
    )


def _checked(run: Run, recipe: Recipe, to: Path) -> Prepared:
    """The run prepared in full precision.

    Raises:
        StoreError: it cannot be folded there.
    """
    adaptation: Any = recipe.adaptation
    if not adaptation.adapter:
        raise StoreError.of("fold-whole-already", file=run.id, adaptation=adaptation.kind, folder=run.folder / "model")
    if not adaptation.merges:
        raise StoreError.of("fold-impossible", file=run.id, adaptation=adaptation.kind)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise StoreError.of("fold-folder-taken", file=str(to))
    train = recipe.train.model_copy(update={"precision": "fp32"})
    return prepare(full_precision(recipe.model_copy(update={"train": train})))


@torch.inference_mode()
def _logits(network: Any, examples: Sequence[Example]) -> list[Tensor]:
    device = next(network.parameters()).device
    tokens = [torch.from_numpy(example.token_T[:PROOF_TOKENS]).long()[None].to(device) for example in examples]
    return [network(input_ids=token_1T).logits[0].float().cpu() for token_1T in tokens]


def _outcome(policy: Any, prepared: Prepared) -> Outcome | None:
    test = prepared.examples["test"]
    return outcome_of(policy, prepared.task, test, prepared.plan) if test else None


def _compared(prepared: Prepared, before: Outcome | None, after: Outcome | None) -> list[Compared]:
    if before is None or after is None:
        return []
    recipe, task = prepared.recipe, prepared.task
    lower = task.lower_is_better
    results = paired_all(task.metrics, before, after, recipe.evaluate.bootstrap, recipe.seed, lower)
    return [compared(name, found, name in lower) for name, found in results.items()]
