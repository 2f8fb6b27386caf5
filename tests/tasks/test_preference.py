"""Preference: a prompt once and its answers behind it, scored by a head or by likelihoods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from transformers import AutoTokenizer

import tiny
import trial
from onsa.data.profiling import profile
from onsa.data.read import read
from onsa.data.table import Row
from onsa.models.batch import collate
from onsa.programs.preflight import view
from onsa.programs.resolve import recognise
from onsa.spec.errors import DataError, OnsaError
from onsa.spec.sections import Data
from onsa.tasks.preference import Preference

PAIR = {"prompt": "tell me about rain", "chosen": "it is wet", "rejected": "no"}


@pytest.fixture
def talker(tiny_llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama)


def row(**values: Any) -> Row:
    return Row(values, "pairs.jsonl", 3)


def test_the_prompt_stands_there_once(talker: Any) -> None:
    task = Preference(by="likelihood")
    found = task.encode(row(**PAIR), talker, 256)
    assert found.part_P is not None and found.weight_T is not None
    prompt, chosen, rejected = np.split(found.token_T, np.cumsum(found.part_P)[:-1])
    assert talker.decode(prompt).endswith("rain<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.tolist() == task.prompt(row(**PAIR), talker)
    assert (talker.decode(chosen), talker.decode(rejected)) == ("it is wet<|im_end|>", "no<|im_end|>")
    assert found.weight_T.tolist() == [0.0] * len(prompt) + [1.0] * (len(chosen) + len(rejected))
    assert found.target.tolist() == [0.0, 1.0] and found.cut == 0
    assert set(task.stop_ids(talker)) == {talker.eos_token_id}
    scored = Preference(by="score").encode(row(**PAIR), talker, 256)
    assert scored.weight_T is None and scored.token_T.tolist() == found.token_T.tolist()


@pytest.mark.parametrize("length", [4, 9, 16, 22, 28])
def test_long_rows_keep_the_end_of_the_prompt_and_the_beginning_of_answers(length: int, talker: Any) -> None:
    whole = Preference().encode(row(**PAIR), talker, 256)
    found = Preference().encode(row(**PAIR), talker, length)
    assert found.part_P is not None and whole.part_P is not None
    assert found.path <= length and found.cut == len(whole.token_T) - len(found.token_T)
    parts, wholes = (np.split(one.token_T, np.cumsum(one.part_P)[:-1]) for one in (found, whole))
    assert wholes[0].tolist()[-len(parts[0]) :] == parts[0].tolist() and len(parts[0]) >= 1
    for part, all_of_it in zip(parts[1:], wholes[1:], strict=True):
        assert all_of_it.tolist()[: len(part)] == part.tolist()
        assert len(part) >= min(len(all_of_it), length // 2)


def test_a_base_that_knows_no_talk_reads_pairs_of_texts(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    found = Preference(by="score").encode(row(**PAIR), tokenizer, 64)
    assert found.part_P is not None and found.type_T is not None
    plain = collate([found]).unfolded()
    for (token_T, type_T), answer in zip(plain.rows(), ("it is wet", "no"), strict=True):
        wanted = tokenizer("tell me about rain", answer)
        assert token_T.tolist() == wanted["input_ids"]
        assert type_T is not None and type_T.tolist() == wanted["token_type_ids"]


def test_a_template_that_rewrites_the_prompt_is_refused(talker: Any) -> None:
    talker.chat_template = tiny.TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] if loop.last else 'x' }}")
    with pytest.raises(DataError, match=r"pairs.jsonl"):
        Preference().encode(row(**PAIR), talker, 256)


FILES: list[tuple[dict[str, Any], dict[str, str]]] = [
    (PAIR, {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}),
    (
        {"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []},
        {"prompt": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"},
    ),
    ({"question": "why", "answers": ["a", "b"]}, {"prompt": "question", "answers": "answers"}),
]


@pytest.mark.parametrize(("values", "columns"), FILES)
def test_it_recognises_its_files(values: dict[str, Any], columns: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**values, "n": n}) + "\n" for n in range(30)))
    task, match = recognise(profile(read(Data(path=str(path)))), str(path))
    assert task is Preference and match.columns == columns


def test_single_answers_are_recognised_and_measured_by_their_order(tiny_llama: Path, tmp_path: Path) -> None:
    lines = [
        {"prompt": text, "completion": f"about {topic}", "label": place % 2 == 0}
        for place, (text, topic) in enumerate(tiny.questions())
    ]
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepared = trial.ready(tiny_llama, path, adaptation="lora")
    assert prepared.recipe.objective is not None
    assert (prepared.task.kind, prepared.recipe.objective.kind) == ("preference", "kto")
    session = trial.opened(prepared)
    outcome = session.evaluate(prepared.examples["validation"], prepared.task)
    assert outcome.output_RC is not None
    good_R, mean_R = outcome.output_RC.T
    found = prepared.task.metrics(outcome)
    assert found["auc"] == pytest.approx(roc_auc_score(good_R, mean_R))
    good = [example for example in prepared.examples["validation"] if example.target[0] == 0]
    logprob_M = session.models.policy.logprobs(collate(good))
    assert found["loss"] == pytest.approx(-float(logprob_M.mean().detach()), rel=1e-5)


def test_metrics_are_those_of_a_probability_of_preferring(tiny_llama: Path, tmp_path: Path) -> None:
    prepared = trial.ready(tiny_llama, tiny.write_pairs(tmp_path / "pairs.jsonl"), adaptation="full")
    session = trial.opened(prepared)
    trial.advance(prepared, session, 3)
    rows = prepared.examples["validation"]
    found = prepared.task.metrics(session.evaluate(rows, prepared.task))
    batch = collate(rows)
    assert batch.answers is not None
    value_A = batch.answers.summed(session.models.policy.logprobs(batch)).detach().double().numpy()
    margin_R = value_A[::2] - value_A[1::2]
    likely_R = 1 / (1 + np.exp(-margin_R))
    truth = np.ones(len(rows))
    wanted = {
        "loss": log_loss(truth, likely_R, labels=[0, 1]),
        "accuracy": float((margin_R > 0).mean()),
        "margin": float(margin_R.mean()),
        "brier": brier_score_loss(truth, likely_R, pos_label=1),
    }
    assert found == pytest.approx(wanted, rel=1e-4)


def test_objective_and_task_agree_or_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    data = tiny.write_pairs(tmp_path / "pairs.jsonl")
    by = {"kind": "preference", "by": "score"}
    assert trial.ready(tiny_llama, data, task=by).recipe.objective.kind == "reward"  # type: ignore[union-attr]
    assert trial.ready(tiny_llama, data, objective="reward").task.by == "score"  # type: ignore[attr-defined]
    for sections in ({"task": by, "objective": "dpo"}, {"task": {**by, "by": "likelihood"}, "objective": "reward"}):
        with pytest.raises(OnsaError) as caught:
            trial.ready(tiny_llama, data, **sections)
        assert [problem.code for problem in caught.value.problems] == ["objective-mismatch"]


def test_check_shows_each_answer_behind_its_rank(talker: Any) -> None:
    found = view(Preference().encode(row(**PAIR), talker, 256), talker)
    assert [trains for _, trains in found] == [False, False, True, False, True]
    assert [text for text, _ in found[1:]] == ["\n[0] ", "it is wet<|im_end|>", "\n[1] ", "no<|im_end|>"]


def test_a_head_on_an_encoder_is_not_warned_of_a_missing_end(tiny_bert: Path, tmp_path: Path) -> None:
    data = tiny.write_pairs(tmp_path / "pairs.jsonl")
    prepared = trial.ready(tiny_bert, data, objective="reward", adaptation="full")
    assert prepared.tokenizer.eos_token_id is None
    assert "eos-missing" not in {problem.code for problem in prepared.problems}


@pytest.mark.parametrize(("column", "taken"), [("ranks", True), ("scores", False)])
def test_scores_are_not_taken_for_ranks(column: str, taken: bool, tmp_path: Path) -> None:
    """The best of ranks is the lowest, of scores the highest."""
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "why", "answers": ["a", "b"], column: [0, 1]}
    path.write_text("".join(json.dumps({**row, "n": n}) + "\n" for n in range(30)))
    _, match = recognise(profile(read(Data(path=str(path)))), str(path))
    assert ("ranks" in match.columns) == taken
