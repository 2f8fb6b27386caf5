"""Answering: a request for answers, as it comes over the service, becomes what a batcher is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onsa.data.table import Row
from onsa.serve.asks import Ask, Tell, Ticket
from onsa.serve.prompter import Prompter, checked
from onsa.serve.readers import Readers
from onsa.serve.residents import Resident, Residents, Target, base_recipe
from onsa.serve.speaking import Voice
from onsa.spec.errors import DataError
from onsa.spec.recipe import parse_recipe
from onsa.store.runs import Store

MIDDLE = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")  # of bases that were taught to fill a gap


@dataclass(frozen=True)
class Begun:
    """What is asked, a voice for each answer, and where to hand it in. echo: the prompt's text, where it is wanted."""

    asks: tuple[Ask, ...]
    echo: str | None
    voices: tuple[Voice, ...]
    submit: Callable[[Ask, Tell], Ticket]


def begin(residents: Residents, asked: Mapping[str, Any]) -> Begun:
    """Make ready what is asked: the network in memory, the prompt as tokens.

    Raises:
        OnsaError: no such model, or it cannot answer this.
        Busy: there is no room for its network.
    """
    resident, prompter, adapter = residents.open(_target(asked["target"]))
    prompt = _prompt(prompter, asked)
    room = resident.answers.context - len(prompt)
    if room < 1:
        key = "messages" if "messages" in asked else "prompt"
        context = resident.answers.context
        raise DataError.of("prompt-too-long", key=key, tokens=len(prompt), context=context)
    logprobs = asked.get("logprobs")
    most = room if asked.get("most") is None else asked["most"]
    schema = asked.get("schema")
    asks = [
        Ask(
            prompt=tuple(prompt),
            most=most,
            temperature=asked["temperature"],
            top_p=asked["top_p"],
            seed=asked["seed"] + number,
            stops=prompter.stops,
            adapter=adapter,
            sender=asked["sender"],
            alternatives=logprobs or 0,
            prompt_logprobs=most == 0 or (bool(asked.get("echo")) and logprobs is not None),
            frequency_penalty=asked.get("frequency_penalty", 0.0),
            presence_penalty=asked.get("presence_penalty", 0.0),
            logit_bias={int(token): bias for token, bias in asked.get("logit_bias", {}).items()},
            allowed=None if schema is None else resident.grammars.of_schema(schema),
        )
        for number in range(asked["n"])
    ]
    bytes_of = None if logprobs is None else resident.grammars.bytes_of
    voices = [Voice(prompter.tokenizer, asked.get("stop", ()), bytes_of) for _ in asks]
    echo = prompter.tokenizer.decode(prompt, skip_special_tokens=True) if asked.get("echo") else None
    return Begun(tuple(asks), echo, tuple(voices), _submitting(resident))


def embed(readers: Readers, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Where texts stand: ``vectors``, and the ``tokens`` that were read.

    Raises:
        OnsaError: no such model, or it cannot read this.
    """
    vector_RD, tokens = readers.embed(_target(asked["target"]), asked["texts"])
    return {"vectors": vector_RD.tolist(), "tokens": tokens}


def classify(readers: Readers, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Labels of texts: ``answers``.

    Raises:
        OnsaError: no such model, or it does not classify.
    """
    return {"answers": readers.classify(_target(asked["target"]), asked["texts"])}


def _submitting(resident: Resident) -> Callable[[Ask, Tell], Ticket]:
    def submit(ask: Ask, tell: Tell) -> Ticket:
        try:
            return resident.answers.submit(ask, tell)
        except ValueError as error:
            raise DataError.of("ask-refused", reason=str(error)) from None

    return submit


def _target(said: Mapping[str, Any]) -> Target:
    """The model that is meant: of a run, at the folder where it lies, or a base by its name."""
    if said.get("run") is None:
        return Target(said["name"], base_recipe(said["name"]))
    with Store() as store:
        recipe = parse_recipe(store.get(said["run"]).recipe)
    return Target(said["name"], recipe, Path(said["folder"]))


def _prompt(prompter: Prompter, asked: Mapping[str, Any]) -> Sequence[int]:
    """The tokens that the answer goes on from.

    Raises:
        DataError: a conversation that cannot be answered, or that the model's template refuses.
    """
    tokenizer = prompter.tokenizer
    if "messages" in asked:
        return prompter.prompt(_conversation(prompter, asked))
    prompt = asked["prompt"]
    if asked.get("suffix"):
        return _between(tokenizer, prompt, asked["suffix"])
    tokens = prompt if isinstance(prompt, list) else tokenizer(prompt)["input_ids"]
    starts = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
    return tokens or starts[:1]


def _conversation(prompter: Prompter, asked: Mapping[str, Any]) -> Row:
    """A conversation, all of which is answered.

    Raises:
        DataError: it cannot be.
    """
    task, messages = prompter.task, list(asked["messages"])
    if messages[-1].get("role") == "assistant" and task.last_is_answer:
        messages.append({"role": "assistant", "content": ""})  # which is left out, as what is to be said
    values = task.from_messages(messages)
    if asked.get("tools") and "tools" in task.roles:
        values = {**values, "tools": asked["tools"]}
    try:
        return checked(task, prompter.normalise, values, 1)
    except DataError as error:
        raise DataError(replace(problem, key="messages") for problem in error.problems) from None


def _between(tokenizer: Any, prompt: str | list[int], suffix: str) -> list[int]:
    """The prompt of an answer that a suffix follows (Bavarian et al. 2022); a base without tokens for a gap sees the
    suffix before the prompt."""
    known = tokenizer.get_added_vocab()
    front = list(prompt) if isinstance(prompt, list) else list(tokenizer(prompt)["input_ids"])
    behind = list(tokenizer(suffix, add_special_tokens=False)["input_ids"])
    if all(token in known for token in MIDDLE):
        prefix, after, middle = (known[token] for token in MIDDLE)
        return [prefix, *front, after, *behind, middle]
    return [*behind, *front]
