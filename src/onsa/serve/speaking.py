"""Speaking: a batcher's tokens as text, as it comes: letters are whole, and words that end an answer are not told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from onsa.serve.asks import Said
from onsa.spec.texts import begun

PARTIAL = "\ufffd"  # what a tokenizer makes of a part of a letter
BEFORE = 6  # tokens that are decoded before new ones, since a tokenizer looks back


@dataclass(frozen=True, slots=True)
class Spoken:
    """A token of an answer, its letters' bytes, with its log-probability and the likeliest in its place."""

    letters: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more of an answer. ended: by one of the texts that end it."""

    text: str
    tokens: tuple[Spoken, ...] = ()
    ended: bool = False


@dataclass
class Voice:
    """One answer's tokens as text.

    stops: texts with which it ends; they do not belong to it.
    bytes_of: what a token stands for; without it, no tokens are told.
    """

    tokenizer: Any
    stops: Sequence[str] = ()
    bytes_of: Callable[[int], bytes] | None = None
    _tokens: list[int] = field(default_factory=list)
    _told: int = 0  # tokens whose letters are out of the tokenizer
    _held: str = ""  # letters that may be the beginning of a text that ends it

    def heard(self, said: Said) -> Piece:
        """What there is to tell now that another token was said."""
        self._tokens.append(said.token)
        start = max(0, self._told - BEFORE)
        before, now = self._text(self._tokens[start : self._told]), self._text(self._tokens[start:])
        if now.endswith(PARTIAL):
            return Piece("", self._spoken(said))
        self._told = len(self._tokens)
        text, ended = self._until_stop(self._held + now[len(before) :])
        return Piece(text, self._spoken(said), ended)

    def rest(self) -> Piece:
        """What was held back, when nothing more comes."""
        start = max(0, self._told - BEFORE)
        before, now = self._text(self._tokens[start : self._told]), self._text(self._tokens[start:])
        held, self._held, self._told = self._held, "", len(self._tokens)
        return Piece(held + now[len(before) :])

    def letters(self, token: int) -> bytes:
        """What a token stands for, where that is told."""
        return b"" if self.bytes_of is None else self.bytes_of(token)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _until_stop(self, text: str) -> tuple[str, bool]:
        """What of a text can be told, and whether one that ends it is in it; what may begin one is held back."""
        found = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = max((begun(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def _spoken(self, said: Said) -> tuple[Spoken, ...]:
        if self.bytes_of is None:
            return ()
        top = tuple((self.bytes_of(token), logprob) for token, logprob in said.top)
        return (Spoken(self.bytes_of(said.token), said.logprob, top),)
