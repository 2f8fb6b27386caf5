"""Residents: the networks that are in memory, each answering for its base and for all adapters over it.

A model is loaded when it is first asked. Where there is no room for another, those that nobody asks go first, those
asked longest ago before the others.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from onsa.adaptations.base import Adaptation
from onsa.engine.sessions.local import Local
from onsa.models.fetch import locate
from onsa.models.heads import Head
from onsa.models.load import load
from onsa.models.precision import has_fast_bf16
from onsa.serve.adapters import Adapter, obstacles
from onsa.serve.asks import Answers, Busy, State
from onsa.serve.batching import Batcher
from onsa.serve.grammar import Grammars
from onsa.serve.predictor import deployed, load_run
from onsa.serve.prompter import Prompter, stops
from onsa.serve.stacked import check
from onsa.spec.errors import ModelError
from onsa.spec.recipe import Recipe, parse_recipe
from onsa.tasks.base import Task, TokenTask
from onsa.tasks.chat import Chat

REST_S = 10.0  # after it was asked, before a network may go
MOST_WAITING = 16  # requests for a network that is being loaded


@dataclass(frozen=True)
class Target:
    """Who is asked: the model that lies in a run's or checkpoint's folder, or, without one, the recipe's base."""

    name: str
    recipe: Recipe
    folder: Path | None = None


@dataclass
class Resident:
    """A network in memory.

    generation: its ``GenerationConfig``.
    check: raises ValueError for an adapter that cannot answer over it.
    adapters: that answer over it, by their names.
    told: how a target is asked, by its name.
    used: when it was asked last.
    """

    answers: Answers
    tokenizer: Any
    generation: Any
    grammars: Grammars
    check: Callable[[Adapter], None]
    adapters: dict[str, Adapter]
    told: dict[str, Prompter] = field(default_factory=dict)
    used: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether nobody asks it, nor is about to."""
        state = self.answers.state()
        return not (state.running or state.waiting) and time.monotonic() - self.used > REST_S

    def asked(self, target: Target) -> Prompter:
        """How a target is asked: by its own task, over this network."""
        if target.name not in self.told:
            task, normalise = cast(TokenTask, target.recipe.task), target.recipe.data.normalise
            ends = stops(self.generation, task, self.tokenizer)
            self.told[target.name] = Prompter(task, self.tokenizer, self.answers.context, ends, normalise)
        return self.told[target.name]

    def stacks(self, adapter: Adapter) -> bool:
        """Whether an adapter answers over this network, beside others; one that does is known from now on."""
        if adapter.name not in self.adapters:
            try:
                self.check(adapter)
            except ValueError:
                return False
            self.adapters[adapter.name] = adapter
        return True


class Engine(Protocol):
    """What opens networks."""

    def base(self, recipe: Recipe) -> Resident:
        """A base, over which adapters answer."""

    def alone(self, folder: Path, recipe: Recipe) -> Resident:
        """A model that shares its network with nobody."""


class Residents:
    """The networks in memory. Threads may share it.

    Args:
        most: networks at once.
    """

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine, self._most = engine, most
        self._residents: dict[str, Resident] = {}
        self._alone: set[str] = set()  # folders of adapters that answer over no other's network
        self._opening: set[str] = set()
        self._waiting: Counter[str] = Counter()  # requests, by the network that they wait for
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}

    def open(self, target: Target) -> tuple[Resident, Prompter, str | None]:
        """The network that answers for a target, how it is asked, and the adapter's name in it.

        Raises:
            ModelError: the target is no model that says tokens, or cannot be loaded.
            Busy: there is no room for its network, since the others are asked.
        """
        recipe, folder = target.recipe, target.folder
        task = cast(Task, recipe.task)
        if task.head is not Head.TOKENS:
            raise ModelError.of("model-says-no-text", key="model", value=target.name, task=task.kind)
        if folder is None or self._may_stack(folder, recipe):
            model = recipe.model
            key = f"{model.name}@{model.revision}/{model.quantize} {recipe.train.precision}"
            base = recipe.model_copy(update={"task": Chat()})  # as it answers by itself
            resident = self._resident(key, partial(self._engine.base, base))
            adapter = None if folder is None else Adapter(str(folder), (folder,), recipe)
            if adapter is None or resident.stacks(adapter):
                return resident, resident.asked(target), adapter.name if adapter else None
            self._alone.add(str(folder))
        resident = self._resident(str(folder), partial(self._engine.alone, cast(Path, folder), recipe))
        return resident, resident.asked(target), None

    def states(self) -> Mapping[str, State]:
        """How each network's batcher stands."""
        with self._lock:
            return {key: resident.answers.state() for key, resident in self._residents.items()}

    def close(self) -> None:
        """End all."""
        with self._lock:
            for resident in self._residents.values():
                resident.answers.close()
            self._residents.clear()

    def _may_stack(self, folder: Path, recipe: Recipe) -> bool:
        """Whether an adapter may answer over its base's network, as far as its settings tell."""
        adapter = cast(Adaptation, recipe.adaptation).adapter
        return adapter and str(folder) not in self._alone and not obstacles(folder, recipe)

    def _resident(self, key: str, load: Callable[[], Resident]) -> Resident:
        with self._lock:
            there = self._residents.get(key)
            if there is not None and there.answers.alive:
                there.used = time.monotonic()
                return there
            loading = self._loading.setdefault(key, threading.Lock())
            if self._waiting[key] >= MOST_WAITING:
                raise Busy(REST_S)
            self._waiting[key] += 1
        try:
            with loading:  # one loads; the others wait for it, and not for those who ask another network
                resident = self._residents.get(key)
                if resident is None or not resident.answers.alive:
                    resident = self._loaded(key, load)
                resident.used = time.monotonic()
            return resident
        finally:
            with self._lock:
                self._waiting[key] -= 1

    def _loaded(self, key: str, load: Callable[[], Resident]) -> Resident:
        self._make_room(key)
        try:
            resident = load()
            with self._lock:
                self._residents[key] = resident
        finally:
            with self._lock:
                self._opening.discard(key)
        return resident

    def _make_room(self, key: str) -> None:
        """Let networks go, so that there is room for another.

        Raises:
            Busy: all are asked.
        """
        with self._lock:
            others = {name: resident for name, resident in self._residents.items() if name != key}
            idle = sorted((name for name in others if others[name].idle), key=lambda name: others[name].used)
            over = len(others) + len(self._opening) - self._most + 1
            if len(idle) < over:
                raise Busy(REST_S)
            ended = [key] if key in self._residents else []
            gone = [self._residents.pop(name) for name in [*ended, *idle[: max(0, over)]]]
            self._opening.add(key)
        for resident in gone:
            resident.answers.close()


def base_recipe(name: str) -> Recipe:
    """The recipe with which a base answers: a chat, in the arithmetic that is fast here."""
    precision = "bf16" if has_fast_bf16(Local().place()) else "fp32"
    return parse_recipe(
        {"model": name, "data": "-", "task": "chat", "engine": "local", "train": {"precision": precision}}
    )


def resident(
    answers: Answers,
    tokenizer: Any,
    generation: Any,
    recipe: Recipe,
    check: Callable[[Adapter], None],
    adapters: dict[str, Adapter],
) -> Resident:
    """A network that was opened for a recipe."""
    grammars = Grammars(tokenizer, stops(generation, cast(TokenTask, recipe.task), tokenizer))
    return Resident(answers, tokenizer, generation, grammars, check, adapters)


class InProcess:
    """Opens networks in this process."""

    def base(self, recipe: Recipe) -> Resident:
        """A base, over which adapters are stacked."""
        start = locate(recipe.model)
        loaded = load(start.folder, recipe.model, Head.TOKENS, (), None, recipe.seed)
        policy = deployed(loaded.network, loaded.tokenizer, recipe)
        adapters: dict[str, Adapter] = {}
        batcher = Batcher(policy, find=adapters.__getitem__)
        stacks = partial(check, network=policy.network)
        return resident(batcher, loaded.tokenizer, policy.network.generation_config, recipe, stacks, adapters)

    def alone(self, folder: Path, recipe: Recipe) -> Resident:
        """A model that shares its network with nobody."""
        plain = load_run(folder, recipe)
        generation = plain.policy.network.generation_config
        try:
            batcher = Batcher(plain.policy)
        except ValueError as error:
            raise ModelError.of("model-asked-not", key="model", reason=str(error)) from None
        return resident(batcher, plain.tokenizer, generation, recipe, _none, {})


def _none(adapter: Adapter) -> None:
    raise ValueError(f"{adapter.name} is over another network.")
