"""Text generation: prompts are read, completions and plain texts train, and each ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from onsa.data.table import Row
from onsa.models.batch import Example
from onsa.tasks.text_generation import TextGeneration

TASK = TextGeneration()


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama)


def encoded(tokenizer: Any, length: int = 256, **values: Any) -> Example:
    return TASK.encode(Row(values, "", 1), tokenizer, length)


def trained(tokenizer: Any, example: Example) -> str:
    assert example.weight_T is not None
    return str(tokenizer.decode(example.token_T[example.weight_T > 0]))


def test_the_completion_and_its_end_train(tokenizer: Any) -> None:
    found = encoded(tokenizer, prompt="what is rain like", completion=" wet")
    assert tokenizer.decode(found.token_T) == "what is rain like wet<|im_end|>"
    assert trained(tokenizer, found) == " wet<|im_end|>"


def test_all_of_a_plain_text_trains(tokenizer: Any) -> None:
    found = encoded(tokenizer, text="i like rain")
    assert trained(tokenizer, found) == "i like rain<|im_end|>" and found.supervised == len(found.token_T) - 1


@pytest.mark.parametrize("values", [{"text": "rain<|im_end|>"}, {"prompt": "a", "completion": "rain<|im_end|>"}])
def test_an_end_that_is_there_is_not_doubled(values: dict[str, str], tokenizer: Any) -> None:
    assert encoded(tokenizer, **values).token_T.tolist().count(tokenizer.eos_token_id) == 1


def test_an_empty_prompt_is_a_beginning(tokenizer: Any) -> None:
    assert trained(tokenizer, encoded(tokenizer, prompt="", completion="rain")) == "rain<|im_end|>"


def test_what_is_asked_at_inference_is_what_was_trained(tokenizer: Any) -> None:
    for prompt, completion in (("what is rain like", " wet"), ("rai", "n today"), ("雨", "です")):
        row = Row({"prompt": prompt, "completion": completion}, "", 1)
        example = TASK.encode(row, tokenizer, 256)
        assert example.weight_T is not None
        assert example.token_T[example.weight_T == 0].tolist() == TASK.prompt(row, tokenizer)
        assert TASK.prompt(Row(TASK.from_text(prompt), "", 0), tokenizer) == TASK.prompt(row, tokenizer)


def test_long_rows_are_cut_and_counted(tokenizer: Any) -> None:
    whole = encoded(tokenizer, text="tell me about rain and snow")
    cut = encoded(tokenizer, 4, text="tell me about rain and snow")
    assert cut.token_T.tolist() == whole.token_T[:4].tolist() and cut.cut == len(whole.token_T) - 4


def test_rows_without_anything_to_learn_are_told() -> None:
    for values in ({"text": " "}, {"prompt": "a", "completion": ""}, {"prompt": "a", "completion": None}, {}):
        assert TASK.problem_of(Row(values, "", 1)) is not None
    assert TASK.problem_of(Row({"prompt": "", "completion": "b"}, "", 1)) is None


def test_a_completion_without_a_prompt_is_a_beginning(tokenizer: Any) -> None:
    for values in ({"completion": "rain"}, {"prompt": None, "completion": "rain"}):
        row = Row(values, "", 1)
        assert trained(tokenizer, encoded(tokenizer, **values)) == "rain<|im_end|>"
        assert (TASK.inputs(row), TASK.answer(row), TASK.prompt(row, tokenizer)) == ("", "rain", [])


def test_a_plain_text_asks_nothing(tokenizer: Any) -> None:
    typed, plain = Row(TASK.from_text("i like"), "", 0), Row({"text": "i like"}, "", 0)
    assert TASK.inputs(typed) == TASK.inputs(plain) == "i like"
    assert TASK.prompt(typed, tokenizer) == TASK.prompt(plain, tokenizer), "it is continued"
    assert not TASK.asks(plain) and TASK.asks(Row({"prompt": "a", "completion": "b"}, "", 0))
    assert TASK.answer(plain) == ""
