"""Pairs: preferences made from questions and answers, for benchmarks: no real preference set is to be had offline.

The better answer is a question's own, the worse one the answer to another question, which is drawn by a seed. What is
learnt from them is to tell an answer to a question from one that is none, and no more.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import yaml

from onsa.models.fetch import fetch_data
from onsa.programs.demo import CORPUS

Pair = dict[str, str]


def constructed(seed: int = 7) -> list[Pair]:
    """A pair for each question of the corpus in English, in an order drawn by the seed."""
    answers: dict[str, str] = {}
    for path in sorted((fetch_data(CORPUS) / "english").glob("*.yml")):
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            if len(turns) > 1 and turns[0] is not None and turns[1] is not None:
                answers.setdefault(str(turns[0]), str(turns[1]))
    dice, questions, others = random.Random(seed), list(answers), sorted(set(answers.values()))
    dice.shuffle(questions)
    found = []
    for question in questions:
        chosen = rejected = answers[question]
        while rejected.strip() == chosen.strip():
            rejected = dice.choice(others)
        found.append({"prompt": question, "chosen": chosen, "rejected": rejected})
    return found


def write(path: Path, pairs: Sequence[Pair]) -> Path:
    """Pairs as JSONL."""
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path


def size(pair: Pair) -> int:
    """The letters of a pair."""
    return sum(map(len, pair.values()))
