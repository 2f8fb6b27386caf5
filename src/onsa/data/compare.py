"""Compare: every common shape of a preference as one prompt, its answers, and their ranks.

These are read: ``prompt``, ``chosen`` and ``rejected`` (texts, lists of messages, or conversations that begin alike,
without a prompt of their own), OpenAI's ``input`` with ``preferred_output`` and ``non_preferred_output``, a ``prompt``
with ``answers`` from best to worst or with ``ranks``, and a ``prompt`` with a ``completion`` and a ``label``, good or
bad.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onsa.data.convert import Fault, check_shape, to_messages, to_tools
from onsa.data.profiling import is_blank

Messages = list[dict[str, Any]]
PROMPTS = ("prompt", "question", "instruction", "input", "query", "質問", "入力", "指示")  # what columns are called
GOOD = ("1", "true", "good", "yes", "chosen", "desirable", "up", "+1", "👍")
BAD = ("0", "false", "bad", "no", "rejected", "undesirable", "down", "-1", "👎")
PAIR = ("chosen", "rejected")


class ComparisonError(ValueError):
    """A row that holds no comparison; carries the message code and its values."""

    def __init__(self, code: str, **values: Any) -> None:
        super().__init__(code)
        self.fault: Fault = (code, values)


@dataclass(frozen=True)
class Comparison:
    """A prompt's messages, those of each answer, and the answers' ranks: 0 is the best, equal ones are a tie."""

    prompt: Messages
    answers: tuple[Messages, ...]
    ranks: tuple[float, ...]
    tools: list[dict[str, Any]] | None = None


def to_comparison(values: Mapping[str, Any], answered: bool = True) -> Comparison:
    """The comparison in a row's values by role.

    Args:
        answered: there have to be answers; without, a row may wait for one.

    Raises:
        ComparisonError: there is none.
    """
    prompt, tools = _prompt(values)
    if "completion" in values:
        given, ranks = [_answer(values["completion"], "completion")], [_judged(values.get("label"), answered)]
    elif "answers" in values:
        given, ranks = _ranked(values)
    elif answered or any(values.get(role) for role in PAIR):
        given = [_answer(values.get(role), role) for role in PAIR]
        ranks = [0.0, 0.0 if _tied(values.get("tie")) else 1.0]
    else:
        given, ranks = [], []
    for before, _ in given:
        if before and prompt and _said(before) != _said(prompt):
            raise ComparisonError("prompts-differ")
        prompt = prompt or before
    if not prompt:
        raise ComparisonError("prompt-missing")
    if answered and len(given) > 1 and len({_said(answer) for _, answer in given}) < len(given):
        raise ComparisonError("answers-same")
    system = values.get("system")
    if isinstance(system, str) and system.strip():
        prompt = to_messages({"messages": prompt, "system": system})
    return Comparison(prompt, tuple(answer for _, answer in given), tuple(ranks), tools)


def check_comparison(values: Mapping[str, Any], answered: bool = True) -> Fault | None:
    """Why a row's values hold no comparison, as a message code and its values, or ``None``."""
    try:
        to_comparison(values, answered)
    except ComparisonError as error:
        return error.fault
    return None


def _prompt(values: Mapping[str, Any]) -> tuple[Messages, list[dict[str, Any]] | None]:
    """The prompt's messages, none where the answers are conversations that hold it; and the tools."""
    value, tools = values.get("prompt"), values.get("tools")
    whole = _parsed(value, "{")
    if isinstance(whole, Mapping) and "messages" in whole:  # OpenAI's: the messages, and the tools beside them
        value, tools = whole["messages"], whole.get("tools", tools)
    try:
        offered = to_tools(tools)
    except ValueError as error:
        raise ComparisonError("tools-refused", reason=str(error)) from None
    if is_blank(value):
        return [], offered
    return _messages(value, "user", "prompt"), offered


def _answer(value: Any, role: str) -> tuple[Messages, Messages]:
    """An answer's messages, and those before it where the value is a whole conversation."""
    if is_blank(value):
        raise ComparisonError("answer-missing", role=role)
    messages = _messages(value, "assistant", role)
    begins = len(messages)
    while begins and messages[begins - 1]["role"] not in ("user", "system", "developer"):
        begins -= 1
    if not any(message["role"] == "assistant" for message in messages[begins:]):
        raise ComparisonError("answer-unspoken", role=role, last=messages[-1]["role"])
    return messages[:begins], messages[begins:]


def _ranked(values: Mapping[str, Any]) -> tuple[list[tuple[Messages, Messages]], list[float]]:
    """Answers in a list, with their ranks: those given, or the order in which they stand."""
    answers = _parsed(values["answers"], "[")
    if not isinstance(answers, list | tuple) or len(answers) < 2:
        raise ComparisonError("answers-few", count=len(answers) if isinstance(answers, list | tuple) else 1)
    found = [_answer(value, f"answers[{place}]") for place, value in enumerate(answers)]
    ranks = _parsed(values.get("ranks"), "[")
    if is_blank(ranks):
        return found, [float(place) for place in range(len(found))]
    try:
        numbers = [float(rank) for rank in ranks]
    except (TypeError, ValueError):
        raise ComparisonError("ranks-refused", value=ranks) from None
    if len(numbers) != len(found) or any(number != number for number in numbers):
        raise ComparisonError("ranks-count", ranks=len(numbers), answers=len(found))
    return found, [number - min(numbers) for number in numbers]


def _judged(label: Any, answered: bool) -> float:
    """The rank of an answer that is good (0) or bad (1)."""
    word = str(label).strip().lower()
    word = word.removesuffix(".0")
    if word in BAD:
        return 1.0
    if word in GOOD or (is_blank(label) and not answered):
        return 0.0
    raise ComparisonError("label-neither", value=label, good=", ".join(GOOD[:4]), bad=", ".join(BAD[:4]))


def _tied(value: Any) -> bool:
    return not is_blank(value) and str(value).strip().lower() in ("1", "1.0", "true", "yes", "tie")


def _messages(value: Any, speaker: str, role: str) -> Messages:
    """A text or a list of messages as messages; a text is said by ``speaker``."""
    value = [{"role": speaker, "content": value}] if isinstance(value, str) and _parsed(value, "[") is value else value
    value = [value] if isinstance(value, Mapping) else value
    fault = check_shape(value)
    if fault is not None:
        if fault[0] == "messages-not-list":
            raise ComparisonError("answer-type", role=role, type=type(value).__name__)
        raise ComparisonError(fault[0], **fault[1])
    return to_messages({"messages": value})


def _parsed(value: Any, opening: str) -> Any:
    """A text that is JSON of this kind as what it says; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith(opening):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _said(messages: Messages) -> tuple[tuple[str, str], ...]:
    """What is said in messages, and by whom; calls count as words."""
    words = (f"{str(message.get('content') or '').strip()}{message.get('tool_calls') or ''}" for message in messages)
    return tuple(zip((str(message["role"]) for message in messages), words, strict=True))
