"""Asks: what is asked of a model that answers many at once, and what it tells, token by token.

Log-probabilities are the network's own: before penalties, biases, limits to what may be said, and the temperature.

Shape legend: V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

MOST_ALTERNATIVES = 20
Reason = Literal["stop", "length", "cancelled", "failed"]
Top = tuple[tuple[int, float], ...]  # the likeliest tokens with their log-probabilities, the likeliest first


class Allowed(Protocol):
    """What may be said next, by a JSON schema. Asked only by the thread that answers."""

    schema: Mapping[str, Any]

    def mask(self) -> NDArray[np.bool_] | NDArray[np.uint8]:
        """Which tokens may be next: a truth value each, or packed, eight to a byte, the first the lowest bit.

        Tokens behind its end may not.
        """

    def take(self, token: int) -> None:
        """A token was said."""


@dataclass(frozen=True)
class Ask:
    """One answer that is asked for.

    prompt: the tokens that it continues.
    most: tokens of the answer; it may also end where the network can look no further. At 0 only the prompt is read.
    temperature: logits are divided by it; below 1e-5 the likeliest token is taken.
    top_p: the likeliest tokens that have this probability together are drawn from (Holtzman et al. 2020); tokens as
        likely as the last of them are among them.
    seed: each token is a function of it, the token's position in the answer and the logits alone.
    stops: tokens with which an answer ends; they belong to it.
    adapter: who answers; ``None`` is the base.
    sender: who asks; senders are served in turn.
    alternatives: how many of the likeliest tokens are told beside each token, up to 20.
    prompt_logprobs: tell the log-probabilities of the prompt's own tokens, too; it is then read anew.
    frequency_penalty, presence_penalty: what a token's logit loses for each time that the answer has it, and once.
    logit_bias: what is added to tokens' logits.
    allowed: what may be said.

    Raises:
        ValueError: a number is out of its range.
    """

    prompt: tuple[int, ...]
    most: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stops: tuple[int, ...] = ()
    adapter: str | None = None
    sender: str = ""
    alternatives: int = 0
    prompt_logprobs: bool = False
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed: Allowed | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt: holds no token; one is needed to begin with.")
        if self.most < 0 or (self.most == 0 and not self.prompt_logprobs):
            raise ValueError(f"most: {self.most} tokens; an answer has at least one.")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature: {self.temperature}; it is a finite number from 0 on.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: {self.top_p}; it is above 0 and at most 1.")
        if self.seed < 0:
            raise ValueError(f"seed: {self.seed}; it is at least 0.")
        if not 0 <= self.alternatives <= MOST_ALTERNATIVES:
            raise ValueError(f"alternatives: {self.alternatives}; up to {MOST_ALTERNATIVES} are told.")
        numbers = (self.frequency_penalty, self.presence_penalty, *self.logit_bias.values())
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("frequency_penalty, presence_penalty, logit_bias: a number is not finite.")


@dataclass(frozen=True)
class Said:
    """A token of the answer, with its log-probability; ``top`` has as many tokens as alternatives were asked for."""

    token: int
    logprob: float
    top: Top = ()


@dataclass(frozen=True)
class Read:
    """The log-probabilities of a prompt's tokens, the first of which has none, and the likeliest in their places."""

    logprobs: tuple[float | None, ...]
    tops: tuple[Top, ...]


@dataclass(frozen=True)
class Done:
    """The end of an answer: the last that is told of it.

    cached_tokens: of the prompt, those whose keys and values were still there.
    message: what has failed.
    """

    reason: Reason
    prompt_tokens: int
    cached_tokens: int = 0
    message: str = ""


Event = Said | Read | Done
Tell = Callable[[Event], None]


class Busy(Exception):  # noqa: N818
    """More ask than may wait; ``retry_after_s`` tells when it may be worth asking again, in seconds."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"Too many requests wait; try again in {retry_after_s:.0f} s.")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class State:
    """How a network's requests stand now.

    running, waiting: requests.
    tokens: that were said since it was opened.
    prefix_hits: requests of which keys and values were still there, of ``prefix_tokens`` tokens in all.
    prefix_bytes: what prefixes take now; ``slots_tokens`` is how long rows may become now without more memory.
    given_up: rows that made room for others, and were read anew later.
    adapters: that are loaded, the least recently used first.
    """

    running: int
    waiting: int
    tokens: int
    prefix_hits: int
    prefix_tokens: int
    adapters: tuple[str, ...]
    prefix_bytes: int = 0
    slots_tokens: int = 0
    given_up: int = 0


class Ticket(Protocol):
    """A request that was taken."""

    def cancel(self) -> None:
        """Let the answer end before its next token; from any thread, at any time. What is over stays as it was."""


class Answers(Protocol):
    """A network that answers many requests at once."""

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its answer together."""

    @property
    def alive(self) -> bool:
        """Whether it answers."""

    def submit(self, ask: Ask, tell: Tell) -> Ticket:
        """Let a request wait for its answer.

        Args:
            tell: called for each event, the last of which is :class:`Done`, from a thread of its own that all requests
                share, so it has to be brief.

        Raises:
            Busy: too many wait.
            ValueError: this network cannot be asked so.
        """

    def state(self) -> State:
        """How it stands; from any thread."""

    def close(self) -> None:
        """Cancel what runs and waits, and end."""


def check(ask: Ask, context: int, vocabulary: int) -> None:
    """Whether a network that knows ``vocabulary`` tokens, and looks at ``context`` of them, can be asked so.

    Raises:
        ValueError: it cannot.
    """
    if len(ask.prompt) + min(ask.most, 1) > context:
        raise ValueError(f"prompt: {len(ask.prompt)} tokens; with an answer {context} are the most.")
    strange = [token for token in (*ask.prompt, *ask.logit_bias) if not 0 <= token < vocabulary]
    if strange:
        raise ValueError(f"token {strange[0]}: the vocabulary has {vocabulary}.")
