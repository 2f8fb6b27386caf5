"""Rows that hold several answers: what each of their parts is, and that a prompt shared is a prompt of one's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import trial
from onsa.models.batch import Batch, Example, collate, texts
from onsa.models.policy import Policy

VOCABULARY = 90
parts = st.lists(st.lists(st.integers(1, 6), min_size=2, max_size=5), min_size=1, max_size=6)


def rows(part_RP: list[list[int]], scored: bool = False) -> list[Example]:
    """Rows with such parts: a prompt, then answers, all of whose tokens are to be predicted but every fifth."""
    dice = np.random.default_rng(3)
    found = []
    for row, part_P in enumerate(part_RP):
        token_T = dice.integers(1, VOCABULARY, sum(part_P)).astype(np.int32)
        weight_T = (np.arange(len(token_T)) >= part_P[0]).astype(np.float32)
        weight_T[part_P[0] + 1 :: 5] = 0
        rank_A = dice.integers(0, 3, len(part_P) - 1).astype(np.float32)
        found.append(Example(token_T, None if scored else weight_T, rank_A, row, part_P=tuple(part_P)))
    return found


def same(one: Batch, other: Batch) -> None:
    assert (one.length_R, one.row_R) == (other.length_R, other.row_R)
    for name in ("token_N", "predict_M", "target_M", "weight_M"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    if one.answers is not None and other.answers is not None:
        assert one.answers.part_RP == other.answers.part_RP
        for name in ("rank_A", "answer_M", "offset_M"):
            assert torch.equal(getattr(one.answers, name), getattr(other.answers, name)), name


@given(parts)
def test_unfolded_is_a_batch_of_its_texts(part_RP: list[list[int]]) -> None:
    examples = rows(part_RP)
    plain = collate(examples).unfolded()
    assert plain.answers is None
    same(plain, collate([text for example in examples for text in texts(example)]))


@given(parts.filter(lambda part_RP: len(part_RP) > 1), st.booleans())
def test_halves_are_batches_of_half_the_rows(part_RP: list[list[int]], scored: bool) -> None:
    examples = rows(part_RP, scored)
    first, second = collate(examples).halves()
    for half, given_ in ((first, examples[: len(examples) // 2]), (second, examples[len(examples) // 2 :])):
        wanted = collate(given_)
        if scored:
            assert half.predict_M is None and torch.equal(half.target_M, wanted.target_M)
            half, wanted = (replace(one, predict_M=torch.zeros(0)) for one in (half, wanted))
        same(half, wanted)


@given(parts)
def test_sums_are_those_of_each_answer(part_RP: list[list[int]]) -> None:
    batch = collate(rows(part_RP))
    assert batch.answers is not None
    counts = [int(np.count_nonzero(text.weight_T[1:])) for row in rows(part_RP) for text in texts(row)]  # type: ignore[index]
    assert batch.answers.summed(torch.ones(len(batch.target_M))).tolist() == counts
    assert batch.segment_M.tolist() == [
        row for row, example in enumerate(rows(part_RP)) for _ in range(example.supervised)
    ]


@given(parts)
def test_pairs_are_every_two_answers_of_a_row(part_RP: list[list[int]]) -> None:
    batch = collate(rows(part_RP))
    assert batch.answers is not None
    pairs, rank_A = batch.answers.pairs(), batch.answers.rank_A
    counts = [len(part_P) - 1 for part_P in part_RP]
    assert len(pairs.win_P) == sum(count * (count - 1) // 2 for count in counts)
    first_P, second_P = rank_A[pairs.first_P], rank_A[pairs.second_P]
    assert bool((first_P <= second_P).all())
    assert torch.equal(pairs.win_P, torch.where(first_P == second_P, 0.5, 1.0))
    for row, count in enumerate(counts):
        of_row = pairs.row_P == row
        assert float(pairs.weight_P[of_row].sum()) == pytest.approx(float(count > 1))


@pytest.mark.parametrize("logits", ["every-token", "supervised"])
def test_a_shared_prompt_gives_the_same_and_learns_the_same(tiny_llama: Path, tmp_path: Path, logits: Any) -> None:
    base = trial.still(tiny_llama, tmp_path / "still")
    batch = collate(rows([[5, 3, 4], [1, 6, 1, 2], [9, 2]]))
    found = []
    for layout in ("padded", "packed", "folded"):
        network = AutoModelForCausalLM.from_pretrained(base)
        policy = Policy(network, 0, torch.device("cpu"), logits=logits, layout=layout)  # type: ignore[arg-type]
        logprob_M = policy.logprobs(batch)
        (logprob_M * torch.arange(len(logprob_M))).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        found.append((logprob_M.detach(), gradient))
    for logprob_M, gradient in found[1:]:
        assert trial.apart(found[0][0], logprob_M) <= 1e-6 and trial.apart(found[0][1], gradient) <= 1e-5
