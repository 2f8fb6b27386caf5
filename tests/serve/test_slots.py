"""Slots: rows that come and go at places of their own get the logits that they would get alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import decoders
from onsa.models import slots as slotted
from onsa.models.slots import BLOCK, Shelf, Slots, attend_by_slots, windows

ROOM = 1 << 24


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def opened(family: str = "llama", rows: int = 8) -> tuple[Any, Any, Slots]:
    """A network as it is, the same one that attends by slots, and slots for it."""
    plain, network = decoders.network(family), decoders.network(family)
    attend_by_slots(network)
    return plain, network, Slots(network, rows, ROOM)


def sent(network: Any, slots: Slots, shelf: Shelf, parts: Sequence[Sequence[int]]) -> list[Tensor]:
    """The logits of tokens that follow in all rows of a shelf."""
    longest = max(map(len, parts))
    token_RT = torch.tensor([[*part, *[0] * (longest - len(part))] for part in parts])
    with slots.taking(shelf, [len(part) for part in parts]) as told:
        logit_RTV = network(input_ids=token_RT, **told).logits
    return [logit_TV[: len(part)] for logit_TV, part in zip(logit_RTV, parts, strict=True)]


def read(network: Any, slots: Slots, *texts: list[int]) -> None:
    """Let rows join with prompts that are read at once."""
    for text in texts:
        slots.open(len(text))
    sent(network, slots, slots.reading, texts)
    slots.settle()


def whole(plain: Any, tokens: Sequence[int]) -> Tensor:
    logit_TV: Tensor = plain(input_ids=torch.tensor([list(tokens)])).logits[0]
    return logit_TV


def drawn(dice: random.Random, count: int) -> list[int]:
    return [dice.randrange(decoders.VOCABULARY) for _ in range(count)]


@pytest.mark.parametrize("family", decoders.FAMILIES)
def test_rows_that_come_and_go_are_as_alone(family: str) -> None:
    """A walk: rows join with prompts of any length, in chunks between which others go on, and any row leaves."""
    plain, network, slots = opened(family)
    dice, ready, reading = random.Random(3), list[list[int]](), list[list[int]]()

    def check(shelf: Shelf, texts: list[list[int]], most: int) -> None:
        parts = [drawn(dice, dice.randint(1, most)) for _ in texts]
        for text, part, found in zip(texts, parts, sent(network, slots, shelf, parts), strict=True):
            text += part
            torch.testing.assert_close(found, whole(plain, text)[-len(part) :], rtol=0, atol=1e-4)

    capacities = set()
    for _ in range(150):
        act = dice.choice(["join", "join", "read", "read", "read", "settle", "step", "step", "step", "leave"])
        if act == "join" and slots.rows < 6:
            slots.open(dice.randint(0, 50))
            reading.append([])
            check(slots.reading, reading, 40)
        elif act == "read" and reading:
            check(slots.reading, reading, 40)
        elif act == "settle" and reading:
            slots.settle()
            ready += reading
            reading.clear()
        elif act == "step" and ready:
            check(slots.ready, ready, 1)
        elif act == "leave" and slots.rows:
            texts, shelf = dice.choice([one for one in ((ready, slots.ready), (reading, slots.reading)) if one[0]])
            row = dice.randrange(len(texts))
            shelf.free(row)
            texts[row] = texts[-1]
            texts.pop()
        assert slots.ready.length_R == [len(text) for text in ready]
        assert slots.reading.length_R == [len(text) for text in reading]
        capacities.add(slots.ready.capacity)
    assert len(capacities) > 2, "capacity grew and fell"


def test_capacity_is_what_the_longest_row_needs() -> None:
    _, network, slots = opened()
    read(network, slots, [7] * 5, [7] * BLOCK)
    assert slots.ready.capacity == BLOCK
    slots.open(4 * BLOCK + 1)
    sent(network, slots, slots.reading, [[7] * 9])
    assert slots.reading.capacity == 5 * BLOCK and slots.ready.capacity == BLOCK, "whoever is ready is not held up"
    sent(network, slots, slots.reading, [[7] * (4 * BLOCK - 8)])
    slots.settle()
    assert slots.ready.capacity == 5 * BLOCK and slots.reading.capacity == 0
    assert slots.ready.layers[0].keys[:3].is_contiguous()
    slots.ready.free(2)
    sent(network, slots, slots.ready, [[1], [2]])
    assert slots.ready.capacity == 2 * BLOCK, "what the long row needed is given back"
    for _ in range(2):
        slots.ready.free(0)
    assert (slots.ready.capacity, slots.ready.layers, slots.rows) == (0, {}, 0)


def test_the_limit_counts_what_is_allocated() -> None:
    _, network, slots = opened(rows=4)
    assert slots.most_tokens() is None
    read(network, slots, [1, 2, 3])
    assert slots.token_bytes == 2 * 2 * 2 * 8 * 4, "layers, keys and values, heads, width, bytes"
    slots._limit = 3 * BLOCK * slots.token_bytes
    assert slots.fits(3, BLOCK) and slots.fits(1, 3 * BLOCK)
    assert not slots.fits(4, BLOCK) and not slots.fits(2, BLOCK + 1)
    assert slots.most_tokens() == 3 * BLOCK
    for _ in range(2):
        read(network, slots, [1, 2, 3])
    assert slots.ready.rows == 3, "no row is held in reserve where there is no room"
    slots._limit = ROOM
    assert slots.fits(4, 3) and not slots.fits(5, 3)


def test_a_row_begins_with_what_another_has_held() -> None:
    plain, network, slots = opened()
    text = drawn(random.Random(1), 100)
    read(network, slots, [3, 4], text)
    stretches = [slots.ready.copied(1, 0, 32), slots.ready.copied(1, 32, 64)]
    for _ in range(2):
        slots.ready.free(0)
    for given, length in ((stretches, 64), ([], 0)):
        slots.reading.begin(slots.open(80), given)
        assert slots.reading.length_R[-1] == length
    found, _ = sent(network, slots, slots.reading, [text[64:80], [5]])
    torch.testing.assert_close(found, whole(plain, text)[64:80], rtol=0, atol=1e-4)


def test_a_failed_forward_leaves_rows_as_they_were() -> None:
    plain, network, slots = opened()
    read(network, slots, [3, 4, 5])
    with pytest.raises(RuntimeError, match="broken"), slots.taking(slots.ready, [1]):
        raise RuntimeError("broken")
    assert slots.ready.length_R == [3]
    (found,) = sent(network, slots, slots.ready, [[6]])
    torch.testing.assert_close(found, whole(plain, [3, 4, 5, 6])[-1:], rtol=0, atol=1e-4)


def test_what_is_not_finite_does_not_outlive_its_row() -> None:
    plain, network, slots = opened()
    read(network, slots, [3, 4, 5], [7] * 20)
    for part in slots.ready._parts():
        part[1, :, :20] = torch.nan
    slots.ready.wipe(1)
    slots.ready.free(1)
    read(network, slots, [8, 9])
    found = sent(network, slots, slots.ready, [[1], [2]])
    for logit_TV, text in zip(found, ([3, 4, 5, 1], [8, 9, 2]), strict=True):
        torch.testing.assert_close(logit_TV[-1], whole(plain, text)[-1], rtol=0, atol=1e-4)


def test_layers_that_see_something_else_are_refused() -> None:
    network = decoders.network("mixed")
    assert windows(network) == {"full_attention": None, "sliding_attention": 9}
    network.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match="linear_attention"):
        Slots(network, 4, ROOM)


def test_one_token_a_row_is_attended_to_by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    _, network, slots = opened()
    calls: list[int] = []
    products = slotted.products

    def watched(module: Any, query_RHTD: Tensor, *given: Any, **named: Any) -> Any:
        calls.append(query_RHTD.shape[2])
        return products(module, query_RHTD, *given, **named)

    monkeypatch.setattr(slotted, "products", watched)
    read(network, slots, [3, 4, 5])
    assert calls == []
    sent(network, slots, slots.ready, [[6]])
    assert calls == [1, 1]
