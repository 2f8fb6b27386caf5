"""QLoRA: LoRA on a base in full precision, in NF4 (also beginning with LoftQ) and in 8 bits, under one short budget.

Run as ``python -m benchmarks.qlora``; ``--quick`` takes fewer steps and one seed. Prints a table, then one JSON line
with the same figures, and exits with 1 where one is out of tolerance.

SmolLM2-135M learns the shorter support answers of the demo for two epochs, in the precision that Onsa chooses for the
machine, with three seeds: each scheme has the same rows, in each seed's order, with each seed's initial adapter. Stated
are the losses on the validation rows before and after (means over the seeds) and the ratio to LoRA's with its extremes;
the bytes that the quantised matrices take with their scales, as a share of what they take in bf16; the bytes of the
whole base; and the most memory that the process held, each scheme having a process of its own. That peak is reached
while the weights are read in fp32, so it says what a machine needs, not what training keeps.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from onsa.engine.batches import micro_batches
from onsa.models.load import quiet
from onsa.models.quantize import count, held_bytes, is_quantised
from onsa.programs.demo import demos
from onsa.programs.forecast import build, work
from onsa.programs.measure import peak_memory
from onsa.programs.prepare import prepare
from onsa.sources.base import Cursor
from onsa.spec.recipe import parse_recipe

# By name: how the base is quantised, and what A and B begin from.
SCHEMES = {
    "full": (None, "default"),
    "nf4": ("nf4", "default"),
    "nf4, loftq": ("nf4", "loftq"),
    "int8": ("int8", "default"),
}
SEEDS = (7, 8, 9)
QUICK_STEPS = 4
EPOCHS, ROWS, ROWS_A_STEP, SPLIT = 2, 120, 4, "2:1:0"
LOSS_RATIO, BYTES_SHARE = 1.03, {"nf4": 0.30, "nf4, loftq": 0.30, "int8": 0.51}
BF16_BYTES = 2


@dataclass(frozen=True)
class Result:
    """One scheme's figures, losses by seed; ``quantised_bytes`` and ``bf16_bytes`` are of the same matrices."""

    scheme: str
    precision: str
    steps: int
    loss_before: list[float]
    loss_after: list[float]
    quantised_bytes: int
    bf16_bytes: int
    base_bytes: int
    peak_bytes: int


def measured(scheme: str, path: str, steps: int | None, seeds: Sequence[int]) -> Result:
    """Tune once a seed."""
    results = [_tuned(scheme, path, steps, seed) for seed in seeds]
    before, after = ([loss for one in results for loss in getattr(one, name)] for name in ("loss_before", "loss_after"))
    return replace(results[-1], loss_before=before, loss_after=after)


def _tuned(scheme: str, path: str, steps: int | None, seed: int) -> Result:
    quantize, init = SCHEMES[scheme]
    recipe = parse_recipe(
        {
            "model": {"name": "smollm2-135m", "quantize": quantize},
            "data": {"path": path, "split": SPLIT},
            "task": "chat",
            "adaptation": {"kind": "lora", "rank": 8, "init": init},
            "optimizer": {"kind": "adamw", "lr": 1e-3},
            "train": {"batch_rows": ROWS_A_STEP, "epochs": EPOCHS, "max_steps": steps},
            "seed": seed,
        }
    )
    with quiet():
        prepared = prepare(recipe)
        built = build(prepared)
    base = [p for p in built.network.parameters() if not p.requires_grad]
    session = prepared.engine.open(work(built))

    def loss() -> float:
        return float(prepared.task.metrics(session.evaluate(prepared.examples["validation"], prepared.task))["loss"])

    before = loss()
    for examples, _ in prepared.source.steps(prepared.feed, Cursor()):
        session.forward_backward(micro_batches(examples, prepared.plan, 1), prepared.recipe.objective)
        session.step()
    packed = [p for p in base if is_quantised(p)]
    return Result(
        scheme=scheme,
        precision=prepared.recipe.train.precision or "",
        steps=prepared.total,
        loss_before=[before],
        loss_after=[loss()],
        quantised_bytes=sum(map(held_bytes, packed)),
        bf16_bytes=sum(map(count, packed)) * BF16_BYTES,
        base_bytes=sum(map(held_bytes, base)),
        peak_bytes=peak_memory(prepared.plan.device),
    )


def ratios(one: Result, plain: Result) -> list[float]:
    """The loss after tuning by LoRA's, seed by seed."""
    return [mine / theirs for mine, theirs in zip(one.loss_after, plain.loss_after, strict=True)]


def faults(results: list[Result]) -> list[str]:
    """What is out of tolerance."""
    plain, *others = results
    found = [] if mean(plain.loss_after) < mean(plain.loss_before) else ["LoRA learnt nothing"]
    for one in others:
        if mean(ratios(one, plain)) > LOSS_RATIO:
            found.append(f"{one.scheme}: loss {mean(ratios(one, plain)):.3f} times LoRA's")
        if one.quantised_bytes > BYTES_SHARE[one.scheme] * one.bf16_bytes:
            found.append(f"{one.scheme}: {one.quantised_bytes / one.bf16_bytes:.3f} of the bytes in bf16")
    return found


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.qlora", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps of one seed")
    quick = parser.parse_args().quick
    steps, seeds = (QUICK_STEPS, SEEDS[:1]) if quick else (None, SEEDS)
    lines = Path(next(d.recipe.data.path for d in demos() if d.name == "support")).read_text(encoding="utf-8")
    rows = sorted(lines.splitlines(), key=len)[:ROWS]
    results: list[Result] = []
    print(f"{'base':<10} {'before':>8} {'after':>8} {'ratio':>22} {'bytes / bf16':>12} {'base, MB':>9} {'peak, MB':>9}")
    with TemporaryDirectory() as folder:
        path = Path(folder, "short.jsonl")
        path.write_text("\n".join(rows), encoding="utf-8")
        for scheme in SCHEMES:
            with multiprocessing.get_context("spawn").Pool(1) as alone:
                found = alone.apply(measured, (scheme, str(path), steps, seeds))
            results.append(found)
            share = f"{found.quantised_bytes / found.bf16_bytes:.3f}" if found.bf16_bytes else "-"
            by_seed = ratios(found, results[0])
            ratio = f"{mean(by_seed):.4f} [{min(by_seed):.3f}, {max(by_seed):.3f}]"
            losses = f"{mean(found.loss_before):>8.4f} {mean(found.loss_after):>8.4f}"
            print(
                f"{found.scheme:<10} {losses} {ratio:>22} {share:>12}"
                f" {found.base_bytes / 1e6:>9.1f} {found.peak_bytes / 1e6:>9.0f}",
                flush=True,
            )
    wrong = faults(results)
    for fault in wrong:
        print(f"OUT OF TOLERANCE: {fault}")
    document: dict[str, Any] = {"benchmark": "qlora", "holds": not wrong, "results": [asdict(one) for one in results]}
    print(json.dumps(document))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
