"""Slots: keys and values of rows that come and go, so that each row may be at another place of its text.

Every row has a slot of a length of its own, filled from the left (the slots of Kwon et al. 2023, section 4, each of one
page). Rows that are answered lie on a shelf beside each other, with no more places than the longest of them needs, in
blocks: what is read in decoding is then one contiguous piece of memory, of which a bf16 product on a CPU reads three
times as much a second as of a view. Rows whose prompt is still being read lie on another, where they hold up nobody.

Shape legend: R rows of a forward, T tokens of each, N tokens of all rows, C capacity in places, K heads of keys and
values, H heads of queries, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from onsa.models.attention import products
from onsa.models.lowering import base_network

BLOCK = 64  # places by which capacity grows
WAY = "onsa_slots"
FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' names of what a layer attends to
Stretch = dict[int, tuple[Tensor, Tensor]]  # keys and values of some tokens, ``key_KTD`` and ``value_KTD``, by layer


@dataclass
class Layer:
    """What all rows of a shelf hold in one layer, ``key_RKCD`` and ``value_RKCD``."""

    keys: Tensor
    values: Tensor


class Shelf:
    """Rows whose keys and values lie beside each other.

    length_R: how many tokens each row has.
    rows, capacity: for how many rows of how many tokens there is room.
    fault: what kept it from growing, half way; its rows can then but leave.
    """

    def __init__(self) -> None:
        self.length_R: list[int] = []
        self.rows = self.capacity = 0
        self.layers: dict[int, Layer] = {}
        self.fault: Exception | None = None

    def free(self, row: int) -> None:
        """Take a row away; the last one comes into its place."""
        last = self.length_R.pop()
        if row < len(self.length_R):
            self.length_R[row] = last
            for part in self._parts():
                part[row, :, :last] = part[len(self.length_R), :, :last]
        if not self.length_R:  # what a long text has taken is given back
            self.rows, self.capacity, self.fault = 0, 0, None
            self.layers.clear()

    def wipe(self, row: int) -> None:
        """Forget all that a row holds: what is not finite would reach who comes next, even from behind a mask."""
        self.length_R[row] = 0
        for part in self._parts():
            part[row : row + 1] = 0  # where there is a fault, there may be none

    def resize(self, rows: int, places: int) -> None:
        """Hold so many rows of so many places."""
        kept, length = min(len(self.length_R), self.rows), min(self.capacity, places)
        self.rows, self.capacity = rows, places
        try:
            for index, old in self.layers.items():
                new = self._new(old.keys, old.values)
                new.keys[:kept, :, :length] = old.keys[:kept, :, :length]
                new.values[:kept, :, :length] = old.values[:kept, :, :length]
                self.layers[index] = new
        except RuntimeError as error:  # as of memory that is too small
            self.fault = error
            raise

    def layer(self, index: int, like_keys: Tensor, like_values: Tensor) -> Layer:
        """What is held in a layer, of which keys and values are like these but for rows and places."""
        if index not in self.layers:
            self.layers[index] = self._new(like_keys, like_values)
        return self.layers[index]

    def _new(self, keys: Tensor, values: Tensor) -> Layer:
        # Zeros, as behind a mask, too, a number has to be finite.
        return Layer(*(x.new_zeros(self.rows, x.shape[-3], self.capacity, x.shape[-1]) for x in (keys, values)))

    def copied(self, row: int, start: int, end: int) -> Stretch:
        """A copy of what a row holds of some of its tokens."""
        return {
            index: (layer.keys[row, :, start:end].clone(), layer.values[row, :, start:end].clone())
            for index, layer in self.layers.items()
        }

    def begin(self, row: int, stretches: Sequence[Stretch]) -> None:
        """Let a row, for which there is room, begin with tokens that another has held, stretch after stretch."""
        for index in stretches[0] if stretches else ():
            keys, values = (torch.cat([stretch[index][part] for stretch in stretches], 1) for part in (0, 1))
            layer, length = self.layer(index, keys, values), keys.shape[1]
            layer.keys[row, :, :length], layer.values[row, :, :length] = keys, values
            self.length_R[row] = length

    def _parts(self) -> Iterator[Tensor]:
        for layer in self.layers.values():
            yield layer.keys
            yield layer.values


@dataclass(frozen=True)
class Places:
    """Where the tokens of one forward go: ``count_R`` behind the ``start_R`` that each row of a shelf has."""

    shelf: Shelf
    start_R: tuple[int, ...]
    count_R: tuple[int, ...]
    row_N: Tensor
    place_N: Tensor

    @property
    def longest(self) -> int:
        """Tokens of the longest row, with those that come."""
        return max(start + count for start, count in zip(self.start_R, self.count_R, strict=True))

    @property
    def seen(self) -> int:
        """How many places of their slots rows look at: in decoding all, as they are contiguous."""
        return self.shelf.capacity if max(self.count_R) == 1 else self.longest

    @cached_property
    def level(self) -> bool:
        """Whether all rows are at the same place and get as many tokens."""
        return len(set(self.start_R)) == len(set(self.count_R)) == 1


class Slots:
    """The keys and values of open rows, as transformers' networks ask for them (``past_key_values``).

    ``reading`` holds rows whose prompts are being read, ``ready`` those that are read.

    Args:
        network: a transformers model, perhaps inside the wrapper of an adaptation.
        rows: the most that are open at once.
        limit_bytes: the most that keys and values may take.

    Raises:
        ValueError: a layer of the network attends to something else than all tokens before, or a window of these.
    """

    def __init__(self, network: nn.Module, rows: int, limit_bytes: int) -> None:
        self.ready, self.reading = Shelf(), Shelf()
        self._most_rows, self._limit = rows, limit_bytes
        self._windows = windows(network)
        self._device = next(network.parameters()).device
        self._bytes: dict[int, int] = {}  # of one token, by layer
        self._places: Places | None = None

    @property
    def rows(self) -> int:
        """How many are open."""
        return len(self.ready.length_R) + len(self.reading.length_R)

    @property
    def token_bytes(self) -> int:
        """What one token of one row takes; 0 until a forward has shown it."""
        return sum(self._bytes.values())

    def most_tokens(self) -> int | None:
        """How long a row may become that stands alone; ``None`` until a forward has shown what a token takes."""
        return self._limit // self.token_bytes // BLOCK * BLOCK if self.token_bytes else None

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether so many rows, the longest of so many tokens, stay within the limit."""
        return rows <= self._most_rows and rows * _up(tokens) * self.token_bytes <= self._limit

    def open(self, tokens: int) -> int:
        """A new row, whose prompt of so many tokens is to be read: its index among those that are read."""
        row = len(self.reading.length_R)
        self.reading.length_R.append(0)
        self._reserve(self.reading, row + 1, max(tokens, self.reading.capacity))
        return row

    def settle(self) -> None:
        """All prompts are read: their rows come behind those that are ready."""
        ready, reading = self.ready, self.reading
        first, rows, longest = len(ready.length_R), self.rows, max(reading.length_R)
        self._reserve(ready, rows, max([longest, *ready.length_R]))
        for index, layer in reading.layers.items():
            to = ready.layer(index, layer.keys, layer.values)
            to.keys[first:rows, :, :longest] = layer.keys[: rows - first, :, :longest]
            to.values[first:rows, :, :longest] = layer.values[: rows - first, :, :longest]
        ready.length_R += reading.length_R
        self.reading = Shelf()

    def _reserve(self, shelf: Shelf, rows: int, tokens: int) -> None:
        """Make room on a shelf for so many rows, of which the longest will have so many tokens."""
        places = _up(tokens)
        if rows <= shelf.rows and places <= shelf.capacity <= 2 * places:
            return
        ample = max(rows, min(2 * rows, self._most_rows))
        shelf.resize(ample if shelf is self.ready and self.fits(ample, tokens) else rows, places)

    @contextmanager
    def taking(self, shelf: Shelf, count_R: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Within, one forward adds tokens to all rows of a shelf; gives what the network is told of them.

        Rows with fewer tokens than others are padded behind. If the forward fails, rows are as before.

        Yields:
            ``past_key_values``, ``position_ids`` (R, T) and ``attention_mask`` (R, 1, T, C), of layers that attend to
            unlike spans one of each kind.
        """
        if shelf.fault is not None:
            raise shelf.fault
        start_R = tuple(shelf.length_R)
        row_N = [row for row, count in enumerate(count_R) for _ in range(count)]
        place_N = [start + place for start, count in zip(start_R, count_R, strict=True) for place in range(count)]
        index_N = (torch.tensor(one, device=self._device) for one in (row_N, place_N))
        self._places = places = Places(shelf, start_R, tuple(count_R), *index_N)
        wanted = places.longest if shelf is self.ready else max(places.longest, shelf.capacity)
        self._reserve(shelf, len(start_R), wanted)
        try:
            yield {"past_key_values": self, "use_cache": True, **self._told(places)}
        finally:
            self._places = None
        shelf.length_R = [start + count for start, count in zip(start_R, count_R, strict=True)]

    def _told(self, places: Places) -> dict[str, Any]:
        start_R1 = torch.tensor(places.start_R, device=self._device)[:, None]
        count_R1 = torch.tensor(places.count_R, device=self._device)[:, None]
        step_T = torch.arange(max(places.count_R), device=self._device)
        place_RT = start_R1 + step_T.minimum(count_R1 - 1)  # padding stands where its row's last token does
        seen_C = torch.arange(places.seen, device=self._device)
        masks = {kind: _mask(places, place_RT, seen_C, window) for kind, window in self._windows.items()}
        return {"position_ids": place_RT, "attention_mask": masks if len(masks) > 1 else next(iter(masks.values()))}

    def update(
        self, key_RKTD: Tensor, value_RKTD: Tensor, layer_idx: int, *more: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Take up a layer's keys and values of the tokens that go through, and give those of all their rows' tokens.

        The signature is that of transformers' ``Cache.update``.
        """
        places = self._places
        assert places is not None, "within a forward that takes slots"
        layer = places.shelf.layer(layer_idx, key_RKTD, value_RKTD)
        if layer_idx not in self._bytes:
            parts = (layer.keys, layer.values)
            self._bytes[layer_idx] = sum(part.shape[1] * part.shape[3] * part.element_size() for part in parts)
        return _put(places, layer.keys, key_RKTD), _put(places, layer.values, value_RKTD)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest of the rows that go through now, before this forward; transformers' name."""
        return max(self._places.start_R) if self._places is not None else 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """As :meth:`get_seq_length`; transformers' name."""
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """How many keys are looked at, and the place of the first; transformers' name."""
        assert self._places is not None, "within a forward that takes slots"
        return self._places.seen, 0


def _mask(places: Places, place_RT: Tensor, seen_C: Tensor, window: int | None) -> Tensor:
    """What each token sees, as truth values; of one token a row as what products add to scores, for all layers once."""
    sees_RTC = seen_C <= place_RT[:, :, None]
    if window is not None:
        sees_RTC &= seen_C > place_RT[:, :, None] - window
    if place_RT.shape[1] > 1 or not places.shelf.layers:
        return sees_RTC[:, None]
    dtype = next(iter(places.shelf.layers.values())).keys.dtype
    mask_RTC = torch.zeros(sees_RTC.shape, dtype=dtype, device=sees_RTC.device)
    return mask_RTC.masked_fill_(~sees_RTC, torch.finfo(dtype).min)[:, None]


def _put(places: Places, held_RKCD: Tensor, new_RKTD: Tensor) -> Tensor:
    """Take up what is new, and give what is looked at."""
    rows = len(places.start_R)
    if places.level:
        start, count = places.start_R[0], places.count_R[0]
        held_RKCD[:rows, :, start : start + count] = new_RKTD
    else:
        new_NKD = new_RKTD.transpose(1, 2)
        if len(set(places.count_R)) == 1:
            new_NKD = new_NKD.flatten(0, 1)
        else:  # padding is not held
            new_NKD = torch.cat([row_TKD[:count] for row_TKD, count in zip(new_NKD, places.count_R, strict=True)])
        held_RKCD[places.row_N, :, places.place_N] = new_NKD
    return held_RKCD[:rows, :, : places.seen]


def _up(tokens: int) -> int:
    """Places in whole blocks."""
    return -(-max(tokens, 1) // BLOCK) * BLOCK


def windows(network: nn.Module) -> Mapping[str, int | None]:
    """How many of the tokens before, itself among them, a token sees in layers of each kind; ``None`` is all.

    Raises:
        ValueError: layers of some kind see something else.
    """
    config = base_network(network).config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [FULL if window is None else SLIDING])
    other = sorted(kinds - {FULL, SLIDING})
    if other:
        raise ValueError(f"rows of unlike length do not go together through layers of {', '.join(other)}")
    return {kind: None if kind == FULL else window for kind in sorted(kinds)}


def attend_by_slots(network: nn.Module) -> None:
    """Let a network attend with its library's kernel, but on a CPU for one token a row with two products.

    Of one token a row the kernel takes five times as long in bf16.

    Raises:
        ValueError: it cannot.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(WAY, _attend)
    AttentionMaskInterface.register(WAY, sdpa_mask)
    base_network(network).set_attn_implementation(WAY)


def _attend(
    module: Any, query_RHTD: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **named: Any
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    one = query_RHTD.shape[2] == 1 and query_RHTD.device.type == "cpu"
    mixed_RTHD, _ = (products if one else sdpa_attention_forward)(
        module, query_RHTD, key, value, attention_mask, **named
    )
    return mixed_RTHD, None
