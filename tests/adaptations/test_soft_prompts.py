"""Soft prompts are laid out by the policy: as PEFT's own forward does it, in every plan and layout, and in answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from onsa.adaptations.base import Adaptation
from onsa.adaptations.lora import Lora
from onsa.adaptations.p_tuning import PTuning
from onsa.adaptations.peft import Peft
from onsa.adaptations.prefix import Prefix
from onsa.adaptations.prompt import Prompt
from onsa.models.batch import Batch
from onsa.models.heads import Head
from onsa.models.names import matching
from onsa.models.policy import Policy
from onsa.spec.errors import RecipeError
from onsa.spec.recipe import parse_recipe

CPU = torch.device("cpu")
LENGTHS = (9, 5, 12)
SOFT: dict[str, Adaptation] = {
    "prefix": Prefix(tokens=3),
    "prefix-projected": Prefix(tokens=3, projection=8),
    "prompt": Prompt(tokens=4),
    "p-tuning": PTuning(tokens=4),
    "p-tuning-lstm": PTuning(tokens=4, encoder="lstm", width=8, layers=2, dropout=0.1),
    "cartridge": Peft(tuner="cartridge", settings={"num_virtual_tokens": 3}),
}
every_soft = pytest.mark.parametrize("name", list(SOFT))


def tokens() -> list[Tensor]:
    dice = torch.Generator().manual_seed(5)
    return [torch.randint(5, 60, (n,), generator=dice) for n in LENGTHS]


def batch(head: Head) -> Batch:
    token_N = torch.cat(tokens())
    if head is Head.ROWS:
        return Batch(token_N, LENGTHS, None, torch.tensor([0, 1, 2]), torch.ones(3), (0, 1, 2))
    places = torch.tensor([0, 3, 7, 10, 12, 14, 20, 24])
    return Batch(token_N, LENGTHS, places, token_N[places + 1], torch.ones(len(places)), (0, 1, 2))


def block() -> dict[str, Tensor]:
    """The same rows, padded by hand."""
    token_RT, mask_RT = torch.zeros(3, max(LENGTHS), dtype=torch.long), torch.zeros(3, max(LENGTHS), dtype=torch.long)
    for row, token_T in enumerate(tokens()):
        token_RT[row, : len(token_T)], mask_RT[row, : len(token_T)] = token_T, 1
    return {"input_ids": token_RT, "attention_mask": mask_RT}


def tuned(kind: Adaptation, network: Any, head: Head, new: frozenset[str] = frozenset()) -> Any:
    """A network with an adapter that is not at its beginning."""
    torch.manual_seed(2)
    adapted = kind.apply(network, head, new, 4).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return adapted


def llama(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def bert(folder: Path) -> Any:
    torch.manual_seed(1)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)


@every_soft
def test_tokens_are_answered_as_by_peft(name: str, tiny_llama: Path) -> None:
    network = tuned(SOFT[name], llama(tiny_llama), Head.TOKENS)
    asked = batch(Head.TOKENS)
    logit_RSV = network(**block()).logits
    logit_RTV = logit_RSV[:, -max(LENGTHS) :]
    rows = [logit_RTV[row, :n] for row, n in enumerate(LENGTHS)]
    assert asked.predict_M is not None
    expected = torch.cat(rows)[asked.predict_M].log_softmax(-1).gather(1, asked.target_M[:, None])[:, 0]
    bare = Policy(llama(tiny_llama), 0, CPU).logprobs(asked)
    for plan in ("every-token", "supervised"):
        found = Policy(network, 0, CPU, logits=plan).logprobs(asked)
        assert torch.allclose(found, expected, atol=1e-5), plan
        assert not torch.allclose(found, bare, atol=1e-3), "the soft prompt is seen"
    with network.disable_adapter():
        assert torch.allclose(Policy(network, 0, CPU).logprobs(asked), bare, atol=1e-6)


@every_soft
def test_rows_are_answered_as_by_peft(name: str, tiny_bert: Path) -> None:
    new = frozenset({"classifier.weight", "classifier.bias"})
    network = tuned(SOFT[name], bert(tiny_bert), Head.ROWS, new)
    found = Policy(network, 0, CPU).classes(batch(Head.ROWS))
    assert torch.allclose(found, network(**block()).logits, atol=1e-5)
    bare = Policy(network.get_base_model(), 0, CPU).classes(batch(Head.ROWS))
    assert not torch.allclose(found, bare, atol=1e-3)


@every_soft
def test_a_decoders_row_head_reads_the_last_token(name: str, tiny_llama: Path) -> None:
    """Rows of a padded block are answered as each row by itself."""
    torch.manual_seed(1)
    base = LlamaForSequenceClassification.from_pretrained(tiny_llama, num_labels=3)
    network = tuned(SOFT[name], base, Head.ROWS, frozenset({"score.weight"}))
    together = Policy(network, 0, CPU).classes(batch(Head.ROWS))
    for row, token_T in enumerate(tokens()):
        alone = network(input_ids=token_T[None], attention_mask=torch.ones(1, len(token_T))).logits
        assert torch.allclose(together[row], alone[0], atol=1e-5)


@every_soft
def test_embeddings_are_of_the_rows_own_tokens(name: str, tiny_llama: Path) -> None:
    network = tuned(SOFT[name], llama(tiny_llama), Head.TOKENS)
    found = Policy(network, 0, CPU).embed(batch(Head.TOKENS))
    for row, token_T in enumerate(tokens()):
        hidden = network(input_ids=token_T[None], output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(found[row], hidden[0, -len(token_T) :].mean(0), atol=1e-5)


@every_soft
def test_answers_continue_what_was_trained(name: str, tiny_llama: Path) -> None:
    """Greedy answers of rows together are those that each row's own logits give, one token after another."""
    network = tuned(SOFT[name], llama(tiny_llama), Head.TOKENS)
    found = Policy(network, 0, CPU).generate([token_T.tolist() for token_T in tokens()], 6, [])
    for token_T, answer in zip(tokens(), found, strict=True):
        told = token_T.tolist()
        for _ in range(6):
            told.append(int(network(input_ids=torch.tensor([told])).logits[0, -1].argmax()))
        assert answer == told[len(token_T) :]


KINDS: dict[str, Callable[[], Adaptation | None]] = {
    "none": lambda: None,
    "lora": Lora,
    **{name: (lambda kind=kind: kind) for name, kind in SOFT.items()},  # type: ignore[misc]
}


@pytest.mark.parametrize("plan", ["every-token", "supervised"])
@pytest.mark.parametrize("name", list(KINDS))
def test_packed_rows_equal_padded_ones(name: str, plan: Any, tiny_llama: Path) -> None:
    found = []
    for layout in ("padded", "packed"):
        kind, network = KINDS[name](), llama(tiny_llama)
        if kind is not None:
            network = tuned(kind, network, Head.TOKENS)
        logprob_M = Policy(network, 0, CPU, logits=plan, layout=layout).logprobs(batch(Head.TOKENS))
        loss = -logprob_M.mean()
        loss.backward()
        grad = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        found.append((logprob_M.detach(), loss.detach(), grad))
    (padded, loss, grad), (packed, loss_packed, grad_packed) = found
    assert torch.allclose(padded, packed, atol=1e-5) and torch.allclose(loss, loss_packed, atol=1e-5)
    assert float((grad - grad_packed).norm() / grad.norm()) <= 1e-5


@pytest.mark.parametrize("name", ["none", "prefix", "prompt"])
def test_packed_rows_do_not_see_each_other(name: str, tiny_llama: Path) -> None:
    kind, network = KINDS[name](), llama(tiny_llama)
    network = network if kind is None else tuned(kind, network, Head.TOKENS)
    policy = Policy(network, 0, CPU, layout="packed")
    asked = batch(Head.TOKENS)
    token_N = asked.token_N.clone()
    token_N[: LENGTHS[0]] = torch.arange(20, 20 + LENGTHS[0])
    other = Batch(token_N, LENGTHS, asked.predict_M, asked.target_M, asked.weight_M, asked.row_R)
    same = asked.segment_M > 0
    one, two = policy.logprobs(asked), policy.logprobs(other)
    assert torch.allclose(one[same], two[same], atol=1e-6) and not torch.allclose(one[~same], two[~same], atol=1e-3)


def test_row_heads_are_not_packed(tiny_bert: Path) -> None:
    with pytest.raises(AssertionError):
        Policy(bert(tiny_bert), 0, CPU, layout="packed").classes(batch(Head.ROWS))


def test_a_prompt_begins_from_its_text(tiny_llama: Path) -> None:
    from transformers import AutoTokenizer

    base = llama(tiny_llama)
    ids = AutoTokenizer.from_pretrained(tiny_llama)("what is rain like")["input_ids"]
    network = Prompt(tokens=len(ids) + 2, init="text", text="what is rain like").apply(
        base, Head.TOKENS, frozenset(), 4
    )
    expected = base.get_input_embeddings().weight[torch.tensor([*ids, *ids[:2]])]
    assert torch.equal(network.prompt_encoder["default"].embedding.weight, expected)


def test_names_are_those_of_the_base(tiny_llama: Path) -> None:
    network = SOFT["prompt"].apply(llama(tiny_llama), Head.TOKENS, frozenset(), 4)
    assert matching(network, ["model.layers.0"], "x") and not matching(network, ["model.layers.0"], "x") - {
        name for name, _ in network.named_parameters() if name.startswith("base_model.model.layers.0.")
    }


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"kind": "prompt", "text": "hello"}, "prompt-text-unfit"),
        ({"kind": "prompt", "init": "text"}, "prompt-text-unfit"),
        ({"kind": "p-tuning", "layers": 3}, "p-tuning-mlp"),
        ({"kind": "p-tuning", "dropout": 0.1}, "p-tuning-mlp"),
        ({"kind": "p-tuning", "encoder": "lstm", "layers": 1, "dropout": 0.1}, "p-tuning-one-layer"),
        ({"kind": "prefix", "tokens": 0}, "value-too-small"),
    ],
)
def test_settings_that_do_nothing_are_refused(given: dict[str, Any], code: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"model": "m", "data": "d", "adaptation": given})
    assert [problem.code for problem in caught.value.problems] == [code]


def test_a_network_that_cannot_is_refused() -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    small = DistilBertConfig(vocab_size=60, dim=16, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=32)
    with pytest.raises(RecipeError) as caught:
        new = frozenset({"classifier.weight", "classifier.bias"})
        Prefix(tokens=2).apply(DistilBertForSequenceClassification(small), Head.ROWS, new, 4)
    assert [problem.code for problem in caught.value.problems] == ["peft-refuses"]


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_an_encoder_that_counts_from_its_padding_id(name: str) -> None:
    torch.manual_seed(1)
    small = RobertaConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    network = tuned(SOFT[name], RobertaForSequenceClassification(small), Head.ROWS)
    inputs = block()
    inputs["input_ids"][inputs["attention_mask"] == 0] = 1
    found = Policy(network, 1, CPU).classes(batch(Head.ROWS))
    assert torch.allclose(found, network(**inputs).logits, atol=1e-5)


def test_virtual_tokens_take_of_the_context(attempt_context: Callable[[Any], int]) -> None:
    whole = attempt_context("full")
    assert attempt_context({"kind": "prompt", "tokens": 50}) == whole - 50
    assert (
        attempt_context({"kind": "peft", "tuner": "prefix-tuning", "settings": {"num_virtual_tokens": 50}})
        == whole - 50
    )


@pytest.fixture
def attempt_context(tiny_bert: Path, tmp_path: Path) -> Callable[[Any], int]:
    import tiny
    import trial

    data = tmp_path / "long.csv"
    rows = [f"{' '.join([text] * 12)},{topic}" for text, topic in tiny.questions()]
    data.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")

    def context(adaptation: Any) -> int:
        return trial.ready(tiny_bert, data, adaptation=adaptation).recipe.train.max_length or 0

    return context
