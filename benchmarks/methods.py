"""Methods: every way to adapt a base, on the same rows, measured by the same rules.

Run as ``python -m benchmarks.methods``; ``--quick`` takes few rows, one rate and one seed, and writes nothing. Prints a
table for each setting, then one JSON line with the same figures; exits with 1 where a run that should train did not.
The whole form also writes ``src/onsa/programs/methods.json``, which ``onsa methods`` shows, and the tables between the
marks of ``docs/methods.md``.

Two settings: MiniLM sorting questions by topic, SmolLM2 answering technical questions. In each, every method gets the
same rows, epochs and batches, and the same search: its usual rate times 1/3, 1 and 3, on the first seed, the one with
the least validation loss being kept. Two more seeds are then run at that rate. Each method has a process of its own, of
one thread, as many at once as there are cores.

Columns: the metric on the held-out rows (mean over the seeds; 95 % percentile interval over resampled rows, not over
seeds); what trains; the process's peak memory with everything that Python has loaded; seconds an epoch (median); bytes
of what is saved; and losses on what nothing was tuned for, before and after (:mod:`benchmarks.forgetting`).
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["ONSA_LANG"] = "en"

import numpy as np

from benchmarks.forgetting import remembered
from onsa.evaluate.baselines import outcome_of, probe
from onsa.evaluate.bootstrap import TAILS
from onsa.evaluate.document import Document
from onsa.models.fetch import fetch
from onsa.models.heads import Head
from onsa.programs.demo import demos
from onsa.programs.measure import peak_memory, versions
from onsa.programs.methods import FAILED, MEASURED, Measured, Method, Refusal, Setting, caption, cells
from onsa.programs.prepare import Prepared, prepare
from onsa.programs.train import Finished, train
from onsa.serve.predictor import Predictor, load_run
from onsa.spec import registry
from onsa.spec.errors import ModelError, RecipeError, TrainingError
from onsa.spec.recipe import Recipe, parse_recipe
from onsa.store.home import home
from onsa.tasks.base import Outcome, Task

COMMAND = "python -m benchmarks.methods"
DOCS = Path("docs/methods.md")
SEEDS, FACTORS = (7, 8, 9), (1 / 3, 1.0, 3.0)
RESAMPLES, QUICK_RESAMPLES = 1000, 100
# Ways to set a kind that are methods of their own; every other kind of the axis comes as it is.
VARIANTS: dict[str, dict[str, Any]] = {
    "lora, dora": {"adaptation": {"kind": "lora", "dora": True}},
    "lora on nf4": {"adaptation": "lora", "model": {"quantize": "nf4"}},
    "loftq on nf4": {"adaptation": {"kind": "lora", "init": "loftq"}, "model": {"quantize": "nf4"}},
    "peft: adalora": {"adaptation": {"kind": "peft", "tuner": "adalora"}},
    "peft: vera": {"adaptation": {"kind": "peft", "tuner": "vera"}},
}


@dataclass(frozen=True)
class Case:
    """A setting of the benchmark.

    rows, quick_rows: of the file that are used, ``None`` is all; some are taken from the shorter half, spread over the
        file, so that the table takes an hour where nothing computes bf16.
    split: how they are dealt to the three sides.
    """

    name: str
    metric: str
    recipe: dict[str, Any]
    rows: int | None
    split: str
    quick_rows: int


CASES = (
    Case(
        "topics",
        "f1_macro",
        {"model": {"name": "minilm-l6"}, "task": "text-classification", "train": {"epochs": 4, "batch_rows": 16}},
        rows=None,
        split="6:1:3",
        quick_rows=120,
    ),
    Case(
        "support",
        "loss",
        {"model": {"name": "smollm2-135m"}, "task": "chat", "train": {"epochs": 2, "batch_tokens": 256}},
        rows=48,
        split="5:1:4",
        quick_rows=12,
    ),
)


@dataclass
class Trial:
    """One run: the least loss on its validation rows, and what it cost."""

    rate: float
    seed: int
    validation: float
    document: Document
    load: Callable[[], Predictor]


@dataclass(frozen=True)
class Order:
    """What one process does: a method in a setting."""

    case: Case
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    quick: bool = False


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("--quick", action="store_true", help="few rows, one rate, one seed; nothing is written")
    parser.add_argument("--only", action="append", help="a method by its name; may be repeated; nothing is written")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    for name in ("minilm-l6", "smollm2-135m"):
        fetch(name)
    scratch(), given()  # before there are processes, which would each write the demo's files anew
    orders = [
        Order(case, name, settings, asked.quick)
        for case in CASES
        for name, settings in methods()
        if not asked.only or name in asked.only
    ]
    started = datetime.now(UTC)
    # Forked, so that libraries are loaded once; a process ends with its method, so that its peak memory is its own.
    with multiprocessing.get_context("fork").Pool(asked.workers, maxtasksperchild=1) as pool:
        found = []
        for order, result in zip(orders, pool.imap(measured, orders), strict=True):
            print(f"{order.case.name}: {order.method}: {result['refused'] or 'done'}", file=sys.stderr, flush=True)
            found.append(result)
    document = Measured(
        date=started.date().isoformat(),
        command=f"{COMMAND} --quick" if asked.quick else COMMAND,
        minutes=round((datetime.now(UTC) - started).total_seconds() / 60, 1),
        versions=versions(),
        settings=[_setting(case, orders, found, asked.quick) for case in CASES],
    )
    for setting in document["settings"]:
        print(table_text(setting))
    failed = any(result["refused"] and result["refused"]["code"] == FAILED for result in found)
    if not asked.quick and not asked.only and not failed:
        MEASURED.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        _document(document)
    print(json.dumps(document))
    return int(failed)


@cache
def scratch() -> Path:
    """A folder for parts of files, which goes with the process that asked for it first."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def given() -> dict[str, Recipe]:
    """The demo's recipes, whose data the settings take."""
    return {demo.name: demo.recipe for demo in demos()}


def methods() -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the recipe's sections of every method; ``base`` first."""
    yield "base", {}
    for kind in registry.kinds("adaptation"):
        if kind != "peft":
            yield kind, {"adaptation": kind}
    yield from VARIANTS.items()


def measured(order: Order) -> Method:
    """Search, run and measure one method; a refusal is a result too."""
    with tempfile.TemporaryDirectory() as folder:
        real = home()
        os.environ["ONSA_HOME"] = folder
        for name in ("models", "demo"):
            (Path(folder) / name).symlink_to(real / name)
        try:
            return _base(order) if order.method == "base" else _method(order)
        except (RecipeError, ModelError) as error:
            values = {name: str(value) for name, value in error.problems[0].values.items()}
            return _empty(order, Refusal(code=error.problems[0].code, values=values))
        except Exception as error:  # what went wrong is told with the method's name, and the others go on
            traceback.print_exc()
            return _empty(order, Refusal(code=FAILED, values={"reason": f"{type(error).__name__}: {error}"}))


def _method(order: Order) -> Method:
    prepared = prepare(_recipe(order, SEEDS[0]))  # rows and tokens hang on no seed
    usual = prepared.recipe.optimizer
    rates: dict[str, float] = {name: getattr(usual, name) for name in ("lr", "lr_new")}
    factors = (1.0,) if order.quick else FACTORS
    searched = [_trial(order, prepared, SEEDS[0], rates, factor) for factor in factors]
    best = min((trial for trial in searched if trial), key=lambda trial: trial.validation)
    factor = factors[searched.index(best)]
    more = () if order.quick else SEEDS[1:]
    found = [best, *(_trial(order, prepared, seed, rates, factor) for seed in more)]
    trials = [trial for trial in found if trial]
    assert len(trials) == len(found), f"{order.method} ran away at its best rate with another seed"
    outcomes, known = [], []
    for trial in trials:
        model = trial.load()
        outcomes.append(outcome_of(model.policy, prepared.task, prepared.examples["test"], prepared.plan))
        known.append(remembered(model, order.quick))
        del model
        gc.collect()  # a network holds itself in cycles, and would be counted into the next one's memory
    value, low, high = interval(prepared.task, order.case.metric, outcomes, _resamples(order))
    figures = best.document["figures"]
    epochs = prepared.recipe.train.epochs or 1
    return Method(
        method=order.method,
        refused=None,
        quality=[value, low, high],
        trainable=figures["trainable_parameters"],
        share=figures["trainable_parameters"] / figures["parameters"],
        peak_memory_bytes=peak_memory("cpu"),
        seconds_an_epoch=statistics.median(trial.document["figures"]["seconds"] / epochs for trial in trials),
        saved_bytes=figures["adapter_bytes"],
        remembered={name: statistics.mean(losses[name] for losses in known) for name in known[0]},
        rate=best.rate,
        factor=factor,
    )


def _trial(order: Order, prepared: Prepared, seed: int, usual: dict[str, float], factor: float) -> Trial | None:
    rates = {name: rate * factor for name, rate in usual.items()}
    try:
        *_, last = train(_recipe(order, seed, optimizer={"kind": "adamw", **rates}), fresh=True)
    except TrainingError:  # at such a rate it runs away
        return None
    assert isinstance(last, Finished)
    load = partial(load_run, last.run.folder, parse_recipe(last.run.recipe))
    losses = [entry["metrics"]["loss"] for entry in last.document["history"]["evaluations"]]
    least = min(loss for loss in losses if loss is not None)
    return Trial(rates["lr"], seed, least, last.document, load)


def _base(order: Order) -> Method:
    """The base without tuning: a probe on its embeddings, or the language model as it is."""
    prepared = prepare(_recipe(order, SEEDS[0]))
    model = load_run(Path(), prepared.recipe, tuned=False)
    test, task = prepared.examples["test"], prepared.task
    if task.head is Head.ROWS:
        outcome = probe(model.policy, task, prepared.examples["train"], test, prepared.plan, SEEDS[0])
    else:
        outcome = outcome_of(model.policy, task, test, prepared.plan)
    quality = interval(task, order.case.metric, [outcome], _resamples(order))
    return {**_empty(order, None), "quality": list(quality), "remembered": remembered(model, order.quick)}


def _resamples(order: Order) -> int:
    return QUICK_RESAMPLES if order.quick else RESAMPLES


def interval(
    task: Task, metric: str, outcomes: Sequence[Outcome], resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """A metric's mean over runs, and its 95 % interval where the held-out rows are drawn anew (the same for each)."""
    dice = np.random.default_rng(SEEDS[0])
    rows = len(outcomes[0].row_R)

    def mean(index: Any) -> float:
        return statistics.mean(task.metrics(outcome.take(index))[metric] for outcome in outcomes)

    draws = [mean(dice.integers(rows, size=rows)) for _ in range(resamples)]
    low, high = np.percentile(draws, TAILS)
    return mean(np.arange(rows)), float(low), float(high)


def _recipe(order: Order, seed: int, **more: Any) -> Recipe:
    case, model = order.case, {**order.case.recipe["model"], **order.settings.get("model", {})}
    epochs = {"epochs": 1} if order.quick else {}
    values = {
        **case.recipe,
        "data": _data(order),
        "adaptation": order.settings.get("adaptation", "lora"),
        "model": model,
        "train": {**case.recipe["train"], **epochs},
        "engine": {"kind": "local", "device": "cpu", "threads": 1},
        "evaluate": {"baseline": False, "answers": 0, "bootstrap": 100},
        "seed": seed,
        **more,
    }
    return parse_recipe(values)


def _data(order: Order) -> dict[str, Any]:
    """The demo's file of this setting, with as many rows, spread over the file, as the setting takes."""
    source = given()[order.case.name].data
    path = Path(source.path)
    rows = order.case.quick_rows if order.quick else order.case.rows
    if rows is not None:
        lines = path.read_text(encoding="utf-8").splitlines()
        header = lines[: 1 if path.suffix == ".csv" else 0]
        told = lines[len(header) :]
        middle = sorted(map(len, told))[len(told) // 2]
        short = [line for line in told if len(line) <= middle]
        spread = np.linspace(0, len(short) - 1, rows).round().astype(int)
        path = scratch() / f"{rows}-{path.name}"
        path.write_text("\n".join([*header, *(short[index] for index in spread)]) + "\n", encoding="utf-8")
    return {"path": str(path), "columns": source.columns, "split": order.case.split}


def _empty(order: Order, refused: Refusal | None) -> Method:
    return Method(
        method=order.method,
        refused=refused,
        quality=None,
        trainable=0,
        share=0.0,
        peak_memory_bytes=None,
        seconds_an_epoch=None,
        saved_bytes=None,
        remembered={},
        rate=None,
        factor=None,
    )


def _setting(case: Case, orders: Sequence[Order], found: Sequence[Method], quick: bool) -> Setting:
    prepared = prepare(_recipe(Order(case, "base", quick=quick), SEEDS[0]))
    train_ = prepared.recipe.train
    return Setting(
        name=case.name,
        model=prepared.recipe.model.name,
        metric=case.metric,
        lower_is_better=case.metric in prepared.task.lower_is_better,
        rows={side: len(rows) for side, rows in prepared.dataset.sides.items()},
        epochs=train_.epochs or 0,
        precision=train_.precision or "",
        seeds=1 if quick else len(SEEDS),
        methods=[method for order, method in zip(orders, found, strict=True) if order.case is case],
    )


def table_text(setting: Setting) -> str:
    """A table as aligned lines."""
    heading, rows = cells(setting)
    lines = [heading, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(heading))]
    padded = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([caption(setting), *padded, ""])


def markdown(measured: Measured) -> str:
    """All tables as Markdown."""
    found = measured["versions"]
    said = [
        f"Measured on {measured['date']} with `{measured['command']}` in {measured['minutes']} minutes: "
        f"Onsa {found['onsa']}, Python {found['python']}, torch {found['torch']}, "
        f"transformers {found['transformers']}, PEFT {found['peft']}, {found['platform']}.\n"
    ]
    for setting in measured["settings"]:
        heading, rows = cells(setting)
        said.append(f"### {caption(setting)}\n")
        said += [_line(heading), _line(["---"] * len(heading)), *map(_line, rows)]
        said.append("")
    return "\n".join(said) + "\n"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _document(measured: Measured) -> None:
    """Put the tables between the marks of the page."""
    start, end = "<!-- measured -->\n", "<!-- /measured -->"
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(start)
    _, _, after = rest.partition(end)
    DOCS.write_text(f"{before}{start}{markdown(measured)}{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
