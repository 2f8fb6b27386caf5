"""Pairs: preferences made from questions and answers, for benchmarks: no real preference set is to be had offline.

The better answer is a question's own, the worse one the answer to another question, which is drawn by a seed. What is
learnt from them is to tell an answer to a question from one that is none, and no more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

Pair = dict[str, str]


def write(path: Path, pairs: Sequence[Pair]) -> Path:
    """Pairs as JSONL."""
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path


def size(pair: Pair) -> int:
    """The letters of a pair."""
    return sum(map(len, pair.values()))
