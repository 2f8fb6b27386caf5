"""Sampling: greedy answers are the library's own, and a drawn one is a function of its prompt and its seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from onsa.adaptations.base import hushed
from onsa.models import sampling
from onsa.models.batch import Example, collate
from onsa.models.policy import Policy
from onsa.models.sampling import Answer, Sampling, sample

PROMPTS = [[5, 9, 11], [7], [30, 31, 32, 33, 34, 35, 36], [8, 8, 12, 40]]
STOP = 17


@pytest.fixture(scope="module", params=["plain", "lora"])
def policy(request: Any, tiny_llama: Path) -> Policy:
    network = AutoModelForCausalLM.from_pretrained(tiny_llama)
    torch.manual_seed(1)
    with torch.no_grad():  # a random base says the same everywhere: make it livelier
        for parameter in network.parameters():
            parameter.mul_(4)
    if request.param == "lora":
        with hushed():
            network = get_peft_model(
                network, LoraConfig(r=2, init_lora_weights="gaussian", target_modules="all-linear")
            )
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1)
    return Policy(network, 0, torch.device("cpu"))


def seeds(count: int, first: int = 0) -> list[list[int]]:
    return [[first + 100 * row + place for place in range(count)] for row in range(len(PROMPTS))]


def test_greedy_is_the_librarys_own(policy: Policy) -> None:
    found = sample(policy, PROMPTS, seeds(1), Sampling(12, temperature=0, stops=(STOP,)))
    wanted = policy.generate(PROMPTS, 12, [STOP])
    for (answer,), tokens in zip(found, wanted, strict=True):
        assert list(answer.tokens) == [*tokens, STOP] if answer.ended else list(answer.tokens) == tokens


def test_an_answer_hangs_on_its_prompt_and_its_seed_alone(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Sampling(10, stops=(STOP,))
    together = sample(policy, PROMPTS, seeds(3), given)
    monkeypatch.setattr(sampling, "AT_ONCE", 1)
    assert tokens(sample(policy, PROMPTS, seeds(3), given)) == tokens(together)
    for row, prompt in enumerate(PROMPTS):
        (alone,) = sample(policy, [prompt], [[seeds(3)[row][2]]], given)
        assert alone[0].tokens == together[row][2].tokens
    assert tokens(sample(policy, PROMPTS, seeds(3, first=7), given)) != tokens(together)
    assert len({answer.tokens for answers in together for answer in answers}) > len(PROMPTS)


def tokens(found: list[list[Answer]]) -> list[list[tuple[int, ...]]]:
    return [[answer.tokens for answer in answers] for answers in found]


def test_logprobs_are_the_policys(policy: Policy) -> None:
    for row, answers in enumerate(sample(policy, PROMPTS, seeds(2), Sampling(8, stops=(STOP,)))):
        for answer in answers:
            token_T = np.asarray([*PROMPTS[row], *answer.tokens], np.int32)
            weight_T = (np.arange(len(token_T)) >= len(PROMPTS[row])).astype(np.float32)
            logprob_M = policy.logprobs(collate([Example(token_T, weight_T)])).detach()
            assert answer.logprobs == pytest.approx(logprob_M.tolist(), abs=1e-4)
            assert answer.ended == (answer.tokens[-1] == STOP) and STOP not in answer.tokens[:-1]


def test_draws_have_the_policys_distribution(policy: Policy) -> None:
    """Of one token, over many seeds: the chi-square of what is drawn, with and without a cut at the top."""
    count = 4000
    with torch.no_grad():
        logit_V = policy.network(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.6)):
        chance_V = (logit_V / temperature).softmax(0).double().numpy()
        order = np.argsort(-chance_V)
        inside = order[np.cumsum(chance_V[order]) - chance_V[order] < top_p]
        wanted_V = np.zeros_like(chance_V)
        wanted_V[inside] = chance_V[inside] / chance_V[inside].sum()
        (answers,) = sample(policy, PROMPTS[:1], [list(range(count))], Sampling(1, temperature, top_p))
        drawn_V = np.bincount([answer.tokens[0] for answer in answers], minlength=len(chance_V))
        assert drawn_V[wanted_V == 0].sum() == 0
        often = wanted_V * count >= 5
        square = ((drawn_V[often] - count * wanted_V[often]) ** 2 / (count * wanted_V[often])).sum()
        assert square < often.sum() + 5 * np.sqrt(2 * often.sum())


def test_what_stands_in_front_of_every_row_is_refused(tiny_llama: Path) -> None:
    from peft import PromptTuningConfig, TaskType

    with hushed():
        network = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_llama),
            PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2),
        )
    with pytest.raises(ValueError, match="soft prompt"):
        sample(Policy(network, 0, torch.device("cpu")), PROMPTS, seeds(1), Sampling(2))
