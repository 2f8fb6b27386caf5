"""Prefixes: keys and values of prompts that were read, for prompts that begin alike.

A prompt is kept in blocks of tokens, each found by a digest of all that stands up to its end and of who answers, so a
block is the same only where all before it is (Kwon et al. 2023, section 4.4, as Zheng et al. 2024 keep it for later
requests). Within a budget of bytes, the least recently used go first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np

from onsa.models.slots import Stretch

BLOCK_TOKENS = 32
Digest = bytes


def digests(adapter: str | None, tokens: Sequence[int]) -> list[Digest]:
    """One for each whole block of some tokens, and all before it."""
    last = blake2b((adapter or "").encode(), digest_size=32, person=b"base" if adapter is None else b"adapter").digest()
    found = []
    for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        last = blake2b(last + np.asarray(tokens[end - BLOCK_TOKENS : end], "<i8").tobytes(), digest_size=32).digest()
        found.append(last)
    return found


class Prefixes:
    """What is kept of prompts.

    Args:
        limit_bytes: the most that is kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._blocks: OrderedDict[Digest, Stretch] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        """Blocks that are kept."""
        return len(self._blocks)

    def known(self, digest_B: Sequence[Digest]) -> int:
        """How many of a prompt's first blocks are kept."""
        return next((count for count, digest in enumerate(digest_B) if digest not in self._blocks), len(digest_B))

    def take(self, digest_B: Sequence[Digest]) -> list[Stretch]:
        """Blocks that are kept, which are now the last used."""
        self._touch(digest_B)
        return [self._blocks[digest] for digest in digest_B]

    def keep(self, digest_B: Sequence[Digest], copied: Callable[[int, int], Stretch]) -> None:
        """Keep what is not yet kept of a prompt.

        Args:
            copied: gives keys and values of the prompt's tokens from one to another.
        """
        for place, digest in enumerate(digest_B):
            if digest in self._blocks:
                continue
            block = copied(place * BLOCK_TOKENS, (place + 1) * BLOCK_TOKENS)
            size = _bytes(block)
            if size * (place + 1) > self._limit:  # it would push out its own beginning
                break
            self._blocks[digest] = block
            self.bytes += size
        self._touch([digest for digest in digest_B if digest in self._blocks])
        while self.bytes > self._limit:
            self.bytes -= _bytes(self._blocks.popitem(last=False)[1])

    def _touch(self, digest_B: Sequence[Digest]) -> None:
        for digest in reversed(digest_B):  # a block is of no use without those before it, so these go later
            self._blocks.move_to_end(digest)


def _bytes(block: Stretch) -> int:
    return sum(part.nbytes for pair in block.values() for part in pair)
