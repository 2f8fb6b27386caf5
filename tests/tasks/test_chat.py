"""Chat: what trains is what the assistant says and the end of its turn, under every kind of template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from onsa.data.profile import ColumnProfile, Look, Profile
from onsa.data.table import Row
from onsa.programs import preflight
from onsa.spec.errors import DataError
from onsa.tasks.chat import Chat

CHATML = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t['name'] }};{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'system' %}<<SYS>>{{ m['content'] }}<</SYS>>\n"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As of reasoning models: what an earlier turn thought is cut out once a later turn comes.
FORGETS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1] }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRIPS = CHATML.replace("{{ m['content'] }}", "{{ m['content'].strip() }}")
SHOUTS = CHATML.replace("{{ m['content'] }}", "{{ m['content'] if loop.last else m['content'].upper() }}")
TALK = [("user", "tell me about rain"), ("assistant", "it is wet"), ("user", "and sun?"), ("assistant", "warm")]


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama)


def row(turns: list[tuple[str, str]], weights: dict[int, int] | None = None, **more: Any) -> Row:
    messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in turns]
    for place, weight in (weights or {}).items():
        messages[place]["weight"] = weight
    return Row({"messages": messages, **more}, "talk.jsonl", 3)


def pieces(
    tokenizer: Any, template: str, given: Row, task: Chat | None = None, length: int = 256
) -> list[tuple[str, bool]]:
    tokenizer.chat_template = template
    return preflight.view((task or Chat()).encode(given, tokenizer, length), tokenizer)


def trained(*args: Any, **more: Any) -> list[str]:
    return [text for text, trains in pieces(*args, **more) if trains]


@pytest.mark.parametrize("template", [CHATML, GENERATION, STRIPS], ids=["chatml", "generation", "strips"])
def test_the_assistant_and_its_end_of_turn_train(template: str, tokenizer: Any) -> None:
    found = pieces(tokenizer, template, row(TALK))
    assert [text for text, trains in found if trains] == ["it is wet<|im_end|>", "warm<|im_end|>"]
    assert found[2] == ("\n<|im_start|>user\nand sun?<|im_end|>\n<|im_start|>assistant\n", False)
    assert found[-1] == ("\n", False), "the newline after the turn is the template's"


def test_turns_in_brackets(tokenizer: Any) -> None:
    found = pieces(tokenizer, LLAMA2, row([("system", "be kind"), *TALK]))
    assert [text for text, trains in found if trains] == [" it is wet <|im_end|>", " warm <|im_end|>"]
    assert "".join(text for text, _ in found).startswith("<<SYS>>be kind<</SYS>>\n[INST] tell me about rain [/INST]")


def test_turns_of_weight_zero_are_read_only(tokenizer: Any) -> None:
    assert trained(tokenizer, CHATML, row(TALK, {1: 0})) == ["warm<|im_end|>"]
    assert trained(tokenizer, CHATML, row(TALK, {1: 1, 3: 0})) == ["it is wet<|im_end|>"]
    assert trained(tokenizer, CHATML, row(TALK, {0: 1, 1: 1})) == ["it is wet<|im_end|>", "warm<|im_end|>"]


@pytest.mark.parametrize("template", [FORGETS, SHOUTS], ids=["forgets", "shouts"])
def test_a_template_that_rewrites_earlier_turns_is_refused(template: str, tokenizer: Any) -> None:
    talk = [(role, f"<think>hm</think>{text}" if role == "assistant" else text) for role, text in TALK]
    with pytest.raises(DataError) as caught:
        pieces(tokenizer, template, row(talk))
    (problem,) = caught.value.problems
    assert problem.code == "template-rewrites" and (problem.file, problem.line) == ("talk.jsonl", 3)
    assert str(problem.values["turn"]) in problem.what
    if template is FORGETS:
        assert problem.values["turn"] == 2
        assert trained(tokenizer, template, row(talk, {1: 0})) == ["<think>hm</think>warm<|im_end|>"], "the stated fix"


def test_one_turn_is_never_rewritten(tokenizer: Any) -> None:
    assert trained(tokenizer, FORGETS, row(TALK[:2])) == ["it is wet<|im_end|>"]


def test_tools_are_shown_and_not_trained(tokenizer: Any) -> None:
    given = row(TALK[:2], tools=[{"name": "radar", "parameters": {}}])
    found = pieces(tokenizer, CHATML, given)
    assert found[0][0].startswith("<|im_start|>system\nradar;<|im_end|>\n") and not found[0][1]
    assert [text for text, trains in found if trains] == ["it is wet<|im_end|>"]
    assert "radar;" in tokenizer.decode(Chat().prompt(given, tokenizer))


PLAIN = CHATML[CHATML.index("{% for m in messages") :]  # of a base that knows of no tools
RADAR = {"type": "function", "function": {"name": "radar", "parameters": {"type": "object"}}}
ASKED: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "rain?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "radar", "arguments": '{"at": "sea"}'}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "wet"},
    {"role": "assistant", "content": "yes"},
]
CALL = '<tool_call>\n{"name": "radar", "arguments": {"at": "sea"}}\n</tool_call><|im_end|>'


def test_tools_and_calls_stand_in_the_text_where_the_template_has_no_place_for_them(tokenizer: Any) -> None:
    given = Row({"messages": ASKED, "tools": [RADAR]}, "talk.jsonl", 3)
    found = pieces(tokenizer, PLAIN, given, length=4096)
    assert [text for text, trains in found if trains] == [CALL, "yes<|im_end|>"]
    told = "".join(text for text, _ in found)
    assert told.startswith("<|im_start|>system\nBe brief.\n\nYou may call functions.") and '"name": "radar"' in told
    assert "<|im_start|>user\n<tool_response>\nwet\n</tool_response><|im_end|>" in told
    bare = Row({"messages": ASKED[1:], "tools": [RADAR]}, "talk.jsonl", 3)
    assert pieces(tokenizer, PLAIN, bare, length=4096)[0][0].startswith("<|im_start|>system\nYou may call functions.")
    older = {"role": "assistant", "content": "", "function_call": {"name": "radar", "arguments": '{"at": "sea"}'}}
    assert trained(tokenizer, PLAIN, Row({"messages": [ASKED[1], older]}, "talk.jsonl", 3)) == [CALL]


def test_arguments_of_calls_are_objects_to_templates_that_know_them(tokenizer: Any) -> None:
    knows = PLAIN.replace(
        "{{ m['content'] }}", "{{ m['content'] }}{{ m.tool_calls[0].function.arguments.at if m.tool_calls }}"
    )
    assert trained(tokenizer, knows, Row({"messages": ASKED[1:3]}, "talk.jsonl", 3)) == ["sea<|im_end|>"]


def test_a_long_conversation_is_cut_and_counted(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    whole = Chat().encode(row(TALK), tokenizer, 256)
    cut = Chat().encode(row(TALK), tokenizer, len(whole.token_T) - 4)
    assert cut.cut == 4 and whole.cut == 0 and len(cut.token_T) == len(whole.token_T) - 4
    assert whole.weight_T is not None and cut.weight_T is not None
    assert np.array_equal(cut.token_T, whole.token_T[:-4]) and np.array_equal(cut.weight_T, whole.weight_T[:-4])
    assert Chat().encode(row(TALK), tokenizer, 5).supervised == 0


def test_the_prompt_is_what_stands_before_the_answer(tokenizer: Any) -> None:
    for template in (CHATML, GENERATION, LLAMA2):
        found = pieces(tokenizer, template, row(TALK))
        before_last = "".join(text for text, _ in found[:3])
        assert tokenizer.decode(Chat().prompt(row(TALK), tokenizer)) == before_last


def test_the_tasks_system_message_is_for_rows_without(tokenizer: Any) -> None:
    task = Chat(system="be brief")
    assert pieces(tokenizer, CHATML, row(TALK), task)[0][0].startswith("<|im_start|>system\nbe brief<|im_end|>")
    own = pieces(tokenizer, CHATML, row([("system", "be kind"), *TALK]), task)
    assert own[0][0].startswith("<|im_start|>system\nbe kind<|im_end|>") and "brief" not in own[0][0]


def test_words_of_any_script_train_whole(tokenizer: Any) -> None:
    talk = [("user", "雨は?"), ("assistant", "濡れます 🌧 café"), ("user", "ok"), ("assistant", "はい")]
    assert trained(tokenizer, CHATML, row(talk)) == ["濡れます 🌧 café<|im_end|>", "はい<|im_end|>"]


@pytest.mark.parametrize("said", [TALK, TALK[:1]], ids=["encode", "prompt"])
def test_a_template_that_raises_names_the_row(said: list[tuple[str, str]], tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError) as caught:
        if said is TALK:
            Chat().encode(row(said), tokenizer, 256)
        else:
            Chat().prompt(row(said), tokenizer)
    (problem,) = caught.value.problems
    assert problem.code == "template-fails" and (problem.file, problem.line) == ("talk.jsonl", 3)
    assert "roles must alternate" in problem.what
    assert Chat().stop_ids(tokenizer) == {tokenizer.eos_token_id}


def test_a_turn_ends_as_under_the_template(tokenizer: Any) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.eos_token = "<|endoftext|>"
    for template in (CHATML, GENERATION, STRIPS, FORGETS):
        tokenizer.chat_template = template
        assert Chat().stop_ids(tokenizer) == {end, tokenizer.eos_token_id}
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    assert Chat().stop_ids(tokenizer) == {tokenizer.eos_token_id}


def test_a_system_column_opens_the_conversation(tokenizer: Any) -> None:
    given = Row({"prompt": "hi", "completion": "hello", "system": "be kind"}, "", 1)
    found = pieces(tokenizer, CHATML, given, Chat(system="be brief"))
    assert found[0][0].startswith("<|im_start|>system\nbe kind<|im_end|>") and "brief" not in found[0][0]


def test_system_and_tools_are_found_beside_any_conversation() -> None:
    def table(**columns: Look) -> Profile:
        return Profile(tuple(ColumnProfile(name, look, 3, 3, 9.0, ()) for name, look in columns.items()), 3, "en")

    beside = {"System": Look.TEXT, "TOOLS": Look.OTHER}
    for own, shape in (
        ({"messages": "talk"}, {"talk": Look.MESSAGES}),
        ({"prompt": "Prompt", "completion": "Answer"}, {"Prompt": Look.TEXT, "Answer": Look.TEXT}),
    ):
        match = Chat.recognise(table(**shape, **beside))
        assert match is not None and match.columns == {**own, "system": "System", "tools": "TOOLS"}
