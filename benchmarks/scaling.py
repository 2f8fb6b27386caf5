"""Scaling: what a token costs as rows grow longer, and what memory and preparation cost as there are more rows.

Run as ``python -m benchmarks.scaling``; ``--quick`` takes fewer points. Prints two tables, then one JSON line with the
same figures, and writes the plots of ``docs/performance.md`` unless it is quick.

Lengths: LoRA (rank 8) on SmolLM2-135M, steps of 2,048 tokens cut into rows of one length; the median of three steps
after one that is not counted. Rows: made-up rows of a dozen words with one of ten labels are read, judged, split and
encoded for MiniLM, and two steps are taken; each size has a process of its own, and is prepared twice: anew, and with
its encoded rows on disk.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from onsa.engine.batches import micro_batches
from onsa.models.batch import Example
from onsa.models.load import quiet
from onsa.programs.demo import demos
from onsa.programs.forecast import build, work
from onsa.programs.measure import peak_memory, versions
from onsa.programs.prepare import prepare
from onsa.sources.base import Cursor
from onsa.spec.recipe import parse_recipe

LENGTHS, QUICK_LENGTHS = (64, 128, 256, 512, 1024, 2048), (64, 512)
SIZES, QUICK_SIZES = (1_000, 10_000, 100_000, 1_000_000), (1_000, 10_000)
STEP_TOKENS, STEPS = 2048, 3
FOLDER = Path("docs")
WIDTH, HEIGHT, EDGE, RIGHT = 460, 260, 52, 36


@dataclass(frozen=True)
class Point:
    """One size's figures: seconds to prepare anew and again, and the most memory of each process, in bytes."""

    rows: int
    anew_s: float
    again_s: float
    anew_bytes: int
    again_bytes: int


def token_cost(lengths: Sequence[int]) -> list[tuple[int, float]]:
    """Milliseconds of a token in a training step, by the length of rows."""
    path = next(demo.recipe.data.path for demo in demos() if demo.name == "support")
    recipe = parse_recipe(
        {
            "model": "smollm2-135m",
            "data": path,
            "task": "chat",
            "adaptation": {"kind": "lora", "rank": 8},
            "train": {"batch_tokens": STEP_TOKENS, "epochs": 1, "max_length": STEP_TOKENS},
        }
    )
    with quiet():
        prepared = prepare(recipe)
    dice = np.random.default_rng(7)
    found = []
    for length in lengths:
        rows = [_row(dice, length, index) for index in range(STEP_TOKENS // length)]
        # The way to attend is chosen for these lengths, as it would be for data that have them.
        with quiet():
            plan = replace(prepared.plan, lengths=(length,) * len(rows), padding=0.0)
            built = build(replace(prepared, plan=plan))
        session = prepared.engine.open(work(built))
        spent = []
        for _ in range(STEPS + 1):
            started = time.perf_counter()
            session.forward_backward(micro_batches(rows, built.prepared.plan, 1), prepared.recipe.objective)
            session.step()
            spent.append(time.perf_counter() - started)
        found.append((length, 1000 * statistics.median(spent[1:]) / STEP_TOKENS))
        print(f"{length:>9} {found[-1][1]:>12.2f} {built.prepared.plan.attention:>22}", flush=True)
    return found


def _row(dice: np.random.Generator, length: int, index: int) -> Example:
    """Tokens at random, the second half of which trains."""
    weight_T = np.zeros(length, np.float32)
    weight_T[length // 2 :] = 1
    return Example(dice.integers(100, 40_000, length).astype(np.int32), weight_T, row=index)


def prepared_with(path: str, home: str) -> tuple[float, int]:
    """Seconds to prepare a run over a file and take two steps of it, and the most memory that took."""
    os.environ["ONSA_HOME"] = home
    recipe = parse_recipe(
        {
            "model": "minilm-l6",
            "data": path,
            "task": "text-classification",
            "adaptation": "full",
            "train": {"batch_rows": 16, "epochs": 1, "max_steps": 2},
        }
    )
    started = time.perf_counter()
    with quiet():
        built = build(prepare(recipe))
        session = built.prepared.engine.open(work(built))
    prepared = built.prepared
    for examples, _ in islice(prepared.source.steps(prepared.feed, Cursor()), 2):
        session.forward_backward(micro_batches(examples, prepared.plan, 1), prepared.recipe.objective)
        session.step()
    return time.perf_counter() - started, peak_memory("cpu")


def row_cost(sizes: Sequence[int]) -> list[Point]:
    """What more rows cost."""
    from onsa.store.home import home

    words = [f"word{index}" for index in range(5000)]
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "models").symlink_to(home() / "models")
            path = Path(folder, "rows.csv")
            dice = np.random.default_rng(size)
            with path.open("w", encoding="utf-8") as file:
                file.write("text,label\n")
                for index in range(size):
                    text = " ".join(words[place] for place in dice.integers(len(words), size=12))
                    file.write(f"{text},label{index % 10}\n")
            told = []
            for _ in range(2):
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                    told.append(alone.submit(prepared_with, str(path), folder).result())
        (anew_s, anew), (again_s, again) = told
        found.append(Point(size, anew_s, again_s, anew, again))
        print(f"{size:>9} {anew_s:>9.1f} {again_s:>9.1f} {anew / 1e6:>10.0f} {again / 1e6:>10.0f}", flush=True)
    return found


def plot(title: str, lines: dict[str, list[tuple[float, float]]], names: tuple[str, str]) -> str:
    """Some lines over a logarithmic axis, as an SVG that stands by itself."""
    xs = [np.log10(x) for line in lines.values() for x, _ in line]
    top = 1.1 * max(y for line in lines.values() for _, y in line)
    low, high = min(xs), max(xs)

    def at(x: float, y: float) -> str:
        across = EDGE + (np.log10(x) - low) / max(high - low, 1e-9) * (WIDTH - EDGE - RIGHT)
        return f"{across:.1f},{HEIGHT - 40 - y / top * (HEIGHT - 80):.1f}"

    parts = [f'<text x="{WIDTH / 2}" y="18" text-anchor="middle" font-weight="bold">{title}</text>']
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">{names[0]}</text>')
    parts.append(f'<text x="{EDGE - 6}" y="34" text-anchor="end">{names[1]}</text>')
    for share in (0.0, 0.5, 1.0):
        value = share * top / 1.1
        x, y = at(10**low, value).split(",")
        parts.append(f'<line x1="{x}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#ccc"/>')
        parts.append(
            f'<text x="{EDGE - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{value:,.{0 if top >= 100 else 2}f}</text>'
        )
    for colour, (name, line), place in zip(("#1f6feb", "#d1570b"), lines.items(), (0, 1), strict=False):
        parts.append(f'<polyline points="{" ".join(at(x, y) for x, y in line)}" fill="none" stroke="{colour}"/>')
        for x, y in line:
            across, down = at(x, y).split(",")
            parts.append(f'<circle cx="{across}" cy="{down}" r="3" fill="{colour}"/>')
        if len(lines) > 1:
            parts.append(
                f'<text x="{WIDTH - RIGHT - 4}" y="{36 + 15 * place}" text-anchor="end" fill="{colour}">{name}</text>'
            )
    for x in sorted({x for line in lines.values() for x, _ in line}):
        across, _ = at(x, 0).split(",")
        parts.append(f'<text x="{across}" y="{HEIGHT - 24}" text-anchor="middle">{x:,.0f}</text>')
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'{frame} font-family="sans-serif" font-size="11">{ground}{"".join(parts)}</svg>'


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer points; nothing is written")
    quick = parser.parse_args().quick
    print(f"{'tokens':>9} {'ms a token':>12} {'attention':>22}")
    costs = token_cost(QUICK_LENGTHS if quick else LENGTHS)
    print(f"\n{'rows':>9} {'anew, s':>9} {'again, s':>9} {'anew, MB':>10} {'again, MB':>10}")
    points = row_cost(QUICK_SIZES if quick else SIZES)
    if not quick:
        lines = {"training": [(float(length), cost) for length, cost in costs]}
        title = "A token's cost in a training step"
        (FOLDER / "scaling-length.svg").write_text(plot(title, lines, ("tokens of a row", "ms")), encoding="utf-8")
        memory = {
            "anew": [(float(point.rows), point.anew_bytes / 1e6) for point in points],
            "again": [(float(point.rows), point.again_bytes / 1e6) for point in points],
        }
        title = "Memory to prepare a run"
        (FOLDER / "scaling-rows.svg").write_text(plot(title, memory, ("rows", "MB")), encoding="utf-8")
    document: dict[str, Any] = {
        "benchmark": "scaling",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": dict(versions()),
        "lengths": costs,
        "rows": [vars(point) for point in points],
    }
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
