"""A conversation in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onsa.programs.predict import Conversation
from onsa.spec.messages import say

if TYPE_CHECKING:
    from rich.console import Console


def talk(
    conversation: Conversation, console: Console, messages: list[str] | None, quiet: bool
) -> list[dict[str, str | None]]:
    """Answer the given messages, or what is typed until the end of input; returns all that was said."""
    said: list[dict[str, str | None]] = []
    given = iter(messages) if messages else None
    if given is None and not quiet:
        console.print(say("chat-hint"), style="dim")
    while True:
        try:
            text = next(given) if given is not None else console.input("[bold]> [/]")
        except (StopIteration, EOFError, KeyboardInterrupt):
            return said
        if not text.strip():
            continue
        turn = conversation.say(text)
        said.append({"user": text, "tuned": turn.tuned, "base": turn.base})
        if not quiet:
            console.print(turn.tuned)
            if turn.base is not None:
                console.print(f"{say('chat-base')} {turn.base}", style="dim")
