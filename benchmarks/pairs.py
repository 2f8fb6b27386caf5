"""Pairs: preferences made from questions and answers, for benchmarks: no real preference set is to be had offline.

The better answer is a question's own, the worse one the answer to another question, which is drawn by a seed. What is
learnt from them is to tell an answer to a question from one that is none, and no more.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from onsa.data.convert import to_messages
from onsa.programs.demo import demos


def support() -> list[tuple[str, str]]:
    """Questions and answers of the support data, each question once."""
    path = next(demo.recipe.data.path for demo in demos() if demo.name == "support")
    found: dict[str, str] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        messages = to_messages(json.loads(line))
        found.setdefault(messages[-2]["content"], messages[-1]["content"])
    return list(found.items())


def write(path: Path, seed: int = 7, most: int | None = None) -> Path:
    """Constructed pairs as JSONL with ``prompt``, ``chosen`` and ``rejected``; where ``most``, of the shortest rows."""
    rows, dice = support(), random.Random(seed)
    if most is not None:
        rows = sorted(rows, key=lambda row: len(row[0]) + len(row[1]))[:most]
    lines = []
    for question, answer in rows:
        other = dice.choice([text for _, text in rows if text != answer])
        lines.append(json.dumps({"prompt": question, "chosen": answer, "rejected": other}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
