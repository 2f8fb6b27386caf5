"""LoRA, IA³, prefix and prompt tuning through Onsa equal a plain PyTorch loop over PEFT's own forward, in fp32.

AdamW's ``eps`` is that of :data:`trial.CALM`: where a gradient is zero but for rounding, Adam's quotient would blow the
rounding up to a whole step, and two ways to compute the same thing would part for no reason.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import tiny
import trial
from onsa.adaptations.base import Adaptation
from onsa.adaptations.ia3 import Ia3
from onsa.models.batch import Example
from onsa.models.heads import Head
from onsa.programs.prepare import Prepared
from onsa.sources.base import Cursor
from onsa.spec.errors import RecipeError

STEPS, RATE = 20, 3e-3
KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "lora": ({"kind": "lora", "rank": 4}, lambda: LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")),
    "ia3": ({"kind": "ia3"}, IA3Config),
    "prefix": ({"kind": "prefix", "tokens": 5}, lambda: PrefixTuningConfig(num_virtual_tokens=5)),
    "prompt": (
        {"kind": "prompt", "tokens": 5, "init": "random"},
        lambda: PromptTuningConfig(num_virtual_tokens=5),
    ),
}


def padded(examples: list[Example], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask, and the labels of tokens that count, as transformers takes them."""
    longest = max(len(example.token_T) for example in examples)
    token_RT, mask_RT = torch.full((len(examples), longest), pad), torch.zeros(len(examples), longest)
    label_RT = torch.full((len(examples), longest), -100)
    for row, example in enumerate(examples):
        n = len(example.token_T)
        token_RT[row, :n], mask_RT[row, :n] = torch.tensor(example.token_T).long(), 1
        if example.weight_T is not None:
            counts = torch.tensor(example.weight_T) > 0
            label_RT[row, :n][counts] = token_RT[row, :n][counts]
    return token_RT, mask_RT, label_RT


def plain_loop(prepared: Prepared, config: Any, start: dict[str, Tensor], steps: list[list[Example]]) -> Any:
    """The loop that anyone would write, from the same weights over the same rows."""
    rows = prepared.task.head is Head.ROWS
    config.task_type = TaskType.SEQ_CLS if rows else TaskType.CAUSAL_LM
    folder = prepared.base.folder
    builder = AutoModelForSequenceClassification if rows else AutoModelForCausalLM
    more = {"num_labels": len(prepared.task.outputs)} if rows else {}
    network: Any = get_peft_model(builder.from_pretrained(folder, **more), config).train()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            assert parameter.requires_grad == (name in start), name
            if name in start:
                parameter.copy_(start[name])
    free = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=RATE, eps=1e-3, weight_decay=0.0)
    losses = []
    for examples in steps:
        token_RT, mask_RT, label_RT = padded(examples, prepared.tokenizer.pad_token_id)
        label = torch.tensor([example.target for example in examples]) if rows else label_RT
        loss = network(input_ids=token_RT, attention_mask=mask_RT, labels=label).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, dict(network.named_parameters())


@pytest.mark.parametrize("head", ["rows", "tokens"])
@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # plain PEFT's, in the loop beside ours
def test_twenty_steps_equal_a_plain_loop(
    name: str, head: str, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    given, config = KINDS[name]
    base = trial.still(tiny_bert if head == "rows" else tiny_llama, tmp_path / "base")
    data = tiny.write_csv(tmp_path / "d.csv") if head == "rows" else tiny.write_chat(tmp_path / "d.jsonl")
    prepared = trial.ready(
        base,
        data,
        adaptation=given,
        optimizer={**trial.CALM, "lr": RATE, "lr_new": RATE, "weight_decay": 0.0},
        schedule={"kind": "constant", "warmup": 0},
        train={"max_steps": STEPS, "clip": None},
    )
    session = trial.opened(prepared)
    start = trial.trained(session)
    steps = [list(examples) for examples, _ in islice(prepared.source.steps(prepared.feed, Cursor()), STEPS)]
    said, _ = trial.advance(prepared, session, STEPS)
    losses, ends = plain_loop(prepared, config(), start, steps)
    assert [step["loss"] for step in said] == pytest.approx(losses, rel=1e-5)
    trained = trial.trained(session)
    assert trained.keys() == start.keys() and any(not torch.equal(trained[n], start[n]) for n in start)
    for parameter, value in trained.items():
        assert float((value - ends[parameter].detach()).abs().max()) <= 1e-5, parameter


@pytest.mark.parametrize("head", list(Head))
def test_ia3_knows_where(head: Head, tiny_bert: Path, tiny_llama: Path) -> None:
    """Keys, values, and what goes into the end of each feed-forward part; names of one's own take their place."""
    rows = head is Head.ROWS
    folder, builder = (tiny_bert, AutoModelForSequenceClassification) if rows else (tiny_llama, AutoModelForCausalLM)
    new = frozenset({"classifier.weight", "classifier.bias"} if rows else ())

    def scaled(kind: Adaptation) -> set[str]:
        network = kind.apply(builder.from_pretrained(folder), head, new, 6)
        names = [name for name, p in network.named_parameters() if p.requires_grad and "ia3_l" in name]
        return {name.partition(".ia3_l")[0].rpartition(".")[2] for name in names}

    # what PEFT names for BERT, "output.dense", ends the attention as well
    assert scaled(Ia3()) == ({"key", "value", "dense"} if rows else {"k_proj", "v_proj", "down_proj"})
    target, inner = ("query", "intermediate.dense") if rows else ("q_proj", "up_proj")
    assert scaled(Ia3(targets=(target,), feedforward=(inner,))) == {target, inner.rpartition(".")[2]}
    assert scaled(Ia3(targets=target, feedforward=())) == {target}
    with pytest.raises(RecipeError) as caught:
        scaled(Ia3(targets="nonsense"))
    assert cast(Any, caught.value).problems[0].code == "target-unmatched"


def test_ia3_asks_where_if_it_does_not_know() -> None:
    from transformers import ElectraConfig, ElectraForSequenceClassification

    small = {"hidden_size": 16, "embedding_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = ElectraForSequenceClassification(ElectraConfig(vocab_size=60, intermediate_size=16, **small))
    with pytest.raises(RecipeError) as caught:
        Ia3().apply(network, Head.ROWS, frozenset(), 6)
    (problem,) = cast(Any, caught.value).problems
    assert (problem.code, problem.key) == ("targets-needed", "adaptation.targets")
    assert "electra" in problem.what and "query" in problem.fix
    adapted = Ia3(targets=("key", "value"), feedforward=()).apply(network, Head.ROWS, frozenset(), 6)
    assert any("ia3_l" in name for name, p in adapted.named_parameters() if p.requires_grad)
