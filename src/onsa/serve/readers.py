"""Readers: models that read rows whole, and say a class, a number or where a text stands among others.

Shape legend: R rows, D width.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from onsa.models.batch import Example, collate
from onsa.models.fetch import locate
from onsa.models.heads import Head
from onsa.models.load import load
from onsa.serve.predictor import Predictor, deployed, load_run, predictor
from onsa.serve.residents import Target
from onsa.spec.errors import DataError, ModelError
from onsa.tasks.base import Task

MOST = 2  # models in memory
BATCH_ROWS = 32
SEEN = ("none",)  # the one output of a head that nobody asks


@dataclass
class Reader:
    """A model in memory; one reads at a time."""

    predictor: Predictor
    lock: threading.Lock = field(default_factory=threading.Lock)


class Readers:
    """The models in memory. Threads may share it."""

    def __init__(self) -> None:
        self._readers: OrderedDict[str, Reader] = OrderedDict()
        self._lock = threading.Lock()

    def classify(self, target: Target, texts: Sequence[str]) -> list[dict[str, Any]]:
        """What a tuned model says of texts: ``label`` with ``scores``, or ``value``.

        Raises:
            ModelError: the target was not tuned to classify.
            DataError: a text that cannot be read.
        """
        task = cast(Task, target.recipe.task)
        if target.folder is None or task.head is not Head.ROWS:
            raise ModelError.of("model-classifies-not", key="model", value=target.name)
        reader = self._open(target, f"classes {target.folder}")
        with reader.lock:
            return reader.predictor.predict(texts)

    @torch.inference_mode()
    def embed(self, target: Target, texts: Sequence[str | Sequence[int]]) -> tuple[npt.NDArray[np.float32], int]:
        """Where each text stands: the mean of its last hidden states, of length 1, ``vector_RD``; and the tokens read.

        Args:
            texts: or their tokens.

        Raises:
            DataError: a text that is too long, or holds nothing.
        """
        reader = self._open(target, f"states {target.recipe.model.name}")
        tokenizer, policy = reader.predictor.tokenizer, reader.predictor.policy
        rows = [list(tokenizer(text)["input_ids"]) if isinstance(text, str) else list(text) for text in texts]
        for row in rows:
            if not 0 < len(row) <= reader.predictor.max_length:
                most = reader.predictor.max_length
                raise DataError.of("text-length", key="input", tokens=len(row), most=most)
            strange = next((token for token in row if not 0 <= token < len(tokenizer)), None)
            if strange is not None:
                raise DataError.of("token-unknown", key="input", token=strange, most=len(tokenizer))
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))  # rows of like length beside each other
        found: dict[int, npt.NDArray[np.float32]] = {}
        with reader.lock:
            for start in range(0, len(rows), BATCH_ROWS):
                part = order[start : start + BATCH_ROWS]
                vector_RD = policy.embed(collate([Example(np.asarray(rows[row], np.int32)) for row in part]))
                unit_RD = torch.nn.functional.normalize(vector_RD, dim=1).cpu().numpy()
                found |= dict(zip(part, unit_RD, strict=True))
        return np.stack([found[row] for row in range(len(rows))]), sum(map(len, rows))

    def _open(self, target: Target, key: str) -> Reader:
        with self._lock:
            if key not in self._readers:
                while len(self._readers) >= MOST:
                    self._readers.popitem(last=False)
                self._readers[key] = Reader(_loaded(target, key.startswith("classes")))
            self._readers.move_to_end(key)
            return self._readers[key]


def _loaded(target: Target, tuned: bool) -> Predictor:
    recipe = target.recipe
    if tuned and target.folder is not None:
        return load_run(target.folder, recipe)
    start = locate(recipe.model)
    loaded = load(start.folder, recipe.model, Head.ROWS, SEEN, None, recipe.seed)
    train = recipe.train.model_copy(update={"precision": "fp32"})
    policy = deployed(loaded.network, loaded.tokenizer, recipe.model_copy(update={"train": train}))
    found = predictor(policy, loaded.tokenizer, start.context, recipe)
    return Predictor(found.task, policy, loaded.tokenizer, start.context or loaded.tokenizer.model_max_length, 0)
