"""A conversation in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onsa.app.console import show_problems
from onsa.programs.predict import Conversation
from onsa.spec.errors import StoreError
from onsa.spec.messages import say

if TYPE_CHECKING:
    from rich.console import Console

SWITCH = "/adapter"


def talk(
    conversation: Conversation, console: Console, messages: list[str] | None, quiet: bool
) -> list[dict[str, str | None]]:
    """Answer the given messages, or what is typed until the end of input; returns all that was said.

    Where several adapters may answer, ``/adapter NAME`` lets another one go on.

    Raises:
        StoreError: a given message names an adapter that is not there; where it was typed, that is said.
    """
    said: list[dict[str, str | None]] = []
    given = iter(messages) if messages else None
    if given is None and not quiet:
        console.print(say("chat-hint"), style="dim")
        if conversation.adapters is not None:
            names = ", ".join(conversation.adapters.adapters)
            console.print(say("chat-adapters", command=f"{SWITCH} NAME", names=names), style="dim")
    while True:
        try:
            text = next(given) if given is not None else console.input("[bold]> [/]")
        except (StopIteration, EOFError, KeyboardInterrupt):
            return said
        if not text.strip():
            continue
        if conversation.adapters is not None and text.split()[0] == SWITCH:
            try:
                conversation.switch(text.removeprefix(SWITCH).strip())
            except StoreError as error:
                if given is not None:
                    raise
                show_problems(console, error.problems)
            continue
        turn = conversation.say(text)
        spoke = {"adapter": conversation.adapter} if conversation.adapters is not None else {}
        said.append({"user": text, **spoke, "tuned": turn.tuned, "base": turn.base})
        if not quiet:
            console.print(turn.tuned)
            if turn.base is not None:
                console.print(f"{say('chat-base')} {turn.base}", style="dim")
