"""What a model's last layer gives, and how a base gets the head that a task needs."""

from __future__ import annotations

from enum import StrEnum


class Head(StrEnum):
    """One vector a row (a new head over the pooled input), or one prediction a token (the base's own language head)."""

    ROWS = "rows"
    TOKENS = "tokens"
