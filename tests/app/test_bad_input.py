"""What users get wrong: each ends in one message with its place, the value and the fix, and nothing is trained."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from app.conftest import Onsa, Said
from onsa.store.runs import Store

BASE = {"model": "model: BERT", "data": "data: topics.csv", "task": "task: text-classification"}
CHAT = {"model": "model: LLAMA", "data": "data: chat.jsonl", "task": "task: chat"}
TRAIN = ("train", "recipe.yaml")


@dataclass(frozen=True)
class Bases:
    """The folders that BERT and LLAMA stand for in a recipe."""

    bert: Path
    llama: Path

    def named(self, text: str) -> str:
        return text.replace("BERT", str(self.bert)).replace("LLAMA", str(self.llama))


@pytest.fixture(scope="module")
def bases(tiny_bert: Path, tiny_llama: Path) -> Bases:
    return Bases(tiny_bert, tiny_llama)


def write(bases: Bases, *lines: str, **replaced: str) -> None:
    """A recipe of ``model``, ``data`` and ``task`` (lines 1 to 3) and further lines, and the file it names."""
    chat = "chat.jsonl" in replaced.get("data", "") or replaced.get("task") == CHAT["task"]
    first = (CHAT if chat else BASE) | replaced
    Path("recipe.yaml").write_text(bases.named("\n".join([*filter(None, first.values()), *lines])) + "\n")
    (tiny.write_chat if chat else tiny.write_csv)(Path("chat.jsonl" if chat else "topics.csv"))


def expect_refusal(said: Said, *shown: str) -> None:
    """One error, in words, with a fix, that shows what it should; exit code 2."""
    assert "Traceback" not in said.err, said.err
    assert said.code == 2, said
    assert said.err.count("✗ ") == 1, said.err
    assert said.err.count("  → ") == 1, said.err
    missing = [text for text in shown if text not in said.err]
    assert not missing, (missing, said.err)


def expect_nothing_trained(home: Path) -> None:
    assert not list(home.glob("runs/*/checkpoints/*"))
    if (home / "onsa.db").exists():
        with Store() as store:
            assert [run.state for run in store.list() if run.state != "created"] == []


# The recipe: further lines (from line 4 on), or other first lines; and what the message shows.
RECIPES: dict[str, tuple[list[str], dict[str, str], list[str]]] = {
    "unknown key": (["tarin: {epochs: 1}"], {}, ["recipe.yaml:4: tarin", "'tarin'", "Did you mean 'train'?"]),
    "unknown nested key": (
        ["train:", "  epochs: 1", "  epoch: 2"],
        {},
        ["recipe.yaml:6: train.epoch", "'epoch'", "Did you mean 'epochs'?"],
    ),
    "unknown key of a kind": (
        ["adaptation:", "  kind: lora", "  rnk: 4"],
        {},
        ["recipe.yaml:6: adaptation.rnk", "'rnk'", "Did you mean 'rank'?"],
    ),
    "key twice": (["seed: 1", "seed: 2"], {}, ["recipe.yaml:5: seed", "'seed'", "line 4", "Keep one"]),
    "key missing": ([], {"data": ""}, ["recipe.yaml: data", "'data'", "Add `data: …`"]),
    "unknown task": (
        [],
        {"task": "task: text-clasification"},
        ["recipe.yaml:3: task", "'text-clasification'", "Did you mean 'text-classification'?"],
    ),
    "unknown adaptation": (
        ["adaptation: {kind: lorra}"],
        {},
        ["recipe.yaml:4: adaptation.kind", "'lorra'", "Did you mean 'lora'?"],
    ),
    "unknown optimizer": (["optimizer: adamx"], {}, ["recipe.yaml:4: optimizer", "'adamx'", "'adamw'"]),
    "unknown schedule": (["schedule: cosin"], {}, ["recipe.yaml:4: schedule", "'cosin'", "'cosine'"]),
    "unknown objective": (["objective: cross-entropi"], {}, ["recipe.yaml:4: objective", "'cross-entropy'"]),
    "unknown engine": (["engine: locl"], {}, ["recipe.yaml:4: engine", "'locl'", "'local'"]),
    "kind missing": (["adaptation: {rank: 4}"], {}, ["recipe.yaml:4: adaptation", "names no kind", "full, "]),
    "kind is a number": (["adaptation: 8"], {}, ["recipe.yaml:4: adaptation", "names no kind", "full, "]),
    "text for a number": (
        ["train: {epochs: three}"],
        {},
        ["recipe.yaml:4: train.epochs", "'three' is not a whole number", "Write a whole number"],
    ),
    "fraction for a whole number": (["train: {epochs: 1.5}"], {}, ["recipe.yaml:4: train.epochs", "'1.5'", "whole"]),
    "number for a text": ([], {"data": "data: {path: 5}"}, ["recipe.yaml:2: data.path", "'5'", "text"]),
    "number for a list of texts": (
        ["adaptation: {kind: lora, targets: 3}"],
        {},
        ["recipe.yaml:4: adaptation.targets", "'3'", "text"],
    ),
    "number for a section": (["train: 5"], {}, ["recipe.yaml:4: train", "'5'", "mapping"]),
    "list for a section": (["evaluate: [1]"], {}, ["recipe.yaml:4: evaluate", "'[1]'", "mapping"]),
    "text for yes or no": (["evaluate: {baseline: maybe}"], {}, ["recipe.yaml:4: evaluate.baseline", "true or false"]),
    "unknown choice": (["train: {precision: bf61}"], {}, ["recipe.yaml:4: train.precision", "'bf61'", "'bf16'"]),
    "unknown mode in short form": (["accel: of"], {}, ["recipe.yaml:4: accel", "'of'", "'off'"]),
    "epochs 0": (["train: {epochs: 0}"], {}, ["recipe.yaml:4: train.epochs", "'0' is too small", "1 or more"]),
    "lr -1": (["optimizer: {kind: adamw, lr: -1}"], {}, ["recipe.yaml:4: optimizer.lr", "'-1", "above 0"]),
    "lr infinite": (["optimizer: {kind: adamw, lr: .inf}"], {}, ["recipe.yaml:4: optimizer.lr", "'inf'", "number"]),
    "dropout 1.5": (["adaptation: {kind: lora, dropout: 1.5}"], {}, [":4: adaptation.dropout", "'1.5'", "below 1"]),
    "rank 0": (["adaptation: {kind: lora, rank: 0}"], {}, ["recipe.yaml:4: adaptation.rank", "'0'", "1 or more"]),
    "floor 2": (["schedule: {kind: cosine, floor: 2}"], {}, [":4: schedule.floor", "'2'", "too large", "1 or less"]),
    "seed -1": (["seed: -1"], {}, ["recipe.yaml:4: seed", "'-1'", "0 or more"]),
    "batch in tokens and in rows": (
        ["train: {batch_tokens: 64, batch_rows: 4}"],
        {},
        ["recipe.yaml:4: train", "batch_tokens (64)", "batch_rows (4)", "Keep one"],
    ),
    "ratio of two": (
        [],
        {"data": "data: {path: topics.csv, split: 8:2}"},
        ["recipe.yaml:2: data.split", "'8:2'", '"8:1:1"'],
    ),
    "ratio without training rows": (
        [],
        {"data": "data: {path: topics.csv, split: {ratio: [0, 1, 1]}}"},
        ["recipe.yaml:2: data.split.ratio", "[0, 1, 1]", "above zero"],
    ),
    "objective of another task": (
        ["objective: sft"],
        {},
        ["recipe.yaml:4: objective", "sft", "text-classification", "cross-entropy"],
    ),
    "unknown metric": (
        ["train: {best: acuracy}"],
        {},
        ["recipe.yaml:4: train.best", "'acuracy'", "Did you mean 'accuracy'?"],
    ),
    "unknown pass": (
        ["accel: {skip: [like-length]}"],
        {},
        ["recipe.yaml:4: accel.skip", "'like-length'", "'like-lengths'"],
    ),
    "head dropout without a head": (
        [],
        {"task": CHAT["task"], "model": "model: {name: LLAMA, head_dropout: 0.1}"},
        ["recipe.yaml:1: model.head_dropout", "chat", "Leave model.head_dropout out"],
    ),
    "head dropout unsupported": (
        [],
        {"model": "model: {name: LLAMA, head_dropout: 0.1}"},
        ["recipe.yaml:1: model.head_dropout", "llama", "Leave model.head_dropout out"],
    ),
    "max_length over the context": (
        ["train: {max_length: 1000}"],
        {},
        ["recipe.yaml:4: train.max_length", "1000", "64 or less"],
    ),
    "everything masked": (
        ["train: {max_length: 4}"],
        {"task": CHAT["task"]},
        ["chat.jsonl:", "Cut at 4 tokens", "Raise train.max_length"],
    ),
    "target that is no module": (
        ["adaptation: {kind: lora, targets: [q_proj]}"],
        {},
        ["recipe.yaml:4: adaptation.targets", "'q_proj'", "query"],
    ),
    "no GPU": (["engine: {kind: local, device: cuda}"], {}, ["recipe.yaml:4: engine.device", "GPU", "device: cuda"]),
    "label not a number": (
        [],
        {"task": "task: {kind: text-classification, problem: regression}"},
        ["topics.csv", "'weather' is not a number", "108 of 108"],
    ),
    "labels not as listed": (
        [],
        {"task": "task: {kind: text-classification, labels: [x, y]}"},
        ["topics.csv", "'weather' is not among", "108 of 108", "x, y"],
    ),
    "missing column": (
        [],
        {"data": "data: {path: topics.csv, columns: {text: text, label: lable}}"},
        ["topics.csv: data.columns", "'lable'", "Did you mean 'label'?"],
    ),
    "unknown role": (
        [],
        {"data": "data: {path: topics.csv, columns: {txt: text, text: text, label: label}}"},
        ["recipe.yaml:2: data.columns", "'txt'", "Did you mean 'text'?"],
    ),
    "role left out": (
        [],
        {"data": "data: {path: topics.csv, columns: {text: text}}"},
        ["topics.csv: data.columns", "'label'", "data.columns.label"],
    ),
    "unknown group column": (
        [],
        {"data": "data: {path: topics.csv, split: {group: labl}}"},
        ["topics.csv: data.split.group", "'labl'", "Did you mean 'label'?"],
    ),
    "column that is no split": (
        [],
        {"data": "data: {path: topics.csv, split: {column: label}}"},
        ["topics.csv:2: data.split.column", "'weather'", "train"],
    ),
    "unknown encoding": ([], {"data": "data: {path: topics.csv, encoding: utf9}"}, ["topics.csv", "'utf9'", "utf-8"]),
    "wrong encoding": (
        [],
        {"data": "data: {path: topics.csv, encoding: utf-16}"},
        ["topics.csv", "utf-16", "data.encoding"],
    ),
    "delimiter of two letters": ([], {"data": "data: {path: topics.csv, delimiter: ab}"}, ["topics.csv", "'ab'"]),
    "data missing": (
        [],
        {"data": "data: topic.csv"},
        ["topic.csv", "no such file", "Did you mean '", "topics.csv'"],
    ),
    "data in no folder": ([], {"data": "data: sub/rows.csv"}, ["rows.csv", "sub does not exist", "Check the path"]),
    "unknown model": ([], {"model": "model: minilm-l7"}, ["recipe.yaml:1: model", "'minilm-l7'", "'minilm-l6'"]),
    "model offline": (
        [],
        {"model": "model: nobody/nothing"},
        ["recipe.yaml:1: model", "'nobody/nothing'", "HF_HUB_OFFLINE"],
    ),
    "model path missing": ([], {"model": "model: ./bert"}, ["recipe.yaml:1: model", "'./bert'", "Check the path"]),
    "model is a data file": ([], {"model": "model: topics.csv"}, ["topics.csv", "a folder or a .gguf file"]),
    "no language head": (
        [],
        {"model": BASE["model"], "data": CHAT["data"], "task": CHAT["task"]},
        ["BERT", "chat template", "text-generation"],
    ),
    "no language head for text": (
        [],
        {"task": "task: text-generation"},
        ["BERT", "BertModel", "does not predict tokens", "smollm2-135m"],
    ),
}


@pytest.mark.parametrize("lang", ["en", "ja"])
@pytest.mark.parametrize("case", RECIPES)
def test_recipe(case: str, lang: str, bases: Bases, onsa: Onsa, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, replaced, shown = RECIPES[case]
    write(bases, *lines, **replaced)
    monkeypatch.setenv("ONSA_LANG", lang)
    said = onsa(*TRAIN)
    places = [bases.named(text) for text in shown[:1]]
    expect_refusal(said, *(map(bases.named, shown) if lang == "en" else places))
    expect_nothing_trained(home)


def rows(*lines: str) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def messages(*turns: Any) -> str:
    return json.dumps({"messages": [dict(zip(("role", "content", "weight"), turn, strict=False)) for turn in turns]})


GOOD = messages(("user", "hello"), ("assistant", "hi"))
LINES = [f"{text},{topic}" for text, topic in tiny.questions()]
# A data file: its name, its bytes, and what the message shows.
FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "empty": ("a.csv", b"", ["a.csv", "no rows", "at least a few rows"]),
    "blank": ("a.csv", b"\n \n", ["a.csv", "no rows"]),
    "header only": ("a.csv", b"text,label\n", ["a.csv:1", "text, label", "Add rows"]),
    "PNG": ("a.csv", b"\x89PNG\r\n\x1a\n\0\0", ["a.csv", "PNG", "CSV"]),
    "XLSX": ("a.csv", b"PK\x03\x04\0\0", ["a.csv", "XLSX", "save it from its program"]),
    "gzip": ("a.jsonl", gzip.compress(b"{}"), ["a.jsonl", "gzip", "Unpack it"]),
    "zero bytes": ("a.csv", b"text,label\n\x01\x00\x02\x00\x00\xff,x\n", ["a.csv", "zero byte"]),
    "no known format": ("a.docx", b"hello", ["a.docx", "'.docx'", "data.format"]),
    "broken JSON": ("a.jsonl", rows(*[GOOD] * 6, '{"messages": [}', GOOD), ["a.jsonl:7", "column 15", "brackets"]),
    "row not an object": ("a.jsonl", rows(GOOD, "[1, 2]"), ["a.jsonl:2", "type array", '{"column": value']),
    "JSON not an array": ("a.json", b'{"rows": 1}', ["a.json:1", "array of objects", "[{…}, {…}]"]),
    "row too long": ("a.csv", rows("text,label", "a b,x", "c, d,y"), ["a.csv:3", "3 fields", "2 (text, label)"]),
    "row too short": ("a.csv", rows("text,label", "a b,x", "c d"), ["a.csv:3", "1 fields", "2 (text, label)"]),
    "open quotation": ("a.csv", rows("text,label", '"a b,x'), ["a.csv:2", "quotation mark"]),
    "column twice": ("a.csv", rows("text,label,text", "a,b,c"), ["a.csv:1", "text", "name of its own"]),
    "undecodable byte": ("a.csv", rows("text,label", "日本語の文,x") + b"\xe6\x97,y\n", ["a.csv:3", "0xE6", "Repair"]),
    "broken Parquet": ("a.parquet", b"PAR1 no", ["a.parquet", "Parquet", "data.format"]),
    "one class": (
        "a.csv",
        rows("text,label", *(f"text {i},same" for i in range(20))),
        ["a.csv", "'same'", "Add rows with other"],
    ),
    "no labels": ("a.csv", rows("text,label", *(f"text {i}," for i in range(20))), ["a.csv", "label"]),
    "labels not a number": ("a.csv", rows("text,label", *(f"text {i},NaN" for i in range(20))), ["a.csv", "NaN"]),
    "no text": ("a.csv", rows("text,label", *(f",{i % 2}" for i in range(20))), ["a.csv", "text"]),
    "no text column": ("a.csv", rows("x,y", *(f"{i / 7},{i / 3}" for i in range(30))), ["a.csv", "x", "data.columns"]),
    "too few rows": ("a.csv", rows("text,label", "a b,x", "c d,y"), ["a.csv", "validation", "Add rows"]),
    "wrong role": (
        "a.jsonl",
        rows(messages(("user", "a"), ("asistant", "b"))),
        ["a.jsonl", "'asistant'", "'assistant'"],
    ),
    "no content": ("a.jsonl", rows(messages(("user", ""), ("assistant", "b"))), ["a.jsonl:1", "no content", "Fill"]),
    "weight 2": ("a.jsonl", rows(messages(("user", "a"), ("assistant", "b", 2))), ["a.jsonl:1", "'2'", "1 (learnt)"]),
    "no answer": ("a.jsonl", rows(messages(("user", "a"))), ["a.jsonl:1", "'user'", "Add the answer"]),
    "ends with the user": (
        "a.jsonl",
        rows(messages(("user", "a"), ("assistant", "b"), ("user", "c"))),
        ["a.jsonl:1", "'user'", "last answer"],
    ),
    "every weight 0": ("a.jsonl", rows(messages(("user", "a"), ("assistant", "b", 0))), ["a.jsonl:1", "weight 0"]),
}


@pytest.mark.parametrize("case", FILES)
def test_file(case: str, bases: Bases, onsa: Onsa, home: Path) -> None:
    name, content, shown = FILES[case]
    Path(name).write_bytes(content)
    write(bases, **{**(CHAT if name.startswith("a.json") else BASE), "data": f"data: {name}"})
    expect_refusal(onsa(*TRAIN), *shown)
    expect_nothing_trained(home)


@pytest.mark.parametrize("label", ["NaN", "inf", "many"])
def test_label_of_a_regression(label: str, bases: Bases, onsa: Onsa, home: Path) -> None:
    Path("a.csv").write_bytes(rows("text,label", *(f"text {i},{label}" for i in range(20))))
    write(bases, data="data: a.csv", task="task: {kind: text-classification, problem: regression}")
    expect_refusal(onsa(*TRAIN), "a.csv:2", f"'{label}' is not a number", "finite number")
    expect_nothing_trained(home)


def test_data_is_a_folder(bases: Bases, onsa: Onsa, home: Path) -> None:
    write(bases, data="data: {path: inner, format: csv}")
    Path("inner").mkdir()
    tiny.write_csv(Path("inner/good.csv"))
    expect_refusal(onsa(*TRAIN), "inner", "folder", "good.csv")
    expect_nothing_trained(home)


def test_every_fault_of_a_recipe_at_once(bases: Bases, onsa: Onsa, home: Path) -> None:
    write(bases, "train: {epochs: 0, clip: -1}", "optimizer: adamx", "sed: 3")
    said = onsa(*TRAIN)
    assert said.code == 2
    assert [line for line in ("train.epochs", "train.clip", "optimizer", "sed") if line not in said.err] == []
    assert said.err.count("✗ ") == 4


# The recipe's file itself: its bytes, and what the message shows.
TEXTS: dict[str, tuple[bytes, list[str]]] = {
    "not YAML": (b"model: x\ndata: [a\ntask: chat\n", ["recipe.yaml:3", "YAML", "on this line"]),
    "tab": (b"model: x\ndata:\n\tpath: a.csv\n", ["recipe.yaml:3", "YAML"]),
    "list": (b"- model\n- data\n", ["recipe.yaml:1", "type list", "onsa new"]),
    "empty": (b"", ["recipe.yaml:1", "mapping", "onsa new"]),
    "not UTF-8": ("model: モデル\n".encode("cp932"), ["recipe.yaml", "0x83", "UTF-8"]),
    "number as key": (b"model: x\ndata: y.csv\n5: z\n", ["recipe.yaml:3: 5", "'5'", "Valid: model"]),
}


@pytest.mark.parametrize("case", TEXTS)
def test_recipe_text(case: str, onsa: Onsa, home: Path) -> None:
    content, shown = TEXTS[case]
    Path("recipe.yaml").write_bytes(content)
    expect_refusal(onsa(*TRAIN), *shown)
    expect_nothing_trained(home)


def test_recipe_missing(onsa: Onsa, tmp_path: Path) -> None:
    expect_refusal(onsa("train", "recipy.yaml"), "recipy.yaml", "onsa new")


def test_recipe_is_a_folder(onsa: Onsa, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").mkdir()
    expect_refusal(onsa(*TRAIN), "recipe.yaml", "folder", "Name the file")


SETS = {
    "train.epochs": ["'train.epochs'", "--set adaptation.rank=16"],
    "=3": ["'=3'", "--set adaptation.rank=16"],
    "train.epoks=3": ["--set train.epoks=3", "'epoks'", "Did you mean 'epochs'?"],
    "train.epochs=0": ["--set train.epochs=0: train.epochs", "'0'", "1 or more"],
    "trian.epochs=3": ["--set trian.epochs=3", "'trian'", "Did you mean 'train'?"],
    "seed.x=3": ["--set seed.x=3: seed", "whole number"],
    "adaptation=lorra": ["--set adaptation=lorra: adaptation.kind", "'lorra'", "'lora'"],
    "train.best=acuracy": ["--set train.best=acuracy: train.best", "'acuracy'", "'accuracy'"],
}


@pytest.mark.parametrize("override", SETS)
def test_override(override: str, bases: Bases, onsa: Onsa, home: Path) -> None:
    write(bases, "train: {epochs: 3}")
    expect_refusal(onsa(*TRAIN, "--set", override), *SETS[override])
    expect_nothing_trained(home)


def no_config(base: Path) -> None:
    (base / "config.json").unlink()


def pickles_only(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


def cut_off(base: Path) -> None:
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def no_weights(base: Path) -> None:
    (base / "model.safetensors").unlink()


def broken_config(base: Path) -> None:
    (base / "config.json").write_text("{")


def no_tokenizer(base: Path) -> None:
    for file in base.glob("tokenizer*"):
        file.unlink()


BROKEN: dict[Callable[[Path], None], list[str]] = {
    no_config: ["broken", "no config.json", "save_pretrained"],
    pickles_only: ["broken", "pytorch_model.bin", "safetensors"],
    cut_off: ["broken/model.safetensors", "cut off", "Download it again"],
    no_weights: ["broken", "model.safetensors is missing", "save_pretrained"],
    broken_config: ["broken/config.json", "cannot be read", "again"],
    no_tokenizer: ["broken", "no tokenizer", "tokenizer.json"],
}


@pytest.mark.parametrize("spoil", BROKEN, ids=lambda spoil: spoil.__name__)
def test_broken_base(spoil: Callable[[Path], None], bases: Bases, onsa: Onsa, home: Path) -> None:
    shutil.copytree(bases.bert, "broken")
    spoil(Path("broken"))
    write(bases, model="model: broken")
    expect_refusal(onsa(*TRAIN), *BROKEN[spoil])
    expect_nothing_trained(home)


def test_home_not_writable(bases: Bases, onsa: Onsa, monkeypatch: pytest.MonkeyPatch) -> None:
    write(bases)
    monkeypatch.setenv("ONSA_HOME", os.path.abspath("topics.csv/home"))
    expect_refusal(onsa(*TRAIN), "topics.csv/home", "cannot be written", "ONSA_HOME")
    expect_refusal(onsa("runs"), "topics.csv/home", "cannot be written", "ONSA_HOME")


def test_disk_full(bases: Bases, onsa: Onsa, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(bases)
    monkeypatch.setattr("onsa.store.atomic.shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    expect_refusal(onsa(*TRAIN), str(home), "0.0 MB free", "ONSA_HOME")
    expect_nothing_trained(home)


@pytest.mark.parametrize("command", ["train", "check"])
def test_memory_short(command: str, bases: Bases, onsa: Onsa, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(bases)
    monkeypatch.setattr("onsa.programs.forecast.RUNTIME_BYTES", 10**15)
    expect_refusal(onsa(command, "recipe.yaml"), "GB of memory", "1000000.0", "train.accumulate")
    expect_nothing_trained(home)


@pytest.fixture(scope="module")
def tuned(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a finished classification run."""
    from onsa.programs.train import finish
    from onsa.spec.recipe import parse_recipe

    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONSA_HOME", str(folder / "home"))
        rows = tiny.write_csv(folder / "topics.csv")
        train = {"max_steps": 2}
        values = {"model": str(bases.bert), "data": str(rows), "task": "text-classification", "train": train}
        finish(parse_recipe(values))
    yield folder / "home"


ON_RUNS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "predict, unknown run": (("predict", "zzzz", "--text", "a"), ["'zzzz'", "Nearest: RUN"]),
    "report, unknown run": (("report", "zzzz"), ["'zzzz'", "Nearest: RUN"]),
    "chat, unknown run": (("chat", "zzzz"), ["'zzzz'", "Nearest: RUN"]),
    "predict, nothing": (("predict", "latest"), ["nothing to answer", "--text or --input"]),
    "predict, no such file": (("predict", "latest", "--input", "no.csv"), ["no.csv", "no such file"]),
    "predict, column missing": (("predict", "latest", "--input", "other.csv"), ["other.csv", "'text'", "sentence"]),
    "predict, base": (("predict", "latest", "--text", "a", "--base"), ["text-classification", "leave --base out"]),
    "chat, classification": (("chat", "latest", "--message", "a"), ["RUN", "text-classification", "onsa predict"]),
}


@pytest.mark.parametrize("case", ON_RUNS)
def test_on_runs(case: str, tuned: Path, onsa: Onsa, home: Path) -> None:
    shutil.copytree(tuned, home)
    Path("other.csv").write_text("sentence\nhello\n")
    with Store() as store:
        (run,) = store.list()
    arguments, shown = ON_RUNS[case]
    expect_refusal(onsa(*arguments), *(text.replace("RUN", run.id) for text in shown))


def test_ambiguous_run(onsa: Onsa) -> None:
    with Store() as store:
        first, second = store.create("abcd1111" * 8), store.create("abcd2222" * 8)
    for command in (("predict", "abcd", "--text", "a"), ("report", "abcd"), ("chat", "abcd")):
        expect_refusal(onsa(*command), "'abcd'", first.id, second.id)


def test_no_run_yet(onsa: Onsa) -> None:
    for command in (("predict", "latest", "--text", "a"), ("report",), ("chat",)):
        expect_refusal(onsa(*command), "'latest'", "onsa demo")


def test_run_without_results(onsa: Onsa) -> None:
    recipe = {"model": "minilm-l6", "data": "a.csv", "task": {"kind": "text-classification", "labels": ["a", "b"]}}
    with Store() as store:
        run = store.create("abcd" * 16, recipe=recipe)
    expect_refusal(onsa("report", "abcd"), run.id, "created", "onsa train RECIPE")
    expect_refusal(onsa("predict", "abcd", "--text", "a"), run.id, "no tuned model", "onsa train RECIPE")


def test_new_without_a_task(onsa: Onsa) -> None:
    Path("numbers.csv").write_text("x,y\n" + "".join(f"{i / 7},{i / 3}\n" for i in range(30)))
    expect_refusal(onsa("new", "numbers.csv"), "numbers.csv", "x (number)", "data.columns")
    assert not Path("recipe.yaml").exists()


def test_new_over_a_recipe(bases: Bases, onsa: Onsa) -> None:
    write(bases)
    expect_refusal(onsa("new", "topics.csv"), "recipe.yaml", "already", "--force")
    assert onsa("new", "topics.csv", "--force").code == 0


def test_new_into_no_folder(bases: Bases, onsa: Onsa) -> None:
    write(bases)
    expect_refusal(onsa("new", "topics.csv", "--to", "no/where.yaml"), "no/where.yaml", "--to")


def test_new_of_a_missing_file(onsa: Onsa) -> None:
    expect_refusal(onsa("new", "rows.csv"), "rows.csv", "no such file", "Check the path")


def test_fetch_unknown(onsa: Onsa) -> None:
    expect_refusal(onsa("models", "fetch", "minilm"), "'minilm'", "Did you mean 'minilm-l6'?")


def test_json_is_one_document(bases: Bases, onsa: Onsa) -> None:
    write(bases, "train: {epochs: 0}")
    said = onsa(*TRAIN, "--json")
    assert said.code == 2
    (problem,) = said.document["problems"]
    assert said.document["error"] == "RecipeError"
    assert (problem["code"], problem["file"], problem["line"]) == ("value-too-small", "recipe.yaml", 4)
    assert problem["key"] == "train.epochs"
    assert problem["fix"] == "Give 1 or more."
