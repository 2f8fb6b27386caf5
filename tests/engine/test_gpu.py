"""On a GPU: the losses of the CPU in fp32, and training in bf16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import onsa
import tiny
from onsa.engine.events import Stepped
from onsa.models.attention import in_line, products
from onsa.spec.recipe import parse_recipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(params=["bert", "llama", "pairs"])
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Every weight of a tiny BERT, or LoRA on a tiny Llama, over talks or over pairs of answers; without dropout, whose
    draws are the device's own."""
    if request.param == "bert":
        base, data = request.getfixturevalue("tiny_bert"), request.getfixturevalue("topics_csv")
        network = without_dropout(base, tmp_path / "bert")
        made: dict[str, Any] = {"model": str(network), "data": str(data), "adaptation": "full"}
    else:
        base = request.getfixturevalue("tiny_llama")
        pairs = request.param == "pairs"
        data = tiny.write_pairs(tmp_path / "pairs.jsonl") if pairs else request.getfixturevalue("chat_jsonl")
        made = {"model": str(base), "data": str(data), "adaptation": "lora"}
    return made | {
        "optimizer": {"kind": "adamw", "lr": 1e-3},
        "evaluate": {"bootstrap": 100, "baseline": False, "answers": 0},
    }


def without_dropout(base: Path, folder: Path) -> Path:
    """A copy of a base whose configuration has no dropout."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def losses(recipe: dict[str, Any], device: str, precision: str) -> list[float]:
    """The loss of each of 20 steps."""
    settings = {
        "engine": {"kind": "local", "device": device},
        "train": {"batch_rows": 8, "epochs": 3, "max_steps": 20, "precision": precision},
    }
    return [event.loss for event in onsa.train(parse_recipe(recipe | settings)) if isinstance(event, Stepped)]


def test_the_gpu_loses_as_the_cpu_does(recipe: dict[str, Any]) -> None:
    assert losses(recipe, "cuda", "fp32") == pytest.approx(losses(recipe, "cpu", "fp32"), rel=1e-4)


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_adapters_train_on_a_quantised_base(scheme: str, tiny_llama: Path, chat_jsonl: Path) -> None:
    model = {"name": str(tiny_llama), "quantize": scheme}
    given = {"model": model, "data": str(chat_jsonl), "adaptation": "lora", "optimizer": {"kind": "adamw", "lr": 1e-2}}
    evaluated = {"evaluate": {"bootstrap": 100, "baseline": False, "answers": 0}}
    found = losses(given | evaluated, "cuda", "bf16")
    assert len(found) == 20 and found[-1] < found[0]


def test_bf16_trains_on_the_gpu(recipe: dict[str, Any]) -> None:
    found = losses(recipe, "cuda", "bf16")
    assert len(found) == 20
    assert found[-1] < found[0]
    assert found[0] == pytest.approx(losses(recipe, "cuda", "fp32")[0], rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_policy_answers_and_learns_there(precision: str, tiny_llama: Path, tmp_path: Path) -> None:
    """PPO: sampler and training agree about the answers, and critic and reference are on the same device."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text, _ in tiny.questions()))
    reward = {"kind": "regex", "pattern": "[a-m]"}
    given = {
        "model": str(tiny_llama),
        "data": str(path),
        "adaptation": "lora",
        "objective": "ppo",
        "source": {"kind": "rollouts", "group": 4, "passes": 2, "max_new_tokens": 8, "reward": reward},
        "engine": {"kind": "local", "device": "cuda"},
        "train": {"batch_rows": 8, "max_steps": 6, "precision": precision},
        "evaluate": {"bootstrap": 100, "answers": 0},
    }
    steps = [event for event in onsa.train(parse_recipe(given)) if isinstance(event, Stepped)]
    assert len(steps) == 6 and all(step.metrics["gap"] < (1e-3 if precision == "fp32" else 0.1) for step in steps)
    assert steps[0].metrics["kl"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_in_a_line_attend_to_themselves(dtype: torch.dtype) -> None:
    """In half precision one kernel does it, else a call for each row; heads share keys."""
    lengths, generator = [5, 70, 1, 33], torch.Generator("cuda").manual_seed(1)
    q, k, v = (torch.randn(1, heads, sum(lengths), 64, generator=generator, device="cuda") for heads in (6, 2, 2))
    ends = torch.tensor([0, *lengths], device="cuda").cumsum(0, dtype=torch.int32)
    told = {"cu_seq_lens_q": ends, "max_length_q": max(lengths), "is_causal": True}
    rows = zip(*(x.split(lengths, 2) for x in (q, k, v)), strict=True)
    wanted = torch.cat([products(None, *row, None, is_causal=True)[0] for row in rows], 1)
    given = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    found, _ = in_line(products)(None, *given, None, **told)
    torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=2e-2)
    found.sum().backward()
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in given)
