"""Adapters: finished runs that lie beside one base, and how a user names one, or a stack of several (``A+B``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

from onsa.adaptations.base import CONFIG
from onsa.evaluate.document import read_document
from onsa.models.fetch import Located, locate
from onsa.programs.report import METRICS
from onsa.serve.adapters import Adapter, obstacles, settings
from onsa.serve.predictor import MODEL
from onsa.spec.errors import Problem, StoreError
from onsa.spec.recipe import Recipe, parse_recipe
from onsa.store.run import Run, State
from onsa.store.runs import Store
from onsa.tasks.base import Task

STACK = "+"


@dataclass(frozen=True)
class Family:
    """The adapters over one base, the newest first; ``sha256`` is that of the base's weights."""

    base: str
    sha256: str
    runs: tuple[Run, ...]


def families() -> list[Family]:
    """Every finished adapter, by base."""
    with Store() as store:
        found = [run for run in store.list() if run.state is State.FINISHED and is_adapter(run)]
    groups: dict[str, list[Run]] = {}
    for run in found:
        groups.setdefault(base_hash(run), []).append(run)
    return [Family(runs[0].model, sha256, tuple(runs)) for sha256, runs in groups.items()]


def is_adapter(run: Run) -> bool:
    """Whether what a run left are PEFT's files, and measured."""
    return (run.folder / MODEL / CONFIG).is_file() and (run.folder / METRICS).is_file()


def base_hash(run: Run) -> str:
    """The SHA-256 of the base's weights that a run was measured with."""
    return read_document(run.folder / METRICS)["model"]["sha256"]


def check_base(run: Run, base: Located) -> None:
    """Make sure that a base, as it is now, is the one that a run was measured with.

    Raises:
        StoreError: its weights are others.
    """
    if base.sha256 != base_hash(run):
        raise StoreError.of("run-base-changed", file=run.id, base=run.model, folder=base.folder)


def stored_bytes(run: Run) -> int:
    """What a run's adapter takes on disk."""
    return sum(path.stat().st_size for path in (run.folder / MODEL).glob("*.safetensors"))


def find_adapters(refs: Sequence[str]) -> list[Run]:
    """Runs over one base, by reference, each once.

    Raises:
        StoreError: no such run, one that is no adapter, or one over another base.
    """
    with Store() as store:
        found = {run.id: run for run in (store.find(ref) for ref in refs)}
    runs = list(found.values())
    for run in runs:
        if not is_adapter(run):
            code = "run-without-model" if run.state is not State.FINISHED else "run-not-adapter"
            raise StoreError.of(code, file=run.id, adaptation=run.adaptation)
    first = runs[0]
    for run in runs[1:]:
        if base_hash(run) != base_hash(first):
            raise StoreError.of(
                "adapters-bases-differ", file=run.id, first=first.id, base=run.model, first_base=first.model
            )
    return runs


def is_stack(ref: str) -> bool:
    """Whether a reference means several runs at once."""
    return STACK in ref and not Path(ref).exists()


def adapters(refs: Sequence[str]) -> dict[str, Adapter]:
    """What references mean, each a run or a stack of runs joined by ``+``.

    Raises:
        StoreError: as :func:`find_adapters`, a base that has changed, or a stack of adapters that cannot be added up.
    """
    parts = {ref: ref.split(STACK) if is_stack(ref) else [ref] for ref in refs}
    for run in find_adapters([part for several in parts.values() for part in several]):
        check_base(run, locate(parse_recipe(run.recipe).model))
    named = {}
    for ref, several in parts.items():
        runs = find_adapters(several)
        if len(runs) > 1:
            composable(runs)
        name = STACK.join(run.id for run in runs)
        named[ref] = Adapter(name, tuple(run.folder for run in runs), parse_recipe(runs[0].recipe))
    return named


def composable(runs: Iterable[Run]) -> list[Task]:
    """The tasks of runs whose adapters can become one.

    Raises:
        StoreError: one is not LoRA in its plain form, or their heads, what else they train, or how they hold the base
            do not fit each other.
    """
    tasks: list[tuple[Run, Task]] = []
    copied: set[tuple[str, ...]] = set()
    held: dict[str, Run] = {}
    for run in runs:
        recipe = parse_recipe(run.recipe)
        if unlike := obstacles(run.folder, recipe):
            raise StoreError.of("adapter-not-plain", file=run.id, settings=", ".join(unlike))
        copied.add(tuple(sorted(set(settings(run.folder).get("modules_to_save") or ()))))
        if len(copied) > 1:
            names = sorted(set(chain(*copied)))
            raise StoreError.of("adapters-copies-differ", file=run.id, modules=", ".join(names))
        held.setdefault(recipe.model.quantize or "null", run)
        if len(held) > 1:
            (usual, holder), (value, _) = held.items()
            values = {"value": value, "first": holder.id, "first_value": usual}
            raise StoreError(Problem("adapters-quantised-unlike", values, file=run.id))
        tasks.append((run, cast(Task, recipe.task)))
    first, task = tasks[0]
    for run, other in tasks[1:]:
        if (task.head, task.outputs, task.hf_problem) != (other.head, other.outputs, other.hf_problem):
            raise StoreError.of(
                "adapters-heads-differ", file=run.id, first=first.id, task=_predicts(task), other=_predicts(other)
            )
    return [task for _, task in tasks]


def full_precision(recipe: Recipe) -> Recipe:
    """A recipe over the base's own weights, where it quantises them."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"quantize": None})})


def document(family: Family) -> dict[str, Any]:
    """A family as plain JSON values."""
    return {"base": family.base, "sha256": family.sha256, "adapters": [_document(run) for run in family.runs]}


def _document(run: Run) -> dict[str, Any]:
    made = run.summary.get("merge")
    return {
        "id": run.id,
        "task": run.task,
        "method": run.adaptation if made is None else made["method"],
        "parents": [] if made is None else made["parents"],
        "metric": run.summary.get("metric"),
        "tuned": run.summary.get("tuned"),
        "base": run.summary.get("base"),
        "bytes": stored_bytes(run),
        "created": run.created.isoformat(),
        "folder": str(run.folder),
    }


def _predicts(task: Task) -> str:
    """What a task predicts, as a few words of its own settings."""
    return f"{task.kind} ({', '.join(task.outputs)})" if task.outputs else task.kind
