"""Networks in memory: no more than there may be, also while they are being loaded, and one at a time of each."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import pytest

from onsa.serve import residents as module
from onsa.serve.asks import Busy
from onsa.serve.residents import Resident, Residents, Target
from onsa.serve.scheduling import FairQueue
from onsa.spec.recipe import Recipe, parse_recipe


class Slow:
    """Opens networks as soon as it may, and counts them."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.opened: list[str] = []

    def base(self, recipe: Recipe) -> Resident:
        assert self.may.wait(20)
        self.opened.append(recipe.model.name)
        return cast(Resident, Played())

    def alone(self, folder: Path, recipe: Recipe) -> Resident:
        return self.base(recipe)


class Played:
    """A network that nobody asks."""

    def __init__(self) -> None:
        self.answers, self.used, self.idle = self, 0.0, True
        self.alive = True
        self.closed = False

    def asked(self, target: Target) -> Any:
        return target.name

    def close(self) -> None:
        self.closed = True


def target(name: str) -> Target:
    return Target(name, parse_recipe({"model": name, "data": "-", "task": "chat", "engine": "local"}))


def asking(residents: Residents, name: str) -> threading.Thread:
    thread = threading.Thread(target=lambda: residents.open(target(name)))
    thread.start()
    return thread


def until(what: Any) -> None:
    for _ in range(2000):
        if what():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come to that")


def test_what_is_being_loaded_counts() -> None:
    engine = Slow()
    residents = Residents(engine, 1)
    first = asking(residents, "a")
    until(lambda: residents._opening)
    with pytest.raises(Busy):
        residents.open(target("b"))
    engine.may.set()
    first.join()
    residents.open(target("b"))  # the other is idle, and goes
    assert engine.opened == ["a", "b"]


def test_few_wait_for_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    engine = Slow()
    residents = Residents(engine, 2)
    threads = [asking(residents, "a"), asking(residents, "a")]
    until(lambda: sum(residents._waiting.values()) == 2)
    with pytest.raises(Busy):
        residents.open(target("a"))
    engine.may.set()
    for thread in threads:
        thread.join()
    assert engine.opened == ["a"]


def test_what_has_ended_is_opened_anew() -> None:
    engine = Slow()
    engine.may.set()
    residents = Residents(engine, 1)
    played = cast(Any, residents.open(target("a"))[0])
    played.alive = False
    again = residents.open(target("a"))[0]
    assert cast(Any, again) is not played and played.closed


def test_a_full_queue_still_takes_who_has_little_in_it() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(4):
        assert not queue.full("a", 4)
        queue.put("a", number)
    assert queue.full("a", 4)
    assert not queue.full("b", 4)
    queue.put("b", 4)
    assert queue.full("b", 4) and queue.full("a", 4) and not queue.full("c", 4)


def test_what_is_there_is_given_to_any_number_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 0)  # nobody may wait
    residents = Residents(Slow(), 1)
    with pytest.raises(Busy):
        residents.open(target("a"))
    monkeypatch.undo()
    cast(Any, residents._engine).may.set()
    there = residents.open(target("a"))[0]
    monkeypatch.setattr(module, "MOST_WAITING", 0)
    assert residents.open(target("a"))[0] is there
