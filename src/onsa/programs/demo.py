"""Demo: the main jobs on embedded weights and data. Files are made from the English chatterbot corpus, and tuned on.

The corpus' technical-support file repeats ten distinct pairs 1,050 times: a held-out share of them alone would be one
pair. The chat demo therefore takes every technical topic (support, computers, coding, artificial intelligence); equal
questions never straddle its split.
"""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from onsa.data.split import normal
from onsa.models.fetch import fetch_data
from onsa.spec.recipe import Recipe, parse_recipe
from onsa.spec.rlhf import Rlhf
from onsa.spec.sections import Data
from onsa.store.home import home

FEWEST = 20  # distinct questions a topic needs
TECHNICAL = ("tech_support", "computers", "coding", "ai")
CORPUS = "chatterbot-corpus"


@dataclass(frozen=True)
class Demo:
    """One half of the demo."""

    name: str
    recipe: Recipe


def demos(progress: Callable[[str], None] | None = None) -> list[Demo]:
    """Fetch the corpus, write both files under the home folder, and give their recipes."""
    corpus = fetch_data(CORPUS, progress)
    folder = home() / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    conversations = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in sorted((corpus / "english").glob("*.yml"))
    }
    turns = {
        topic: [[str(turn) for turn in turns if turn is not None] for turns in document["conversations"]]
        for topic, document in conversations.items()
    }
    return [Demo("topics", _topics(turns, folder)), Demo("support", _support(turns, folder))]


def rlhf_demo(progress: Callable[[str], None] | None = None) -> Rlhf:
    """The files of the three stages of RLHF, written under the home folder: technical questions with their answers, and
    comparisons that are made from all questions (:func:`constructed`)."""
    support = next(demo for demo in demos(progress) if demo.name == "support")
    path = home() / "demo" / "comparisons.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in constructed()), encoding="utf-8")
    grader = {"train": {"early_stop": {"patience": 1}}}  # a few hundred comparisons are learnt in a few epochs
    return Rlhf(model=support.recipe.model, data=support.recipe.data, preferences=Data(path=str(path)), reward=grader)


def constructed(seed: int = 7) -> list[dict[str, str]]:
    """A comparison for each question of the corpus, in an order drawn by the seed: the better answer is the question's
    own, the worse one that to another question."""
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


def _topics(turns: dict[str, list[list[str]]], folder: Path) -> Recipe:
    """Short questions and their topic: MiniLM, every weight, 6:1:3 so that the interval is narrow enough to tell."""
    rows: dict[str, tuple[str, str]] = {}
    for topic, conversations in turns.items():
        for conversation in conversations:
            rows.setdefault(normal(conversation[0]), (conversation[0], topic))
    sizes = Counter(topic for _, topic in rows.values())
    path = folder / "topics.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "topic"])
        writer.writerows(row for row in rows.values() if sizes[row[1]] >= FEWEST)
    return parse_recipe(
        {
            "model": "minilm-l6",
            "data": {"path": str(path), "columns": {"text": "question", "label": "topic"}, "split": "6:1:3"},
            "task": "text-classification",
            "adaptation": "full",
            "optimizer": {"lr": 4e-4, "lr_new": 2e-3},
            "train": {"epochs": 16},
        }
    )


def _support(turns: dict[str, list[list[str]]], folder: Path) -> Recipe:
    """Technical questions and their answers: SmolLM2 with LoRA."""
    pairs = dict.fromkeys(
        (conversation[0], conversation[1])
        for topic in TECHNICAL
        for conversation in turns[topic]
        if len(conversation) > 1
    )
    path = folder / "support.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for question, answer in pairs:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return parse_recipe(
        {
            "model": "smollm2-135m",
            "data": {"path": str(path), "split": "7:1:2"},
            "task": "chat",
            "adaptation": "lora",
            "train": {"epochs": 2, "batch_tokens": 512},
        }
    )
