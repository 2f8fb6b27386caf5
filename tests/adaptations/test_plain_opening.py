"""What a run leaves opens with plain PEFT and transformers, in a process without Onsa, and gives the same logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import onsa
from onsa.models.catalog import catalog, entry
from onsa.models.fetch import fetch
from onsa.models.policy import Policy
from onsa.models.weights import PICKLES
from onsa.spec.recipe import parse_recipe
from onsa.store.run import Run

QUESTIONS = ["what is bread like", "tell me about the storm", "do you know any choir"]
# Reads where the model is and some rows of tokens; writes their logits, and what the tokenizer and the labels are.
PLAIN = """
import json, sys
import transformers
asked = json.load(sys.stdin)
builder = getattr(transformers, asked["auto"])
if asked["adapter"]:
    from peft import PeftConfig, PeftModel
    base = PeftConfig.from_pretrained(asked["folder"]).base_model_name_or_path
    network = PeftModel.from_pretrained(builder.from_pretrained(base, **asked["settings"]), asked["folder"])
else:
    network = builder.from_pretrained(asked["folder"])
tokenizer = transformers.AutoTokenizer.from_pretrained(asked["folder"])
import torch
network.float().eval()
with torch.inference_mode():
    logits = [network(input_ids=torch.tensor([row])).logits[0].tolist() for row in asked["tokens"]]
texts = [tokenizer(text)["input_ids"] for text in asked["texts"]]
labels = {int(index): name for index, name in network.config.id2label.items()}
assert "onsa" not in sys.modules
json.dump({"logits": logits, "texts": texts, "labels": labels}, sys.stdout)
"""


def trained(model: str, data: Path, adaptation: str, **more: Any) -> Run:
    """A short run."""
    recipe = {
        "model": model,
        "data": {"path": str(data)},
        "adaptation": adaptation,
        "engine": {"kind": "local", "device": "cpu"},
        "train": {"batch_rows": 8, "epochs": 1, "max_steps": 5, "precision": "fp32"},
        "evaluate": {"bootstrap": 100, "baseline": False, "answers": 0},
    }
    return onsa.run(parse_recipe(recipe | more))


def opened_plainly(run: Run, policy: Policy, tokens: list[list[int]]) -> dict[str, Any]:
    """What a process without Onsa makes of the run's model."""
    adapter, rows = (run.folder / "model" / "adapter_config.json").exists(), run.task == "text-classification"
    labels = policy.network.config.id2label
    asked = {
        "folder": str(run.folder / "model"),
        "adapter": adapter,
        "auto": "AutoModelForSequenceClassification" if rows else "AutoModelForCausalLM",
        "settings": {"num_labels": len(labels)} if rows else {},
        "tokens": tokens,
        "texts": QUESTIONS,
    }
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN], input=json.dumps(asked), capture_output=True, text=True, env=clean, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check_opens_plainly(run: Run) -> None:
    """The same logits, tokens and labels; no pickles; a model card that the hub can read."""
    predictor = onsa.load(run)
    tokens = [predictor.tokenizer(text)["input_ids"] for text in QUESTIONS]
    found = opened_plainly(run, predictor.policy, tokens)
    assert found["texts"] == tokens
    for row, theirs in zip(tokens, found["logits"], strict=True):
        with torch.inference_mode():
            mine = predictor.policy.network(input_ids=torch.tensor([row])).logits[0]
        torch.testing.assert_close(torch.tensor(theirs), mine, rtol=0, atol=1e-5)
    if run.task == "text-classification" and not (run.folder / "model" / "adapter_config.json").exists():
        assert tuple(found["labels"].values()) == predictor.task.outputs
    assert not [path for pattern in PICKLES for path in run.folder.rglob(pattern)]
    _, front, body = (run.folder / "model" / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["library_name"] in ("peft", "transformers")
    assert card["base_model"] == (entry(run.model).hub if run.model in catalog() else run.model)
    assert card["model-index"][0]["results"][0]["metrics"]
    assert body.strip().startswith("# ")


@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_a_row_head_opens_plainly(adaptation: str, tiny_bert: Path, topics_csv: Path) -> None:
    check_opens_plainly(trained(str(tiny_bert), topics_csv, adaptation))


@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_a_token_head_opens_plainly(adaptation: str, tiny_llama: Path, chat_jsonl: Path) -> None:
    check_opens_plainly(trained(str(tiny_llama), chat_jsonl, adaptation))


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The packaged MiniLM in the user's own home, which no test's home hides yet."""
    return fetch("minilm-l6")


@pytest.mark.packaged
@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_minilm_opens_plainly(adaptation: str, minilm: Path, topics_csv: Path, home: Path) -> None:
    (home / "models").mkdir(parents=True)
    (home / "models" / minilm.name).symlink_to(minilm)
    check_opens_plainly(trained(minilm.name, topics_csv, adaptation))
