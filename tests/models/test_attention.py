"""Other ways to attend give what the library's kernel gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

import trial
from onsa.models import attention
from onsa.models.attention import CAUSAL, CAUSAL_PRODUCTS, FUSED, PRODUCTS, WAYS, Shape, in_line, products, times, used
from onsa.models.batch import collate
from onsa.models.lowering import BY_ENDS
from onsa.programs.forecast import build
from onsa.store.home import home

SHAPE = Shape(rows=2, tokens=7, heads=6, shared=2, width=8)


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("causal", [True, False])
def test_products_are_attention(mask: str, causal: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, heads, 7, 8, generator=generator, requires_grad=True) for heads in (6, 2, 2))
    hidden = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    hidden[1, :, :, 5:] = False
    hidden = hidden & torch.ones(7, 7, dtype=torch.bool).tril() if causal else hidden
    given = {"none": None, "bool": hidden, "float": torch.zeros(hidden.shape).masked_fill(~hidden, -1e9)}[mask]
    wide = [x.repeat_interleave(3, 1) for x in (k, v)]
    wanted = functional.scaled_dot_product_attention(
        q, *wide, attn_mask=given, is_causal=causal and given is None, scale=0.3
    )
    found, _ = products(SimpleNamespace(is_causal=causal), q, k, v, given, scaling=0.3)
    torch.testing.assert_close(found, wanted.transpose(1, 2), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(found.square().sum(), (q, k, v)),
        torch.autograd.grad(wanted.square().sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_last_tokens_see_all_keys_before_them() -> None:
    q, k, v = torch.randn(1, 2, 2, 4), torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    whole, _ = products(SimpleNamespace(is_causal=True), torch.cat([torch.randn(1, 2, 3, 4), q], 2), k, v, None)
    part, _ = products(SimpleNamespace(is_causal=True), q, k, v, None)
    torch.testing.assert_close(part, whole[:, 3:])


def test_shares_are_dropped_in_training_only() -> None:
    q, k, v = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    kept, _ = products(SimpleNamespace(is_causal=False), q, k, v, None)
    torch.testing.assert_close(kept, torch.ones_like(kept))
    dropped, _ = products(SimpleNamespace(is_causal=False), q, k, v, None, dropout=0.5)
    assert not torch.allclose(dropped, kept)


@pytest.mark.parametrize(("head", "ways"), [("tokens", {*WAYS, *BY_ENDS}), ("rows", {PRODUCTS})])
def test_a_network_takes_the_ways_that_change_nothing(
    head: str, ways: set[str], tiny_bert: Path, tiny_llama: Path, topics_csv: Path, chat_jsonl: Path
) -> None:
    """An encoder needs its mask; a decoder, whose padding comes last, does not."""
    base, data = (tiny_llama, chat_jsonl) if head == "tokens" else (tiny_bert, topics_csv)
    built = build(trial.ready(base, data, adaptation="full", accel="auto"))
    facts = built.prepared.plan.anatomy
    assert facts is not None and set(facts.attention) == {FUSED, *ways}
    assert used(built.network) == FUSED


@pytest.mark.parametrize("way", [CAUSAL, CAUSAL_PRODUCTS, PRODUCTS])
def test_rows_of_unlike_length_lose_the_same(way: str, tiny_llama: Path, chat_jsonl: Path) -> None:
    prepared = trial.ready(tiny_llama, chat_jsonl, adaptation="full", accel="off")
    session: Any = trial.opened(prepared)
    batch = collate(prepared.examples["train"][:6])
    assert len(set(batch.length_R)) > 1
    plain = session.models.policy.logprobs(batch)
    attention.use(trial.network(session), way)
    found = session.models.policy.logprobs(batch)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", BY_ENDS)
@pytest.mark.parametrize("adaptation", ["full", "lora", "prompt"])
def test_rows_in_a_line_lose_and_learn_the_same(way: str, adaptation: str, tiny_llama: Path, chat_jsonl: Path) -> None:
    prepared = trial.ready(tiny_llama, chat_jsonl, adaptation=adaptation, accel="off")
    session: Any = trial.opened(prepared)
    batch, found = collate(prepared.examples["train"][:6]), []
    for layout in ("padded", "packed"):
        logprob_M = replace(session.models.policy, layout=layout).logprobs(batch)
        (-logprob_M.mean()).backward()
        found.append((logprob_M.detach(), trial.gradients(session)))
        trial.network(session).zero_grad()
        attention.use(trial.network(session), way)
    (plain, gradient), (lined, gradient_lined) = found
    torch.testing.assert_close(lined, plain, rtol=1e-5, atol=1e-5)
    assert trial.apart(gradient, gradient_lined) <= 1e-5


@pytest.mark.parametrize("length_R", [(7,), (7, 7, 7), (9, 8, 7, 3, 2), (3, 9, 8, 1, 1)])
@pytest.mark.parametrize("causal", [True, False])
def test_rows_of_a_line_are_attended_to_alone(length_R: tuple[int, ...], causal: bool) -> None:
    """In groups of like length, padded, as each row for itself."""
    ends = torch.tensor([0, *length_R], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    torch.manual_seed(0)
    given = [torch.randn(1, heads, sum(length_R), 5, requires_grad=True) for heads in (6, 2, 2)]
    told = {"cu_seq_lens_q": ends, "max_length_q": max(length_R), "is_causal": causal}
    mixed_1NHD = in_line(products)(None, *given, None, **told)[0]
    rows = zip(*(x.split(list(length_R), 2) for x in given), strict=True)
    alone = torch.cat([products(None, *row, None, is_causal=causal)[0] for row in rows], 1)
    torch.testing.assert_close(mixed_1NHD, alone)
    weight = torch.randn_like(alone)
    grads = [torch.autograd.grad((found * weight).sum(), given) for found in (mixed_1NHD, alone)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("way", BY_ENDS)
def test_rows_beside_each_other_keep_their_mask(way: str, tiny_llama: Path, chat_jsonl: Path) -> None:
    prepared = trial.ready(tiny_llama, chat_jsonl, adaptation="full", accel="off")
    session: Any = trial.opened(prepared)
    prompts = [
        example.token_T[:length].tolist() for example, length in zip(prepared.examples["train"], (4, 9), strict=False)
    ]
    answers = session.models.policy.generate(prompts, 6, [])
    attention.use(trial.network(session), way)
    assert session.models.policy.generate(prompts, 6, []) == answers


def test_rows_longer_than_a_window_need_their_mask(tiny_llama: Path, tmp_path: Path, chat_jsonl: Path) -> None:
    """A mask hides what lies further back than the window; no way without one does."""
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    config = json.loads((tiny_llama / "config.json").read_text())
    known = {name: value for name, value in config.items() if name not in ("model_type", "architectures")}
    for window, ways in ((8, {PRODUCTS}), (4096, {*WAYS, *BY_ENDS})):
        folder = tmp_path / str(window)
        MistralForCausalLM(MistralConfig(**known | {"sliding_window": window})).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
        facts = build(trial.ready(folder, chat_jsonl, adaptation="full", accel="auto")).prepared.plan.anatomy
        assert facts is not None and set(facts.attention) == {FUSED, *ways}


def test_a_time_is_measured_once() -> None:
    first = times(SHAPE, "cpu", torch.float32)
    assert set(first) == {FUSED, *WAYS, *BY_ENDS} and min(first.values()) > 0
    assert times(SHAPE, "cpu", torch.float32) == first
    written = json.loads((home() / "cache" / "attention.json").read_text())
    assert list(written.values()) == [first]
