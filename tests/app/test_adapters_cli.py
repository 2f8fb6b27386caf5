"""``onsa adapters`` and ``--adapter`` as a person uses them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from app.conftest import Onsa
from several import tuned


@pytest.fixture
def pair(tiny_llama: Path, chat_jsonl: Path) -> tuple[str, str]:
    """Two chat adapters over one base."""
    return tuned(tiny_llama, chat_jsonl, 1).id, tuned(tiny_llama, chat_jsonl, 2).id


def test_listing_merging_and_folding(
    pair: tuple[str, str], onsa: Onsa, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, other = pair
    said = onsa("adapters", "--json")
    (family,) = said.document
    assert [entry["id"] for entry in family["adapters"]] == [other, one] and len(family["sha256"]) == 64
    assert all(entry["bytes"] > 0 and entry["method"] == "lora" for entry in family["adapters"])

    said = onsa("adapters", "merge", one, other[:5], "--method", "ties", "--weight", "1", "--weight", "0.5")
    assert said.code == 0 and "merged by ties, rank 4" in said.out and said.out.count("loss") == 2
    made = onsa("runs", "--json").document[0]["id"]
    said = onsa("adapters")
    assert f"ties ({one} + {other})" in said.out and "KiB" in said.out

    merging = ("adapters", "merge", one, other, "--method", "dare-linear", "--density", "0.7", "--name", "dared")
    said = onsa(*merging, "--json")
    assert said.document["run"] == "dared" and said.document["density"] == 0.7
    assert [side["run"] for side in said.document["parents"]] == [one, other]
    assert onsa(*merging, "--json").document == said.document, "made once"

    said = onsa("adapters", "fold", "dared", "--out", "whole", "--json")
    assert said.code == 0 and said.document["logits"]["largest_difference"] <= 1e-5
    assert {entry["metric"] for entry in said.document["comparisons"]} == {"loss", "perplexity", "token_accuracy"}
    monkeypatch.setenv("ONSA_LANG", "ja")
    assert "損失" in onsa("runs").out and "損失" in onsa("adapters").out
    said = onsa("adapters", "fold", "dared", "--out", "whole2")
    assert said.code == 0 and "ロジットの最大の差" in said.out and (tmp_path / "whole2" / "config.json").exists()
    said = onsa("adapters", "fold", "dared", "--out", "whole2")
    assert said.code == 2 and "ここにはすでに" in said.err and "Traceback" not in said.err
    assert onsa("report", made).code == 0


def test_predicting_with_several(pair: tuple[str, str], onsa: Onsa, tmp_path: Path) -> None:
    one, other = pair
    said = onsa("predict", one, "--adapter", other, "--adapter", f"{one}+{other}", "--text", "rain", "--text", "soup")
    lines = [json.loads(line) for line in said.out.splitlines()]
    names = [one, other, f"{one}+{other}"]
    assert [(line["row"], line["adapter"]) for line in lines] == [(row, name) for row in (0, 1) for name in names]
    rows = [{"adapter": name, "messages": [{"role": "user", "content": "hi"}]} for name in (other[:6], "", one)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = onsa("predict", one, "--adapter", other, "--input", "in.jsonl", "--text", "soup", "--json")
    asked = [(answer["row"], answer["adapter"]) for answer in said.document]
    assert asked == [(0, one), (0, other), (1, other), (2, one), (2, other), (3, one)]
    assert all(isinstance(answer["text"], str) for answer in said.document)
    said = onsa("predict", one, "--text", "hi", "--base", "--adapter", other, "--json")
    assert said.code == 2 and said.document["problems"][0]["code"] == "base-with-adapters"
    said = onsa("predict", f"{one}+{other}", "--text", "hi", "--json")
    assert [answer["adapter"] for answer in said.document] == [f"{one}+{other}"]


def test_switching_in_a_conversation(pair: tuple[str, str], onsa: Onsa, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair
    turns = ("--message", "hi", "--message", f"/adapter {other[:6]}", "--message", "hi")
    said = onsa("chat", one, "--adapter", other, *turns, "--json")
    assert [turn["adapter"] for turn in said.document] == [one, other]
    said = onsa("chat", one, "--adapter", other, "--message", "/adapter zz")
    assert said.code == 2 and "No adapter 'zz'" in said.err
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/adapter\n/adapter zz\n/adapter {other}\nhello\n"))
    said = onsa("chat", one, "--adapter", other)
    assert said.code == 0 and said.out.count("takes part in this conversation") == 2 and f"{one}, {other}" in said.out
    said = onsa("chat", one, "--message", f"/adapter {other}", "--json")
    assert len(said.document) == 1 and "adapter" not in said.document[0], "without --adapter it is a message"


def test_adapters_of_a_new_home(onsa: Onsa) -> None:
    assert "no finished adapter" in onsa("adapters").out
    assert onsa("adapters", "--json").document == []
    said = onsa("adapters", "merge", "abc", "def", "--method", "ties")
    assert said.code == 2 and "Traceback" not in said.err
