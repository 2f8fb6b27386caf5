"""Speed: Onsa's training against its peers', on the same weights, rows and steps.

Run as ``python -m benchmarks.speed``; ``--quick`` takes few steps, one repeat and some of the works, ``--only NAME``
one work. Prints a table, then one JSON line with all figures. It exits with 1 where a *result* is wrong (the losses of
the exact comparison differ, other parameters train, or a side did not finish), never for a time.

Every measurement has a process of its own (:mod:`benchmarks.speed_side` for Onsa, :mod:`benchmarks.speed_peers` for
the others, which load nothing of Onsa) with two threads; ours and the peers' alternate, and medians count. Where a row
names several ways to use a peer, the first repeat measures all (a quick run the first), and the others the fastest
of them. What both sides need lies on the disk beforehand: initial weights, and rows that are tokenised already.

- Speed is that of whole steps, data loading included: trained tokens a second for chat, rows a second for
  classification. Chat goes once through the same rows, in the same order but where a way to use the peer has its own,
  and the first step does not count. Classification and DPO count every step, so that what is computed once (the
  filling of the frozen boundary, a reference's answers) is in the figure.
- Memory is the most that the process and its children held, asked for ten times a second, or the process' own peak
  where that is more.
- The seconds to the first step are those from the command to where it begins. Ours read and tokenise, peers need not.
- "limit": operations that the steps cannot do without, as a share of what one large product reaches in that process.

TRL computes in bf16 and recomputes what blocks keep unless told otherwise, also where the processor has no bf16 in
hardware. There a row of its defaults takes many seconds, so both sides get two small steps in the rows against them,
and the ratio says little more than that. At its best TRL has the precision that is fastest here, no recomputation, and
rows as they come, grouped by length, laid end to end (``padding_free``) or packed; packed steps have as many tokens as
the others, on the mean, not the same rows. On a quantised base TRL always keeps adapters in bf16.

DPO has pairs made of the same rows, the worse answer being the next row's. TRL is asked with the reference computed in
each step (``trl-plain``) and once, before the first (``trl-kept``, whose time for it counts).

SetFit and sentence-transformers need an environment of their own, whose Python ``--setfit-python`` or
``ONSA_SETFIT_PYTHON`` names. Theirs is the time to encode the rows and to fit the head to them, less that of
tokenising; it is held against all epochs of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil

REPEATS, THREADS, SAMPLE_S = 3, 2, 0.1
TOLERANCE = 1e-4  # of losses, step for step, relative
Told = dict[str, Any]  # what a process printed
Found = dict[str, list[Told]]  # by side


@dataclass(frozen=True)
class Row:
    """A row of the table: a work, the peers it is held against (the fastest counts), and the ratio aimed at.

    figure: what is compared. A ``rate`` and a ``share`` are to be at least the goal, all else at most.
    """

    name: str
    work: str
    peers: tuple[str, ...]
    goal: float
    figure: str = "rate"

    @property
    def more(self) -> bool:
        return self.figure in ("rate", "share")


BEST = ("trl-unpadded", "trl-grouped", "trl-plain", "trl-packed")
SETFIT = ("setfit", "logistic")
DPO = ("trl-kept", "trl-plain", "trl-default")
LONG = ("topics-lora", "full-default")  # works that a quick run leaves out
EVERY_STEP = ("topics", "dpo")  # works of which the first step counts as well
ROWS = (
    Row("LoRA SFT", "lora-default", ("trl-default",), 8.0),
    Row("LoRA SFT, GB at the peak", "lora-default", ("trl-default",), 1.0, "gigabytes"),
    Row("LoRA SFT", "lora", BEST, 6.0),
    Row("LoRA SFT, GB at the peak", "lora", BEST, 0.6, "gigabytes"),
    Row("LoRA SFT, s to the first step", "lora", BEST, 0.5, "begin_s"),
    Row("LoRA SFT, GFLOP/s, of a product", "lora", (), 0.5, "share"),
    Row("LoRA SFT, fp32, equal losses", "lora-exact", ("trl-plain",), 2.5),
    Row("full SFT", "full-default", ("trl-default",), 4.0),
    Row("QLoRA SFT, nf4", "qlora", ("trl-grouped",), 2.0),
    Row("DPO, LoRA", "dpo", DPO, 3.0),
    Row("topics, full", "topics-full", ("trainer",), 4.0),
    Row("topics, LoRA", "topics-lora", ("trainer",), 4.0),
    Row("topics, last two layers", "topics-last-layers", ("trainer",), 8.0),
    Row("topics, head", "topics-head", ("trainer",), 20.0),
    Row("topics, head", "topics-head", SETFIT, 1.0),
)
HEADING = ("work", "against", "ours", "theirs", "ratio", "goal", "", "memory", "limit")
LINE = "{:<32} {:<14} {:>9} {:>9} {:>7} {:>6} {:<6} {:>6} {:>6}"


@dataclass(frozen=True)
class Bench:
    """Where and how all is measured: ``setfit`` is the Python of that environment, if there is one."""

    folder: Path
    quick: bool
    repeats: int
    setfit: str | None

    def ask(self, module: str, order: Told, python: str = sys.executable, **more: str) -> Told:
        """What a process prints that does what was ordered, with the most memory it held; its complaint if it fails."""
        settled = {"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        given = {"folder": str(self.folder), "quick": self.quick, "threads": THREADS, "started": time.time()}
        command = [python, "-m", f"benchmarks.{module}", json.dumps({**given, **order})]
        with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complaint:
            process = subprocess.Popen(command, stdout=said, stderr=complaint, env={**os.environ, **settled, **more})
            peak = _watched(process)
            for file in (said, complaint):
                file.seek(0)
            if process.returncode != 0:
                return {"failed": (complaint.read().strip().splitlines() or [f"exit {process.returncode}"])[-1]}
            told: Told = json.loads(said.read().strip().splitlines()[-1])
        return {**told, "gigabytes": max(peak, told.get("peak_bytes", 0)) / 1e9}

    def prepare(self, works: Sequence[str]) -> Told:
        """Have the initial weights and rows of all works written, and everything warm; facts of the machine."""
        facts = self.ask("speed_side", {"works": list(works)})
        facts.pop("gigabytes", None)
        if "failed" in facts:
            raise SystemExit(facts["failed"])
        return facts

    def once(self, work: str, side: str) -> Told:
        """One side in a process of its own."""
        home = self.folder / "home"
        shutil.rmtree(home / "cache" / "states", ignore_errors=True)  # no run profits from what another has computed
        if side == "ours":
            told = self.ask("speed_side", {"work": work}, ONSA_HOME=str(home))
        else:
            python = self.setfit if side in SETFIT else sys.executable
            told = self.ask("speed_peers", {"work": work, "side": side}, python or sys.executable)
        if "failed" not in told:
            first = 0 if work.startswith(EVERY_STEP) else 1
            told["rate"] = sum(told["trained"][first:]) / sum(told["step_s"][first:])
        said = told.get("failed") or f"{told['rate']:.1f} a second"
        print(f"{work}: {side}: {said}", file=sys.stderr, flush=True)
        return told

    def measured(self, work: str, rows: Sequence[Row]) -> Found:
        """Every side's measurements of a work, in turns; of several ways to use a peer, all repeats of the fastest."""
        groups = list(dict.fromkeys(row.peers for row in rows if row.peers and not self.missing(row)))
        found: Found = {"ours": []}
        for repeat in range(self.repeats):
            found["ours"].append(self.once(work, "ours"))
            for group in groups:
                tried = group[:1] if self.quick else group
                for side in tried if repeat == 0 else filter(None, [fastest(group, found)]):
                    found.setdefault(side, []).append(self.once(work, side))
        return found

    def missing(self, row: Row) -> str | None:
        """Why a row cannot be measured here."""
        if row.peers == SETFIT and self.setfit is None:
            return "no environment with SetFit was named (--setfit-python)"
        return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, one repeat")
    parser.add_argument("--only", action="append", help="a work by its name; may be repeated", choices=_works(ROWS))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--setfit-python", default=os.environ.get("ONSA_SETFIT_PYTHON"), help="a Python with SetFit")
    asked = parser.parse_args()
    works = asked.only or [work for work in _works(ROWS) if not asked.quick or work not in LONG]
    started, results, measured = datetime.now(UTC), [], {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), asked.quick, 1 if asked.quick else asked.repeats, asked.setfit_python)
        facts = bench.prepare(works)
        print(LINE.format(*HEADING))
        for work in works:
            rows = [row for row in ROWS if row.work == work]
            found = measured[work] = bench.measured(work, rows)
            for row in rows:
                missing = bench.missing(row)
                results.append({**asdict(row), "skipped": missing} if missing else compared(row, found))
                print(line(results[-1]), flush=True)
    wrong = [fault for result in results for fault in result.get("wrong", [])]
    for fault in dict.fromkeys(wrong):
        print(f"WRONG: {fault}")
    minutes = round((datetime.now(UTC) - started).total_seconds() / 60, 1)
    told = {"date": started.date().isoformat(), "minutes": minutes, "quick": asked.quick, "threads": THREADS}
    print(json.dumps({"benchmark": "speed", **told, **facts, "rows": results, "measured": measured, "wrong": wrong}))
    return 1 if wrong else 0


def _works(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.work for row in rows))


def _watched(process: subprocess.Popen[bytes]) -> int:
    """The most bytes that a process and its children were seen to hold together, until it ends."""
    root, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        with suppress(psutil.Error):
            peak = max(peak, sum(one.memory_info().rss for one in (root, *root.children(recursive=True))))
        time.sleep(SAMPLE_S)
    return peak


def fastest(group: Sequence[str], found: Found) -> str | None:
    """The way of a peer that was fastest; none where all failed."""
    done = [side for side in group if side in found and not any("failed" in one for one in found[side])]
    return max(done, key=lambda side: median(one["rate"] for one in found[side]), default=None)


def compared(row: Row, found: Found) -> Told:
    """A row's figures: medians, the ratio to the fastest peer, and what is wrong."""
    ours, result = found["ours"], {**asdict(row), "wrong": []}
    sides = [side for side in ("ours", *row.peers) if side in found]
    failed = {side: one["failed"] for side in sides for one in found[side] if "failed" in one}
    peer = fastest(row.peers, found)
    if "ours" in failed or (row.peers and peer is None):
        return {**result, "wrong": [f"{row.work}: {side}: {fault}" for side, fault in failed.items()]}
    result |= {"limit": median(one["limit"] for one in ours), "failed": failed}
    if peer is None:  # against what the machine does
        pairs = [(one["reached"] / 1e9, one["product"] / 1e9) for one in ours]
    else:
        pairs = [(one[row.figure], two[row.figure]) for one, two in zip(ours, found[peer], strict=True)]
        result["probed"] = {side: found[side][0].get("rate") for side in sides if side != "ours"}
        result["memory"] = median(one["gigabytes"] for one in ours) / median(two["gigabytes"] for two in found[peer])
        result["wrong"] = [f"{row.work}: {fault}" for fault in faults(ours, found[peer], row.work.endswith("-exact"))]
    mine, theirs = (median(values) for values in zip(*pairs, strict=True))
    ratio = mine / theirs
    met = ratio >= row.goal if row.more else ratio <= row.goal
    ratios = [one / two for one, two in pairs]
    return {**result, "peer": peer, "ours": mine, "theirs": theirs, "ratio": ratio, "ratios": ratios, "met": met}


def faults(ours: Sequence[Told], theirs: Sequence[Told], exact: bool) -> list[str]:
    """What shows that two sides have not computed the same; where losses are to be equal, also step for step."""
    found = []
    for one, two in zip(ours, theirs, strict=True):
        if one["trainable"] != two.get("trainable", one["trainable"]):  # a logistic regression tells none
            found.append(f"{one['trainable']} values train here, {two['trainable']} there")
        apart = [abs(mine - other) / abs(other) for mine, other in zip(one["losses"], two["losses"], strict=exact)]
        if exact and not max(apart) <= TOLERANCE:  # also where one is no number
            found.append(f"losses are {max(apart):.1e} apart")
    return found


def line(result: Told) -> str:
    """A row as text."""
    if "ratio" not in result:
        return f"{result['name']:<32} {' or '.join(result['peers'])}: {result.get('skipped') or 'failed'}"
    rate = result["figure"] == "rate"
    return LINE.format(
        result["name"],
        result["peer"] or "2048^3",
        *(f"{result[side]:.{1 if rate else 2}f}" for side in ("ours", "theirs")),
        f"{result['ratio']:.2f}",
        f"{'>=' if result['figure'] in ('rate', 'share') else '<='} {result['goal']:g}",
        "met" if result["met"] else "missed",
        f"{result['memory']:.2f}" if rate else "",
        f"{result['limit']:.2f}" if rate else "",
    ).rstrip()


if __name__ == "__main__":
    sys.exit(main())
