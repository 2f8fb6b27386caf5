"""The commands as a person uses them, on tiny models: from a file to answers, pausing, dying, and the Python API."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from app.conftest import Onsa
from onsa.spec.errors import Problem
from onsa.store.run import State
from onsa.store.runs import Store

SCRIPT = "from onsa.app.cli import main; main()"


def recipe(model: Path, data: Path, task: str, **train: Any) -> Path:
    """A recipe beside its data, with two steps unless said otherwise."""
    values = {
        "model": str(model),
        "data": data.name,
        "task": task,
        "train": {"max_steps": 2, **train},
        "engine": {"kind": "local", "threads": 1},
        "evaluate": {"answers": 1, "max_new_tokens": 4, "bootstrap": 100},
    }
    path = data.parent / "recipe.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


@pytest.fixture
def classify(tiny_bert: Path, topics_csv: Path) -> Path:
    return recipe(tiny_bert, topics_csv, "text-classification")


@pytest.fixture
def converse(tiny_llama: Path, chat_jsonl: Path) -> Path:
    return recipe(tiny_llama, chat_jsonl, "chat")


def test_classification_from_file_to_answers(tiny_bert: Path, topics_csv: Path, onsa: Onsa) -> None:
    said = onsa("new", "topics.csv")
    assert said.code == 0 and "onsa check recipe.yaml" in said.out
    sets = ["--set", f"model={tiny_bert}", "--set", "train.max_steps=2", "--set", "evaluate.bootstrap=100"]

    said = onsa("check", "recipe.yaml", *sets)
    assert said.code == 0 and "Memory: about" in said.out and "Time: about" in said.out

    said = onsa("plan", "recipe.yaml", *sets)
    assert said.code == 0 and "like-lengths" in said.out

    said = onsa("train", "recipe.yaml", *sets)
    assert said.code == 0 and "report.html" in said.out
    with Store() as store:
        (run,) = store.list()
    assert run.state is State.FINISHED and run.recipe["train"]["max_steps"] == 2

    said = onsa("report")
    assert said.code == 0 and str(run.folder / "report.html") in said.out
    assert (run.folder / "report.html").stat().st_size > 1000

    said = onsa("predict", run.id, "--text", "is there rain here", "--text", "soup please")
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert [answer["row"] for answer in answers] == [0, 1]
    assert all(answer["label"] in tiny.TOPICS and set(answer["scores"]) == set(tiny.TOPICS) for answer in answers)

    said = onsa("predict", run.id[:4], "--input", "topics.csv")
    assert len([json.loads(line) for line in said.out.splitlines()]) == 108

    said = onsa("runs")
    assert said.code == 0 and run.id in said.out and "finished" in said.out


def test_each_command_gives_one_json_document(classify: Path, onsa: Onsa) -> None:
    assert onsa("new", "topics.csv", "--to", "new.yaml", "--json").document["rows"] == 108
    checked = onsa("check", classify, "--json").document
    assert checked["steps"] == 2 and checked["forecast"]["seconds"] > 0 and len(checked["views"]) == 3
    assert onsa("plan", classify, "--json").document["recipe"]["train"]["max_steps"] == 2
    trained = onsa("train", classify, "--json").document
    assert onsa("report", "--json").document["run"] == trained["run"]
    assert onsa("predict", trained["run"], "--text", "a", "--json").document[0]["row"] == 0
    (listed,) = onsa("runs", "--json").document
    assert (listed["id"], listed["state"]) == (trained["run"], "finished")
    assert {"smollm2-135m", "minilm-l6"} <= {entry["name"] for entry in onsa("models", "--json").document}


def test_chat(converse: Path, onsa: Onsa) -> None:
    trained = onsa("train", converse, "--json").document
    said = onsa("chat", "--message", "what is soup like", "--message", "and rice?", "--base", "--json")
    assert [turn["user"] for turn in said.document] == ["what is soup like", "and rice?"]
    assert all(isinstance(turn["tuned"], str) and isinstance(turn["base"], str) for turn in said.document)
    assert onsa("chat", trained["run"], "--message", "hello").code == 0
    said = onsa("predict", "latest", "--input", "chat.jsonl", "--json")
    assert len(said.document) == 108 and set(said.document[0]) == {"row", "text"}
    assert onsa("predict", "latest", "--text", "hello", "--base").code == 0


def test_train_again_returns_the_finished_run(classify: Path, onsa: Onsa) -> None:
    first = onsa("train", classify, "--json")
    again = onsa("train", classify, "--json")
    assert again.document["run"] == first.document["run"]
    assert "Measuring" in first.err and "Measuring" not in again.err
    other = onsa("train", classify, "--set", "seed=8", "--json")
    assert other.document["run"] != first.document["run"]
    fresh = onsa("train", classify, "--fresh", "--json")
    assert fresh.document["run"] == f"{first.document['run']}-2"


def test_an_override_replaces_a_kind_and_its_settings(classify: Path, onsa: Onsa) -> None:
    sets = (
        "adaptation=lora",
        "adaptation.rank=2",
        "data.split=6:2:2",
        "accel=off",
        "optimizer=adamw",
        "optimizer.lr=1e-3",
    )
    document = onsa("plan", classify, *(part for text in sets for part in ("--set", text)), "--json").document
    assert "recipe" in document, document
    found = document["recipe"]
    assert found["adaptation"]["kind"] == "lora" and found["adaptation"]["rank"] == 2
    assert found["data"]["split"]["ratio"] == [6, 2, 2]
    assert found["accel"]["mode"] == "off" and found["optimizer"]["lr"] == 1e-3
    assert not any(one["applied"] for one in document["passes"])


@pytest.mark.parametrize("arguments", [("--help",), ("runs",), ("runs", "--json"), ("models",), ("train", "--help")])
def test_no_torch_where_starting_must_be_fast(arguments: tuple[str, ...]) -> None:
    heavy = "{'torch', 'transformers', 'peft', 'sklearn', 'numpy', 'pyarrow', 'datasets'}"
    code = f"import sys\ntry:\n    {SCRIPT}\nfinally:\n    sys.stderr.write(str(sorted({heavy} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == "[]"


def begin(path: Path) -> subprocess.Popen[str]:
    """``onsa train`` in a process of its own, once it has made steps."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "train", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    events = Path(os.environ["ONSA_HOME"]) / "runs"
    until = time.monotonic() + 60
    while not any(file.stat().st_size > 0 for file in events.glob("*/events.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    return process


@pytest.fixture
def long(tiny_bert: Path, topics_csv: Path) -> Iterator[Path]:
    """A recipe that takes a few seconds at least."""
    path = recipe(tiny_bert, topics_csv, "text-classification", max_steps=200, batch_rows=4, eval_steps=200)
    # The speed passes are named, so that a process of its own reads the same recipe.
    path.write_text(json.dumps({**json.loads(path.read_text()), "accel": "auto"}))
    yield path


def test_pause_and_go_on(long: Path, onsa: Onsa) -> None:
    process = begin(long)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Paused. The same command goes on from here." in err and "Traceback" not in err
    (listed,) = onsa("runs", "--json").document
    assert listed["state"] == "paused"
    done = onsa("train", long, "--json")
    assert done.code == 0 and "goes on" in done.err
    assert done.document["run"] == listed["id"]
    with Store() as store:
        run = store.get(listed["id"])
    steps = [json.loads(line)["step"] for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, 201))


def test_a_run_whose_process_was_killed_has_died(long: Path, onsa: Onsa) -> None:
    process = begin(long)
    said = onsa("train", long)
    assert said.code == 2 and f"process {process.pid}" in said.err and "Wait for it to end" in said.err
    process.kill()
    process.communicate(timeout=60)
    said = onsa("runs")
    assert "died" in said.out
    (listed,) = onsa("runs", "--json").document
    assert listed["state"] == "died"
    assert onsa("train", long, "--json").document["run"] == listed["id"]
    assert onsa("runs", "--json").document[0]["state"] == "finished"


def test_python_api(classify: Path) -> None:
    import onsa

    read = onsa.read_recipe(classify, ["train.max_steps=3"])
    events = list(onsa.train(read))
    names = [type(event).__name__ for event in events]
    assert names[0] == "Opened" and names[-1] == "Finished" and names.count("Stepped") == 3
    run = onsa.run(read)
    assert run.id == events[-1].run.id and run.state is State.FINISHED
    model = onsa.load(run)
    by_text, by_role = model.predict(["soup please", {"text": "soup please"}])
    assert by_text["label"] == by_role["label"] and by_text["label"] in tiny.TOPICS
    assert onsa.load(run.id).predict(["soup please"])[0]["label"] == by_text["label"]


def test_python_api_pauses_where_the_caller_breaks_off(classify: Path) -> None:
    import onsa

    read = onsa.read_recipe(classify, ["train.max_steps=4"])
    events = onsa.train(read)
    for event in events:
        if type(event).__name__ == "Stepped":
            break
    events.close()
    with Store() as store:
        assert [run.state for run in store.list()] == [State.PAUSED]
    steps = [event.step for event in onsa.train(read) if type(event).__name__ == "Stepped"]
    assert steps[-3:] == [2, 3, 4]  # the step at which it broke off may be told once more


@pytest.mark.parametrize("split", ["8:2:0", "8:0:0"])
def test_without_held_out_rows_a_run_finishes_unmeasured(split: str, classify: Path, onsa: Onsa) -> None:
    said = onsa("train", classify, "--set", f"data.split={split}")
    assert said.code == 0 and "Nothing was measured" in said.out, said.err
    written = onsa("report", "--json").document["metrics"]
    assert written["comparisons"] == [] and written["verdict"] == {"metric": "accuracy", "better": None, "rows": 0}
    assert onsa("runs").code == 0


def test_texts_of_users_are_not_markup(topics_csv: Path, onsa: Onsa) -> None:
    rows = topics_csv.read_text().splitlines()
    hostile = topics_csv.with_name("[red]topics.csv")
    hostile.write_text("\n".join([rows[0], *(f"[/INST] [red] :smile: {row}" for row in rows[1:])]))
    said = onsa("new", hostile.name)
    assert said.code == 0 and "[/INST] [red] :smile: " in said.out and "[red]topics.csv" in said.out


def test_a_run_names_its_file_as_it_is(tiny_bert: Path, topics_csv: Path, onsa: Onsa) -> None:
    data = topics_csv.rename(topics_csv.with_name("[red]questions.csv"))
    said = onsa("train", recipe(tiny_bert, data, "text-classification"))
    assert said.code == 0 and data.name in said.err
    assert data.name in onsa("runs").out


def test_check_gives_one_document_where_memory_is_short(
    classify: Path, onsa: Onsa, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onsa.programs.forecast import Forecast

    monkeypatch.setattr(Forecast, "problem", lambda self: Problem("memory-short", {"needed": "9", "free": "1"}))
    said = onsa("check", classify, "--json")
    assert said.code == 2 and [one["code"] for one in said.document["problems"]][-1] == "memory-short"
    assert "9 GB" in said.err


def test_chat_as_json_prompts_on_standard_error(converse: Path, onsa: Onsa, monkeypatch: pytest.MonkeyPatch) -> None:
    onsa("train", converse)
    monkeypatch.setattr("sys.stdin", io.StringIO("what is soup like\n"))
    said = onsa("chat", "--json")
    assert [turn["user"] for turn in said.document] == ["what is soup like"] and ">" in said.err
