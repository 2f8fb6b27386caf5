"""Merge: adapters over one base become one, by PEFT's methods; and what that does to each one's own task."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import nn

from onsa.evaluate.bootstrap import intervals, paired_all
from onsa.evaluate.document import Compared, Range, compared, read_document
from onsa.models.fetch import locate
from onsa.models.load import load, quiet
from onsa.models.shelf import Progress, silent
from onsa.programs.adapters import check_base, composable, find_adapters, full_precision
from onsa.programs.history import Told
from onsa.programs.measure import Measured, document, measure
from onsa.programs.prepare import Prepared, prepare
from onsa.programs.report import METRICS
from onsa.programs.train import RECIPE, publish_run
from onsa.serve.adapters import combine, joined, settings
from onsa.serve.predictor import MODEL
from onsa.spec.errors import RecipeError, StoreError, unknown
from onsa.spec.messages import say
from onsa.spec.recipe import Recipe, parse_recipe
from onsa.store.atomic import explained, publish, write_text
from onsa.store.run import Run, State
from onsa.store.runs import Store
from onsa.tasks.base import Task

PROOF = "merge.json"
MERGED = "default"  # PEFT's name of an adapter whose files lie in a folder itself
DENSITY = 0.5
SUMS = ("linear", "ties", "dare-linear", "dare-ties", "magnitude-prune")  # of the factors: they need one rank
METHODS = (*SUMS, "svd", *(f"{method}-svd" for method in SUMS[1:]), "cat")
AVERAGED = ("ties", "dare-ties")  # these take a mean by themselves, so that a weight of one is the usual one
NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")
NAME_LENGTH = 29  # an id has 32, three of which may tell namesakes apart


@dataclass(frozen=True)
class Way:
    """How adapters are merged.

    weights: one an adapter; none are equal ones. density: the share of each update that is kept, where the method
    drops some. seed: of what DARE drops; the first run's where it is not given.
    """

    method: str
    weights: tuple[float, ...] = ()
    density: float | None = None
    seed: int | None = None


class Side(TypedDict):
    """What a merge did to one parent, on that parent's own held-out rows.

    base: by metric; comparisons: the parent alone (``base``) and the merge (``tuned``), by metric.
    """

    run: str
    task: str
    weight: float
    rows: int
    metric: str
    base: dict[str, Range]
    comparisons: list[Compared]


class Proof(TypedDict):
    """What a merge is made of and what it did; ``merge.json``."""

    method: str
    density: float | None
    seed: int | None
    rank: int
    parents: list[Side]


@dataclass(frozen=True)
class Merged:
    """A merge, a run like any other, with its proof."""

    run: Run
    proof: Proof


def merge(refs: Sequence[str], way: Way, name: str | None = None, progress: Progress | None = None) -> Merged:
    """Merge adapters into a new run, which takes the first one's recipe, and measure it on the rows of each.

    The same merge is made once; asked for again, it is given as it is, or goes on where it was interrupted.

    Args:
        name: the new run's id; digits of its identity where it is not given.

    Raises:
        StoreError: the runs do not fit each other, or their base or data have changed; RecipeError: the method does not
            fit them.
    """
    runs = find_adapters(refs)
    if len(runs) < 2:
        raise StoreError.of("merge-of-one", file=runs[0].id)
    composable(runs)
    way = settled(way, runs)
    identity = hashlib.sha256(json.dumps([[run.identity for run in runs], vars(way)]).encode()).hexdigest()
    with Store() as store:
        found = store.by_identity(identity)
        named = _name(store, name, found)
        if found is not None and name not in (None, found.id):
            (progress or silent)(say("merge-made-already", run=found.id))
        if found is not None and found.state is State.FINISHED:
            return Merged(found, json.loads((found.folder / PROOF).read_text(encoding="utf-8")))
        prepared = [_prepared(run, progress) for run in runs]
        made, told = _made(runs, way, prepared[0].recipe)
        recipe = _recipe(runs[0], made.peft_config[MERGED])
        first = runs[0]
        run = found or store.create(
            identity,
            name=named,
            task=first.task,
            model=first.model,
            data=first.data,
            adaptation="lora",
            recipe=recipe.document(),
        )
        run = store.start(run)
        try:
            _save(made, prepared[0], run)
            del made
            for parent in runs:
                store.link(run, parent, "merged")
            (progress or silent)(say("merge-measuring"))
            proof = _proved(store, run, replace(prepared[0], recipe=recipe), told, _Parents(runs, prepared, way))
        except BaseException as error:
            store.set_state(run, State.FAILED, str(error) or type(error).__name__)
            raise
        return Merged(store.get(run.id), proof)


def settled(way: Way, runs: Sequence[Run]) -> Way:
    """A way with its defaults filled in.

    Raises:
        RecipeError: there is no such method, or it or its settings do not fit these adapters.
    """
    method = way.method
    if method not in METHODS:
        raise RecipeError(unknown("merge-method-unknown", method, METHODS, key="--method"))
    drops = method not in ("linear", "svd", "cat")
    if way.density is not None and not (drops and 0 < way.density <= 1):
        raise RecipeError.of("merge-density", key="--density", value=way.density, method=method)
    configs = [settings(run.folder) for run in runs]
    ranks = [{config["r"], *(config.get("rank_pattern") or {}).values()} for config in configs]
    if method in SUMS and len(set.union(*ranks)) > 1:
        shown = ", ".join(str(max(rank)) for rank in ranks)
        better = "svd" if method == "linear" else f"{method}-svd"
        raise RecipeError.of("merge-ranks-differ", key="--method", method=method, ranks=shown, better=better)
    weights = way.weights or (1.0 if method.removesuffix("-svd") in AVERAGED else 1 / len(runs),) * len(runs)
    trained = any(config.get("modules_to_save") for config in configs)
    usable = all(math.isfinite(weight) and weight != 0 for weight in weights) and (sum(weights) > 0 or not trained)
    if len(weights) != len(runs) or not usable:
        given = ", ".join(f"{weight:g}" for weight in weights)
        raise RecipeError.of("merge-weights", key="--weight", value=given, count=len(runs))
    seed = parse_recipe(runs[0].recipe).seed if way.seed is None else way.seed
    density = (way.density or DENSITY) if drops else None
    return Way(method, tuple(map(float, weights)), density, seed if method.startswith("dare") else None)


def merged_network(folders: Sequence[Path], way: Way, recipe: Recipe) -> Any:
    """A PEFT model of the base that holds the merge of some folders' adapters, as ``default``."""
    task = cast(Task, recipe.task)
    model = full_precision(recipe).model
    loaded = load(locate(model).folder, model, task.head, task.outputs, task.hf_problem, recipe.seed)
    names = {f"run-{place}": folder for place, folder in enumerate(folders)}
    network = joined(loaded.network, names)
    torch.manual_seed(way.seed or 0)
    weights = dict(zip(names, way.weights, strict=True))
    combine(network, weights, MERGED, way.method.replace("-", "_"), way.density)
    return network


def _prepared(run: Run, progress: Progress | None) -> Prepared:
    """A parent with its rows.

    Raises:
        StoreError: its base or its data are no longer what it was measured with.
    """
    prepared = prepare(parse_recipe(run.recipe), progress)
    check_base(run, prepared.base)
    if prepared.dataset.sha256 != read_document(run.folder / METRICS)["data"]["sha256"]:
        raise StoreError.of("run-data-changed", file=run.id, data=run.data)
    return prepared


def _made(runs: Sequence[Run], way: Way, recipe: Recipe) -> tuple[Any, Told]:
    network = merged_network([run.folder for run in runs], way, recipe)
    size = sum(p.numel() for name, p in network.named_parameters() if f".{MERGED}" in name)
    base: nn.Module = network.get_base_model()
    whole = sum(p.numel() for name, p in base.named_parameters() if "lora_" not in name and "modules_to" not in name)
    return network, Told(parameters=whole + size, trainable=size)


def _recipe(first: Run, config: Any) -> Recipe:
    """The first run's recipe, with the rank that the merge has; PEFT folds scales into the factors."""
    adaptation = {"kind": "lora", "rank": config.r, "alpha": config.r}
    return parse_recipe({**first.recipe, "adaptation": adaptation})


def _name(store: Store, name: str | None, found: Run | None) -> str:
    """The name for a merge that may have been ``found``, made or begun.

    Raises:
        StoreError: it cannot be one, or another run has it.
    """
    if name is None:
        return ""
    usable = name and not set(name) - NAME_LETTERS and len(name) <= NAME_LENGTH
    if not usable or name.startswith("-") or name == "latest":
        raise StoreError.of("run-name-unusable", key="--name", value=name, most=NAME_LENGTH)
    if found is None and any(run.id == name for run in store.list()):
        raise StoreError.of("run-name-taken", key="--name", value=name)
    return name


def _save(network: Any, prepared: Prepared, run: Run) -> None:
    draft, final = run.folder / ".draft-model", run.folder / MODEL
    if final.exists():
        return
    draft.mkdir(exist_ok=True)
    with explained(run.folder, 0), quiet():
        network.save_pretrained(draft, selected_adapters=[MERGED])
        prepared.tokenizer.save_pretrained(draft)
        publish(draft, final)


@dataclass(frozen=True)
class _Parents:
    runs: Sequence[Run]
    prepared: Sequence[Prepared]
    way: Way


def _proved(store: Store, run: Run, prepared: Prepared, told: Told, parents: _Parents) -> Proof:
    """Measure a merge and its parents, and write all that a run has."""
    way, sides = parents.way, []
    written = None
    for parent, own, weight in zip(parents.runs, parents.prepared, way.weights, strict=True):
        alone = measure(_evaluated(own, answers=0), parent.folder)
        after = measure(_evaluated(own, baseline=False), run.folder)
        sides.append(_side(parent, own, weight, alone, after))
        if written is None:
            written = document(prepared, run, told, replace(after, base=alone.base, baseline=alone.baseline))
    assert written is not None
    adaptation = cast(Any, prepared.adaptation)
    proof = Proof(method=way.method, density=way.density, seed=way.seed, rank=adaptation.rank, parents=sides)
    write_text(run.folder / PROOF, json.dumps(proof, ensure_ascii=False, indent=1) + "\n")
    write_text(run.folder / RECIPE, prepared.recipe.dump())
    store.add_artifact(run, "proof", run.folder / PROOF)
    done = publish_run(store, run, written)
    made = {"method": way.method, "parents": [parent.id for parent in parents.runs]}
    store.set_summary(done, {**done.summary, "merge": made})
    return proof


def _evaluated(prepared: Prepared, **settings: Any) -> Prepared:
    recipe = prepared.recipe
    evaluate = recipe.evaluate.model_copy(update=settings)
    return replace(prepared, recipe=recipe.model_copy(update={"evaluate": evaluate}))


def _side(parent: Run, prepared: Prepared, weight: float, alone: Measured, after: Measured) -> Side:
    task, recipe = prepared.task, prepared.recipe
    side = Side(run=parent.id, task=task.kind, weight=weight, rows=0, metric=task.headline, base={}, comparisons=[])
    if alone.tuned is None or after.tuned is None:  # nothing was held out
        return side
    resamples, lower = recipe.evaluate.bootstrap, task.lower_is_better
    side["rows"] = len(alone.tuned.row_R)
    if alone.base is not None:
        known = intervals(task.metrics, alone.base, resamples, recipe.seed)
        side["base"] = {name: compared(name, found, name in lower)["tuned"] for name, found in known.items()}
    results = paired_all(task.metrics, alone.tuned, after.tuned, resamples, recipe.seed, lower)
    side["comparisons"] = [compared(name, found, name in lower) for name, found in results.items()]
    return side
