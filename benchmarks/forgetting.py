"""Forgetting: what a tuned model still knows of what its base knew, on texts that no run trains on.

The general texts are the descriptions of data sets that scikit-learn brings with it: plain English prose, the same for
everyone who has the pinned version.

- A language model: the mean negative log-likelihood of a token of these texts; and of the answers to questions of other
  topics than those it was tuned for.
- An encoder of sentences predicts no tokens. What it is for is to bring together what belongs together: each text is
  cut in two, and the loss is that of finding a first half's second half among all of them (InfoNCE; van den Oord et
  al. 2018, eq. 4, with cosine similarity at temperature 0.05).

Shape legend: P passages, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import sklearn.datasets
import torch
import yaml
from torch.nn import functional

from onsa.data.table import Row
from onsa.engine.batches import encode
from onsa.models.batch import Example, collate
from onsa.models.fetch import fetch_data
from onsa.models.heads import Head
from onsa.models.policy import Policy
from onsa.programs.demo import CORPUS, TECHNICAL
from onsa.serve.predictor import Predictor
from onsa.tasks.chat import Chat

WORDS = 30  # the fewest of a passage
PASSAGES, PASSAGE_TOKENS = 16, 64
QUESTIONS = 16
TEMPERATURE = 0.05
ROWS = 8  # through the network at once


@cache
def passages() -> tuple[str, ...]:
    """Paragraphs of prose."""
    folder = Path(sklearn.datasets.__file__).parent / "descr"
    found = []
    for path in sorted(folder.glob("*.rst")):
        for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
            text = " ".join(paragraph.split())
            prose = text[:1].isalpha() and not any(mark in text for mark in ("===", "::", "`", ">>>", "|", ":Number"))
            if prose and len(text.split()) >= WORDS:
                found.append(text)
    return tuple(found[:PASSAGES])


@cache
def unrelated() -> tuple[tuple[str, str], ...]:
    """Questions and answers of the corpus' topics that are not technical."""
    found: dict[str, str] = {}
    for path in sorted((fetch_data(CORPUS) / "english").glob("*.yml")):
        if path.stem in TECHNICAL:
            continue
        turns = [turns for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"] if len(turns) > 1]
        found |= {str(question): str(answer) for question, answer, *_ in turns[:: max(1, len(turns) // 3)]}
    return tuple(found.items())[:QUESTIONS]


@torch.inference_mode()
def remembered(model: Predictor, quick: bool = False) -> dict[str, float]:
    """The losses of a model on what it was not tuned for, by name; of an eighth of it where it is to be quick."""
    part = 8 if quick else 1
    texts, questions = passages()[::part], unrelated()[::part]
    policy = replace(model.policy, logits="supervised")
    model.policy.network.eval()
    if model.task.head is Head.ROWS:
        return {"general": _matching(model, texts)}
    losses = {"general": _mean(policy, [_whole(model, text) for text in texts])}
    if isinstance(model.task, Chat):
        losses["unrelated"] = _mean(policy, _asked(model.task, model, questions))
    return losses


def _whole(model: Predictor, text: str) -> Example:
    """A text of which every token is to be predicted."""
    token_T = np.asarray(model.tokenizer(text)["input_ids"][:PASSAGE_TOKENS], np.int32)
    return Example(token_T, np.ones(len(token_T), np.float32))


def _asked(task: Chat, model: Predictor, questions: Sequence[tuple[str, str]]) -> list[Example]:
    rows = [
        Row({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}, "", 0)
        for asked, said in questions
    ]
    return encode(task, rows, model.tokenizer, model.max_length)


def _mean(policy: Policy, examples: Sequence[Example]) -> float:
    total = weight = 0.0
    for start in range(0, len(examples), ROWS):
        batch = collate(examples[start : start + ROWS])
        total -= float((policy.logprobs(batch) * batch.weight_M).sum())
        weight += float(batch.weight_M.sum())
    return total / weight


def _matching(model: Predictor, texts: Sequence[str]) -> float:
    halves = [text.split() for text in texts]
    first_PD = _embedded(model, [" ".join(words[: len(words) // 2]) for words in halves])
    second_PD = _embedded(model, [" ".join(words[len(words) // 2 :]) for words in halves])
    alike_PP = functional.normalize(first_PD, dim=1) @ functional.normalize(second_PD, dim=1).T / TEMPERATURE
    return float(functional.cross_entropy(alike_PP, torch.arange(len(halves))))


def _embedded(model: Predictor, texts: Sequence[str]) -> torch.Tensor:
    tokens = [np.asarray(model.tokenizer(text)["input_ids"][:PASSAGE_TOKENS], np.int32) for text in texts]
    parts = [tokens[start : start + ROWS] for start in range(0, len(tokens), ROWS)]
    return torch.cat([model.policy.embed(collate([Example(t, target=0) for t in part])) for part in parts])
