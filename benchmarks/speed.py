"""Speed: Onsa's training against peers, on the same weights, rows and steps.

Run as ``python -m benchmarks.speed``; ``--quick`` takes few steps and one repeat, ``--only NAME`` one row of the table.
Prints a table, then one JSON line with the same figures. It exits with 1 where a *result* is wrong (the losses of the
exact comparison differ, or a side failed), never for a time.

Every measurement has a process of its own (:mod:`benchmarks.speed_side`), with as many threads as there are cores; ours
and the peers' alternate, and medians are shown. Speeds are of whole steps, data loading included: trained tokens a
second for chat, rows a second for classification. Chat skips the first step of both sides; classification counts all,
so that what is computed once (the filling of the frozen boundary) is in the figure. Both sides get rows that are
tokenised already. Beside the speed stand the ratio of the processes' peak memory; the share of a large matrix product's
rate that the model's own operations reach ("limit"); and the seconds from the command to the end of the first step,
ours with reading and tokenising, the peers' without.

TRL computes in bf16 unless told otherwise, also where the processor has none in hardware. There a step of its defaults
takes minutes, so it is given a single step of two short rows. At its best TRL has the precision that is fastest here,
no recomputation, and rows grouped by length or drawn at random, whichever is faster.

SetFit's default head is a logistic regression on frozen sentence embeddings, so that computation stands for it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

REPEATS = 3
Found = dict[str, list[dict[str, Any]]]  # by side, what each of its processes told
TOLERANCE = 1e-4  # of losses, step for step, relative


@dataclass(frozen=True)
class Row:
    """A row of the table: a work, the peers it is held against (the fastest counts), and the ratio aimed at."""

    name: str
    work: str
    peers: tuple[str, ...]
    goal: float


ROWS = (
    Row("LoRA SFT, TRL defaults", "lora", ("trl-default",), 8.0),
    Row("LoRA SFT, TRL at its best", "lora", ("trl-grouped", "trl-random"), 6.0),
    Row("LoRA SFT fp32, equal losses", "lora-exact", ("trl-sequential",), 2.5),
    Row("full SFT, TRL defaults", "full", ("trl-default",), 4.0),
    Row("QLoRA nf4, TRL + bitsandbytes", "qlora", ("trl-grouped",), 2.0),
    Row("topics full, Trainer", "topics-full", ("trainer",), 4.0),
    Row("topics LoRA, Trainer", "topics-lora", ("trainer",), 4.0),
    Row("topics last 2 layers, Trainer", "topics-last-layers", ("trainer",), 8.0),
    Row("topics head, Trainer", "topics-head", ("trainer",), 20.0),
    Row("topics head, logistic regression", "topics-head", ("logistic",), 1.0),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, one repeat")
    parser.add_argument("--only", action="append", help="a row by its work's name; may be repeated")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    asked = parser.parse_args()
    chosen = [row for row in ROWS if not asked.only or row.work in asked.only]
    started = datetime.now(UTC)
    print(f"{'work':<34} {'against':<14} {'ours':>9} {'theirs':>9} {'ratio':>7} {'goal':>5} {'':<6}", end="")
    print(f" {'memory':>7} {'limit':>6} {'first step, s':>14}")
    results, wrong = [], []
    with tempfile.TemporaryDirectory() as folder:
        for work in dict.fromkeys(row.work for row in chosen):
            rows = [row for row in chosen if row.work == work]
            sides = ("ours", *dict.fromkeys(peer for row in rows for peer in row.peers))
            found = measured(work, sides, Path(folder), 1 if asked.quick else asked.repeats, asked.quick)
            for row in rows:
                result = compared(row, found)
                results.append(result)
                wrong += result["wrong"]
                print(line(result), flush=True)
    for fault in wrong:
        print(f"WRONG: {fault}")
    minutes = round((datetime.now(UTC) - started).total_seconds() / 60, 1)
    facts = {"date": started.date().isoformat(), "minutes": minutes, "quick": asked.quick, "threads": os.cpu_count()}
    print(json.dumps({"benchmark": "speed", **facts, **machine(), "rows": results, "wrong": wrong}))
    return 1 if wrong else 0


def machine() -> dict[str, Any]:
    """What was measured with, and on."""
    from onsa.models.precision import has_fast_bf16
    from onsa.programs.measure import versions

    return {"versions": dict(versions()), "fast_bf16": has_fast_bf16("cpu")}


def measured(
    work: str, sides: Sequence[str], folder: Path, repeats: int, quick: bool
) -> dict[str, list[dict[str, Any]]]:
    """Every side's measurements, taken in turns."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            found[side].append(once(work, side, folder / work, quick))
    return found


def once(work: str, side: str, folder: Path, quick: bool) -> dict[str, Any]:
    """One side in a process of its own."""
    folder.mkdir(exist_ok=True)
    order = json.dumps({"work": work, "side": side, "folder": str(folder), "quick": quick})
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.speed_side", order],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said, complaint = process.communicate()
    if process.returncode != 0:
        last = (complaint.strip().splitlines() or ["no word"])[-1]
        return {"failed": last}
    result: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return result


def compared(row: Row, found: Found) -> dict[str, Any]:
    """A row's figures: medians, the ratio to the fastest peer, and what is wrong."""
    ours = found["ours"]
    wrong = [
        f"{row.name}: {side}: {one['failed']}"
        for side in ("ours", *row.peers)
        for one in found[side]
        if "failed" in one
    ]
    if wrong:
        return {**asdict(row), "wrong": sorted(set(wrong))}
    peer = max(row.peers, key=lambda side: median(one["rate"] for one in found[side]))
    theirs = found[peer]
    if row.work.endswith("-exact"):
        apart = max(
            abs(mine - other) / abs(other)
            for one, two in zip(ours, theirs, strict=True)
            for mine, other in zip(one["losses"], two["losses"], strict=True)
        )
        wrong += [f"{row.name}: losses differ by {apart:.1e}"] if apart > TOLERANCE else []
    middle = {
        name: (median(one[name] for one in ours), median(one[name] for one in theirs))
        for name in ("rate", "peak_bytes", "first_step_s")
    }
    limits = [one["limit"] for one in ours if one["limit"] is not None]
    return {
        **asdict(row),
        "peer": peer,
        "ours": middle["rate"][0],
        "theirs": middle["rate"][1],
        "ratio": middle["rate"][0] / middle["rate"][1],
        "ratios": [mine["rate"] / other["rate"] for mine, other in zip(ours, theirs, strict=True)],
        "memory": middle["peak_bytes"][0] / middle["peak_bytes"][1],
        "peak_bytes": list(middle["peak_bytes"]),
        "first_step_s": list(middle["first_step_s"]),
        "limit": median(limits) if limits else None,
        "wrong": wrong,
    }


def line(result: dict[str, Any]) -> str:
    """A row as text."""
    name = f"{result['name']:<34}"
    if "ratio" not in result:
        return f"{name} failed"
    met = "met" if result["ratio"] >= result["goal"] else "missed"
    limit = "" if result["limit"] is None else f"{result['limit']:.2f}"
    first = " / ".join(f"{seconds:.1f}" for seconds in result["first_step_s"])
    return (
        f"{name} {result['peer']:<14} {result['ours']:>9.1f} {result['theirs']:>9.1f} {result['ratio']:>7.2f}"
        f" {result['goal']:>5g} {met:<6} {result['memory']:>7.2f} {limit:>6} {first:>14}"
    )


if __name__ == "__main__":
    sys.exit(main())
