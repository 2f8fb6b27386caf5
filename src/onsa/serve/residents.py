"""Residents: the networks that are in memory, each answering for its base and for all adapters over it.

A model is loaded when it is first asked. Where there is no room for another, those that nobody asks go first, those
asked longest ago before the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

from onsa.adaptations.base import Adaptation
from onsa.engine.sessions.local import Local
from onsa.models.fetch import locate
from onsa.models.heads import Head
from onsa.models.load import load
from onsa.models.precision import has_fast_bf16
from onsa.serve.adapters import Adapter
from onsa.serve.batching import Batcher, State
from onsa.serve.grammar import Grammars
from onsa.serve.predictor import Predictor, deployed, load_run, predictor
from onsa.serve.stacked import check
from onsa.spec.errors import ModelError
from onsa.spec.recipe import Recipe, parse_recipe
from onsa.tasks.base import Task, TokenTask
from onsa.tasks.chat import Chat

MOST = 3  # networks in memory
REST_S = 10.0  # after it was asked, before a network may go


@dataclass(frozen=True)
class Target:
    """Who is asked: the model that lies in a run's or checkpoint's folder, or, without one, the recipe's base."""

    name: str
    recipe: Recipe
    folder: Path | None = None


@dataclass
class Resident:
    """A network in memory. told: how a target's texts become tokens, by its name; used: when it was asked last."""

    batcher: Batcher
    plain: Predictor
    grammars: Grammars
    told: dict[str, Predictor] = field(default_factory=dict)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    used: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether nobody asks it, nor is about to."""
        state = self.batcher.state()
        return not (state.running or state.waiting) and time.monotonic() - self.used > REST_S

    def answering(self, target: Target) -> Predictor:
        """How a target's texts become tokens: by its own task, over this network."""
        if target.name not in self.told:
            task, plain = cast(TokenTask, target.recipe.task), self.plain
            settings = (self.batcher.context, 0, target.recipe.data.normalise)
            self.told[target.name] = Predictor(task, plain.policy, plain.tokenizer, *settings)
        return self.told[target.name]

    def stacks(self, adapter: Adapter) -> bool:
        """Whether an adapter answers over this network, beside others; one that does is known from now on."""
        if adapter.name not in self.adapters:
            try:
                check(adapter, self.plain.policy.network)
            except ValueError:
                return False
            self.adapters[adapter.name] = adapter
        return True


class Residents:
    """The networks in memory. Threads may share it."""

    def __init__(self) -> None:
        self._residents: dict[str, Resident] = {}
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}

    def open(self, target: Target) -> tuple[Resident, Predictor, str | None]:
        """The network that answers for a target, how it is asked, and the adapter's name in it.

        Raises:
            ModelError: the target is no model that says tokens, or cannot be loaded.
        """
        recipe, folder = target.recipe, target.folder
        task = cast(Task, recipe.task)
        if task.head is not Head.TOKENS:
            raise ModelError.of("model-says-no-text", key="model", value=target.name, task=task.kind)
        if folder is None or cast(Adaptation, recipe.adaptation).adapter:
            model = recipe.model
            key = f"{model.name}@{model.revision}/{model.quantize} {recipe.train.precision}"
            resident = self._resident(key, partial(_base, recipe))
            adapter = None if folder is None else Adapter(str(folder), (folder,), recipe)
            if adapter is None or resident.stacks(adapter):
                return resident, resident.answering(target), adapter.name if adapter else None
        resident = self._resident(str(folder), partial(_alone, cast(Path, folder), recipe))
        return resident, resident.answering(target), None

    def states(self) -> Mapping[str, State]:
        """How each network's batcher stands."""
        with self._lock:
            return {key: resident.batcher.state() for key, resident in self._residents.items()}

    def close(self) -> None:
        """End all."""
        with self._lock:
            for resident in self._residents.values():
                resident.batcher.close()
            self._residents.clear()

    def _resident(self, key: str, load: Callable[[], Resident]) -> Resident:
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:  # one loads; the others wait for it, and not for those who ask another network
            resident = self._residents.get(key)
            if resident is None:
                self._make_room()
                resident = load()
                with self._lock:
                    self._residents[key] = resident
            resident.used = time.monotonic()
        return resident

    def _make_room(self) -> None:
        with self._lock:
            idle = [key for key, resident in self._residents.items() if resident.idle]
            idle.sort(key=lambda key: self._residents[key].used)
            for key in idle[: max(0, len(self._residents) - MOST + 1)]:
                self._residents.pop(key).batcher.close()


def base_recipe(name: str) -> Recipe:
    """The recipe with which a base answers: a chat, in the arithmetic that is fast here."""
    precision = "bf16" if has_fast_bf16(Local().place()) else "fp32"
    return parse_recipe(
        {"model": name, "data": "-", "task": "chat", "engine": "local", "train": {"precision": precision}}
    )


def _base(recipe: Recipe) -> Resident:
    """A base, over which adapters can be stacked."""
    start = locate(recipe.model)
    loaded = load(start.folder, recipe.model, Head.TOKENS, (), None, recipe.seed)
    policy = deployed(loaded.network, loaded.tokenizer, recipe)
    plain = predictor(policy, loaded.tokenizer, start.context, recipe.model_copy(update={"task": Chat()}))
    adapters: dict[str, Adapter] = {}
    batcher = Batcher(policy, find=adapters.__getitem__)
    return Resident(batcher, plain, Grammars(loaded.tokenizer, plain.stops), adapters=adapters)


def _alone(folder: Path, recipe: Recipe) -> Resident:
    """A model that shares its network with nobody."""
    plain = load_run(folder, recipe)
    return Resident(Batcher(plain.policy), plain, Grammars(plain.tokenizer, plain.stops))
