"""Scheduling: who is next. Senders in turn, each with what it sent first."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Waiting items by their sender: round robin over senders, in order within one (Nagle 1987)."""

    def __init__(self) -> None:
        self._items: OrderedDict[str, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    def __iter__(self) -> Iterator[Item]:
        """All items, by sender."""
        for items in self._items.values():
            yield from items

    def full(self, sender: str, most: int) -> bool:
        """Whether a sender may let no further item wait, since so many do, and the sender's share of them is taken; one
        that has few may always."""
        share = most // (1 + len(self._items))
        return len(self) >= most and len(self._items.get(sender, ())) >= max(1, share)

    def put(self, sender: str, item: Item) -> None:
        """Let an item wait, behind the sender's others."""
        self._items.setdefault(sender, deque()).append(item)

    def first(self) -> Item | None:
        """Who is next; it goes on waiting."""
        return next((items[0] for items in self._items.values()), None)

    def take(self) -> Item:
        """Who is next; its sender is then behind the other senders.

        Raises:
            LookupError: nobody waits.
        """
        if not self._items:
            raise LookupError("nobody waits")
        sender, items = next(iter(self._items.items()))
        item = items.popleft()
        self._items.move_to_end(sender)
        if not items:
            del self._items[sender]
        return item

    def remove(self, gone: Callable[[Item], bool]) -> list[Item]:
        """Let some items wait no longer: these."""
        removed = [item for item in self if gone(item)]
        for sender, items in list(self._items.items()):
            self._items[sender] = deque(item for item in items if not gone(item))
            if not self._items[sender]:
                del self._items[sender]
        return removed
