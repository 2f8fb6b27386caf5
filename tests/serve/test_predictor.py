"""Predictor: what it stops on, how much it reads, and the rows that it refuses by their number."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import trial
from onsa.adaptations.base import SoftPrompt
from onsa.models.heads import Head
from onsa.models.load import load
from onsa.models.policy import Policy
from onsa.programs.predict import predict
from onsa.serve.predictor import MODEL, Predictor, load_run
from onsa.spec import registry
from onsa.spec.errors import DataError
from onsa.spec.recipe import Recipe, parse_recipe
from onsa.spec.sections import Model
from onsa.tasks.base import Task
from onsa.tasks.chat import Chat
from onsa.tasks.text_classification import TextClassification
from onsa.tasks.text_generation import TextGeneration

LABELS = ("food", "weather")
SOFT = [kind for kind in registry.kinds("adaptation") if issubclass(registry.load("adaptation", kind), SoftPrompt)]
Make = Callable[..., Predictor]


@pytest.fixture
def serve(tiny_bert: Path, tiny_llama: Path) -> Make:
    """A predictor for a task over an untuned tiny base."""

    def make(task: Task, **more: Any) -> Predictor:
        folder = tiny_bert if task.head is Head.ROWS else tiny_llama
        loaded = load(folder, Model(name=str(folder)), task.head, task.outputs, task.hf_problem, 0)
        policy = Policy(loaded.network, loaded.tokenizer.pad_token_id, torch.device("cpu"))
        return Predictor(task, policy, loaded.tokenizer, **{"max_length": 64, "max_new_tokens": 4, **more})

    return make


def sorter() -> TextClassification:
    return TextClassification(problem="single-label", labels=LABELS)


def resolved(base: Path, task: dict[str, Any], **more: Any) -> Recipe:
    given = {"model": str(base), "data": {"path": "d.csv", **more.pop("data", {})}, "task": task, **more}
    return parse_recipe({**given, "adaptation": "full", "engine": {"kind": "local", "device": "cpu"}})


@pytest.mark.parametrize("ends", [None, 7, [7, 9]])
def test_an_answer_stops_on_every_end(ends: Any, serve: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = serve(Chat())
    tokenizer = predictor.tokenizer
    tokenizer.eos_token = "<|endoftext|>"
    predictor.policy.network.generation_config.eos_token_id = ends
    seen: list[Any] = []
    monkeypatch.setattr(
        Policy, "generate", lambda self, prompts, most, stops: seen.extend(stops) or [[] for _ in prompts]
    )
    predictor.predict(["hello"])
    closing = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert set(seen) == {tokenizer.eos_token_id, closing, *([ends] if isinstance(ends, int) else ends or [])}


def test_rows_are_read_to_the_end_of_the_context(tiny_bert: Path, tiny_llama: Path, tmp_path: Path) -> None:
    sorting = {"kind": "text-classification", "problem": "single-label", "labels": LABELS}
    found = load_run(tmp_path, resolved(tiny_bert, sorting, train={"max_length": 8}), tuned=False)
    assert found.max_length == 64
    found = load_run(tmp_path, resolved(tiny_llama, {"kind": "chat"}, train={"max_length": 8}), tuned=False)
    assert (found.max_length, found.max_new_tokens) == (256 - 64, 64)
    wordy = resolved(tiny_llama, {"kind": "chat"}, evaluate={"max_new_tokens": 1000})
    found = load_run(tmp_path, wordy, tuned=False)
    assert (found.max_length, found.max_new_tokens) == (128, 128), "a prompt keeps half of the context"


@pytest.mark.parametrize("kind", SOFT)
def test_virtual_tokens_take_of_what_is_read(kind: str, tiny_bert: Path, topics_csv: Path, tmp_path: Path) -> None:
    prepared = trial.ready(tiny_bert, topics_csv, adaptation={"kind": kind, "tokens": 10})
    session = trial.opened(prepared)
    prepared.adaptation.save(trial.network(session), prepared.tokenizer, tmp_path / MODEL)
    found = load_run(tmp_path, prepared.recipe)
    assert found.max_length == 64 - 10 and load_run(tmp_path, prepared.recipe, tuned=False).max_length == 64
    (answer,) = found.predict(["rain " * 200])
    assert answer["label"] in ("weather", "food", "music")


def test_texts_are_normalised_as_in_training(serve: Make, tiny_bert: Path, tmp_path: Path) -> None:
    predictor = serve(sorter())
    wide, narrow = "ｒａｉｎ", "rain"
    assert predictor.predict([wide]) != predictor.predict([narrow])
    assert replace(predictor, normalise="nfkc").predict([wide]) == predictor.predict([narrow])
    sorting = {"kind": "text-classification", "problem": "single-label", "labels": LABELS}
    recipe = resolved(tiny_bert, sorting, data={"normalise": "nfkc"})
    assert load_run(tmp_path, recipe, tuned=False).normalise == "nfkc"


@pytest.mark.parametrize(
    ("task", "bad", "reason"),
    [
        (sorter(), " ", "'text' is empty"),
        (sorter(), {"text": None}, "'text' is empty"),
        (sorter(), {"txt": "rain"}, "'text' is empty"),
        (TextGeneration(), {"txt": "rain"}, "'prompt' is empty"),
        (Chat(), "", "has no content"),
        (Chat(), {}, "conversation is empty"),
        (Chat(), {"messages": [{"role": "assistant", "content": "hi"}]}, "conversation is empty"),
        (Chat(), {"messages": [{"role": "user", "content": 3}]}, "not text"),
        (Chat(), {"prompt": None}, "'prompt' is empty"),
    ],
)
def test_a_row_that_cannot_be_answered_is_named(task: Task, bad: Any, reason: str, serve: Make) -> None:
    with pytest.raises(DataError) as caught:
        serve(task).predict(["rain", bad])
    (problem,) = caught.value.problems
    assert problem.code == "row-unanswerable" and "Row 2 " in problem.what and reason in problem.what and problem.fix


def test_rows_need_no_answer(serve: Make) -> None:
    generate = serve(TextGeneration())
    assert len(generate.predict(["", {"prompt": None}, {"completion": "x"}, {"text": "i like"}])) == 4
    assert generate.predict([""]) == generate.predict([{"prompt": None}])
    talk = serve(Chat())
    asked = {"messages": [{"role": "user", "content": "hi"}]}
    assert talk.predict([{"prompt": "hi"}, {"prompt": "hi", "completion": ""}, asked]) == talk.predict(["hi"]) * 3
    assert isinstance(talk.chat([*asked["messages"], {"role": "assistant", "content": ""}, *asked["messages"]]), str)


def test_a_file_without_answers_is_answered(
    serve: Make, tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"prompt": "asked", "completion": "said"}
    recipe = resolved(tiny_llama, {"kind": "chat"}, data={"columns": columns})
    monkeypatch.setattr("onsa.programs.predict.open_run", lambda ref: (None, recipe))
    monkeypatch.setattr("onsa.programs.predict.load", lambda run, tuned: serve(Chat()))
    source = tmp_path / "asked.jsonl"
    source.write_text("".join(json.dumps({"asked": text}) + "\n" for text in ("hi", "what is rain")), encoding="utf-8")
    assert [answer["row"] for answer in predict("r", ["hi"], source, base=False)] == [0, 1, 2]
    source.write_text('{"asked": "hi"}\n{"asked": null}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"asked\.jsonl:2: Row 3 cannot be answered"):
        list(predict("r", ["hi"], source, base=False))
