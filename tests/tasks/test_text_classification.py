"""Text classification: pairs keep their token types, and an empty list of labels is an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from onsa.data.table import Row
from onsa.models.batch import collate
from onsa.models.load import load
from onsa.models.policy import Policy
from onsa.spec.errors import DataError
from onsa.spec.sections import Model
from onsa.tasks.text_classification import TextClassification

TASK = TextClassification(problem="single-label", labels=("no", "yes"))
TYPED = ["input_ids", "token_type_ids", "attention_mask"]  # what BERT's own tokenizer gives


def row(**values: Any) -> Row:
    return Row(values, "d.csv", 1)


def test_a_pair_is_read_as_by_transformers(tiny_bert: Path) -> None:
    loaded = load(tiny_bert, Model(name=str(tiny_bert)), TASK.head, TASK.outputs, TASK.hf_problem, 0)
    loaded.tokenizer.model_input_names = TYPED
    policy = Policy(loaded.network, loaded.tokenizer.pad_token_id, torch.device("cpu"))
    pairs = [
        ("what is rain like", "rain please"),
        ("i like soup", None),
        ("do you know any song", "is there rice here"),
    ]
    batch = collate([TASK.encode(row(text=a, text_pair=b), loaded.tokenizer, 64) for a, b in pairs])
    assert batch.type_N is not None and batch.to(torch.device("meta")).type_N is not None
    with torch.inference_mode():
        expected = [loaded.network(**loaded.tokenizer(*pair, return_tensors="pt")).logits for pair in pairs]
        found = policy.classes(batch)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-5, atol=1e-6)


def test_a_base_of_one_type_is_given_none(tiny_llama: Path) -> None:
    loaded = load(tiny_llama, Model(name=str(tiny_llama)), TASK.head, TASK.outputs, TASK.hf_problem, 0)
    loaded.tokenizer.model_input_names = TYPED
    policy = Policy(loaded.network, loaded.tokenizer.pad_token_id, torch.device("cpu"))
    example = TASK.encode(row(text="rain", text_pair="sun"), loaded.tokenizer, 64)
    assert example.type_T is not None and policy.classes(collate([example])).shape == (1, 2)


def test_a_text_alone_has_no_types(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.model_input_names = TYPED
    for pair in (None, float("nan")):
        example = TASK.encode(row(text="rain", text_pair=pair), tokenizer, 64)
        assert example.type_T is None and collate([example]).type_N is None
    cut = TASK.encode(row(text="what is rain like", text_pair="rain please"), tokenizer, 6)
    assert cut.type_T is not None and cut.type_T.shape == cut.token_T.shape == (6,)


def test_no_labels_is_an_answer_where_there_can_be_several() -> None:
    rows = [row(text="a", label=["x", "y"]), row(text="b", label=[])]
    assert [TextClassification().problem_of(given) for given in rows] == [None, None]
    fitted = TextClassification().fit(rows)
    assert fitted.problem == "multi-label" and [fitted.problem_of(given) for given in rows] == [None, None]
    assert fitted._target([]).tolist() == [0, 0] and fitted._target("[]").tolist() == [0, 0]
    for missing in (None, "", " ", float("nan")):
        assert fitted.problem_of(row(text="c", label=missing)) == ("row-unlabelled", {"role": "label"})
    assert TASK.problem_of(row(text="b", label=[])) == ("row-unlabelled", {"role": "label"})


def test_some_row_has_a_label() -> None:
    with pytest.raises(DataError, match="None of the 1 rows has a label"):
        TextClassification().fit([row(text="b", label=[])])
