"""How the service answers: by which engine, and with how many networks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Engine(StrEnum):
    """What networks are computed by."""

    ONSA = "onsa"
    VLLM = "vllm"


@dataclass(frozen=True)
class Answering:
    """How the service answers.

    networks: in memory at once.
    answer_tokens: of an answer whose request names no number; 0 is as many as there is room for.
    """

    engine: Engine = Engine.ONSA
    networks: int = 3
    answer_tokens: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "engine", Engine(self.engine))
