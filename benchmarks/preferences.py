"""Preferences: what a reward model, DPO and a judge's word are worth, on pairs whose truth is known.

Run as ``python -m benchmarks.preferences``; ``--quick`` takes fewer rows. Prints a table, then one JSON line with the
same figures, and exits with 1 where one is out of tolerance.

The pairs are constructed (:mod:`benchmarks.pairs`): the worse answer is one to another question. They are divided into
three: on the first part reward models learn, on the second policies, and all are measured on the third, with intervals.

- Reward models: every weight of MiniLM, and LoRA on SmolLM2, each against a linear model on its base's embeddings.
- Judges (RLAIF): the second part is ranked anew by the reward model on SmolLM2, and by the untuned SmolLM2 that is
  asked for a letter in both orders. Stated are how often they say what is true, and how much the letter goes by place.
- DPO on SmolLM2 with LoRA: on true pairs, and on those of either judge. Stated are the accuracy on held-out pairs
  before and after, the win rate against the base by the reward model, and what is forgotten: the loss on general text.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from benchmarks.forgetting import remembered
from benchmarks.pairs import Pair, write
from onsa.evaluate.document import Document, read_document
from onsa.models.load import quiet
from onsa.programs.demo import constructed
from onsa.programs.feedback import Candidate
from onsa.programs.judge import ByScore, ByWords, Judge
from onsa.programs.predict import load
from onsa.programs.report import METRICS
from onsa.programs.train import finish
from onsa.spec.messages import say
from onsa.spec.recipe import parse_recipe
from onsa.store.run import Run

LEAST = 0.85  # accuracy of a reward model where the worse answer is one to another question
REWARDS: dict[str, dict[str, Any]] = {
    "minilm-l6": {"adaptation": "full", "train": {"epochs": 8, "batch_rows": 16}},
    "smollm2-135m": {"adaptation": "lora", "train": {"epochs": 3, "batch_rows": 16}},
}
DPO: dict[str, Any] = {"adaptation": "lora", "objective": "dpo", "train": {"epochs": 2, "batch_rows": 16}}


def run(model: str, folder: Path, name: str, **settings: Any) -> tuple[Run, Document]:
    """A finished run over the pairs of a name, measured on the third part."""
    data = {"path": str(folder / f"{name}.jsonl"), "test": str(folder / "third.jsonl"), "split": "9:1:0"}
    with quiet():
        found = finish(parse_recipe({"model": model, "data": data, "task": "preference", **settings}))
    return found, read_document(found.folder / METRICS)


def metric(document: Document, name: str) -> dict[str, Any]:
    return next(dict(entry) for entry in document["comparisons"] if entry["metric"] == name)


def ranked(judge: Judge, pairs: Sequence[Pair], seed: int = 7) -> tuple[list[Pair], list[float], list[dict[str, Any]]]:
    """Pairs as a judge ranks them, how likely it finds the true order, and its notes. Which it sees first is drawn."""
    dice, found, likely, notes = np.random.default_rng(seed), [], [], []
    for pair in pairs:
        swapped = bool(dice.integers(2))
        answers = (pair["rejected"], pair["chosen"]) if swapped else (pair["chosen"], pair["rejected"])
        prompt = [{"role": "user", "content": pair["prompt"]}]
        first, told = judge.first(Candidate(prompt, pair["prompt"], answers))
        better, worse = answers if first >= 0.5 else answers[::-1]
        found.append({"prompt": pair["prompt"], "chosen": better, "rejected": worse})
        likely.append(1 - first if swapped else first)
        notes.append(told)
    return found, likely, notes


def spread(entry: dict[str, Any], side: str) -> str:
    part = entry[side]
    return "-" if part is None else f"{part['value']:.3f} [{part['low']:.3f}, {part['high']:.3f}]"


def line(*cells: str) -> None:
    print("{:<44} {:>22} {:>22} {:>24}".format(*cells), flush=True)


def measured(folder: Path, quick: bool) -> dict[str, Any]:
    pairs = constructed()[:120] if quick else constructed()
    cuts = [len(pairs) * 2 // 5, len(pairs) * 4 // 5]
    first, second, third = pairs[: cuts[0]], pairs[cuts[0] : cuts[1]], pairs[cuts[1] :]
    for name, part in (("first", first), ("second", second), ("third", third)):
        write(folder / f"{name}.jsonl", part)
    told: dict[str, Any] = {"rows": [len(first), len(second), len(third)], "reward": {}, "judge": {}, "dpo": {}}
    line("reward model", "probe", "accuracy", "difference")
    for model, settings in REWARDS.items():
        found, document = run(model, folder, "first", objective="reward", **settings)
        entry = told["reward"][model] = metric(document, "accuracy")
        line(model, *(spread(entry, side) for side in ("base", "tuned", "difference")))
    scorer = ByScore(found.id, load(found))
    _, plain = run("smollm2-135m", folder, "second", **DPO, evaluate={"judge": found.id})
    with quiet():
        base = load(plain["run"]["id"], tuned=False)
    words = ByWords("smollm2-135m", base, say("constitution", "en"))
    line("judge", "says what is true", "prefers the first by", "")
    for name, judge in (("reward", scorer), ("words", words)):
        judged, likely, notes = ranked(judge, second)
        bias = [np.mean(one["a_in_both_orders"]) - 0.5 for one in notes if "a_in_both_orders" in one]
        share, place = float(np.mean(np.asarray(likely) > 0.5)), float(np.mean(bias)) if bias else None
        told["judge"][name] = {"agrees": share, "bias": place, "pairs": len(second)}
        line(name, f"{share:.3f}", "-" if place is None else f"{place:+.3f}", "")
        write(folder / f"judged-{name}.jsonl", judged)
    start = remembered(base, quick)["general"]
    line("DPO on", "accuracy, base", "accuracy", "win rate by the reward")
    for name in ("second", "judged-reward", "judged-words"):
        made, document = run("smollm2-135m", folder, name, **DPO, evaluate={"judge": found.id})
        entry, won = metric(document, "accuracy"), metric(document, "win_rate")
        with quiet():
            general = remembered(load(made), quick)["general"]
        told["dpo"][name] = {"accuracy": entry, "win_rate": won["tuned"], "general": [start, general]}
        line(name, spread(entry, "base"), spread(entry, "tuned"), spread(won, "tuned"))
        print(f"  difference {spread(entry, 'difference')}; general English {start:.3f} to {general:.3f}", flush=True)
    return told


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preferences", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="120 pairs in place of all")
    quick = parser.parse_args().quick
    with TemporaryDirectory() as folder:
        told = measured(Path(folder), quick)
    values = [entry["tuned"]["value"] for entry in told["reward"].values()]
    holds = quick or min(values) >= LEAST
    print(json.dumps({"benchmark": "preferences", "quick": quick, "holds": holds, **told}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
