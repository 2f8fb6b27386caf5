"""Several adapters: a mixed batch answers as each adapter alone, a stack is the sum of its members' updates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from onsa.models.batch import collate
from onsa.models.load import quiet
from onsa.programs.predict import conversation, predict
from onsa.serve import adapters as several
from onsa.serve.adapters import Adapter, Apart, Mixed, Question, obstacles, open_adapters, settings
from onsa.serve.predictor import load_run
from onsa.serve.prompter import checked
from onsa.spec.errors import DataError
from onsa.spec.recipe import parse_recipe
from onsa.store.run import Run
from several import tuned

TEXTS = ["rain", "what is bread like", "do you know any choir", "soup please", "tell me about the storm"]


def adapter(*runs: Run) -> Adapter:
    return Adapter("+".join(run.id for run in runs), tuple(run.folder for run in runs), parse_recipe(runs[0].recipe))


def mixed_questions(adapters: Sequence[Adapter]) -> list[Question]:
    """Every text for every adapter, in turn."""
    return [Question(one.name, number, text) for number, text in enumerate(TEXTS, 1) for one in adapters]


def logits(answering: Mixed, questions: Sequence[Question]) -> Tensor:
    """What a mixed batch gives, a row each; of a token head, what follows the prompt."""
    ready = []
    for question in questions:
        one = answering._predictors[question.adapter]
        ready.append((one, checked(one.task, one.normalise, question.given, question.number)))
    policy = answering._for(questions)
    if ready[0][0].max_new_tokens:
        return torch.stack(
            [
                policy.network(input_ids=torch.tensor(one.prompter.prompts([row])), adapter_names=[name]).logits[0, -1]
                for (one, row), name in zip(ready, policy.adapter_R or (), strict=True)
            ]
        )
    return policy.classes(collate([one.asked(row) for one, row in ready]))


@pytest.mark.parametrize("head", ["rows", "tokens"])
def test_a_mixed_batch_answers_as_each_adapter_alone(
    head: str, tiny_bert: Path, tiny_llama: Path, topics_csv: Path, chat_jsonl: Path
) -> None:
    base, data = (tiny_bert, topics_csv) if head == "rows" else (tiny_llama, chat_jsonl)
    one, other = tuned(base, data, 1), tuned(base, data, 2, adaptation={"kind": "lora", "rank": 2})
    named = [adapter(one), adapter(other), adapter(one, other)]
    answering = open_adapters(named)
    assert isinstance(answering, Mixed)
    questions = mixed_questions(named)
    calls: list[Any] = []
    handle = answering._policy.network.register_forward_pre_hook(lambda *given: calls.append(given))
    together = list(answering.answer(questions))
    handle.remove()
    assert head == "tokens" or len(calls) == 1, "one batch, one forward"
    alone = list(Apart(named).answer(questions))
    if head == "tokens":
        assert together == alone
    for mine, theirs in zip(together, alone, strict=True):
        assert mine.get("scores", {}) == pytest.approx(theirs.get("scores", {}), abs=1e-5)
    with torch.inference_mode():
        mixed_RC = logits(answering, questions)
        for run in (one, other):
            single = load_run(run.folder, parse_recipe(run.recipe))
            places = [place for place, question in enumerate(questions) if question.adapter == run.id]
            asked = [checked(single.task, "none", questions[place].given, 1) for place in places]
            if head == "rows":
                alone_RC = single.policy.classes(collate([single.asked(row) for row in asked]))
            else:
                rows = [torch.tensor([prompt]) for prompt in single.prompter.prompts(asked)]
                alone_RC = torch.stack([single.policy.network(input_ids=row).logits[0, -1] for row in rows])
            torch.testing.assert_close(mixed_RC[places], alone_RC, rtol=0, atol=1e-5)
        apart = (mixed_RC[0::3] - mixed_RC[1::3]).abs().max()
        assert apart > 1e-3, "the adapters have learnt different things"


def test_a_mixed_batch_is_generated_in_one_go(
    tiny_llama: Path, chat_jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tuned(tiny_llama, chat_jsonl, 1), tuned(tiny_llama, chat_jsonl, 2, evaluate={"max_new_tokens": 6})
    brief = tuned(tiny_llama, chat_jsonl, 3, evaluate={"max_new_tokens": 2})
    named = [adapter(one), adapter(other), adapter(brief)]
    seen: list[tuple[int, set[str]]] = []
    generate = several.Policy.generate

    def watched(self: Any, prompts: Any, most: int, stops: Any) -> Any:
        seen.append((most, set(self.adapter_R)))
        return generate(self, prompts, most, stops)

    monkeypatch.setattr(several.Policy, "generate", watched)
    answers = list(open_adapters(named).answer(mixed_questions(named)))
    assert len(answers) == 15
    assert seen == [(6, {"run-0", "run-1"}), (2, {"run-2"})], "rows that end alike go together"


def test_a_stack_is_the_sum_of_its_updates(tiny_llama: Path, chat_jsonl: Path) -> None:
    runs = [tuned(tiny_llama, chat_jsonl, seed) for seed in (1, 2)]
    stack = cast(Mixed, open_adapters([adapter(*runs)]))
    stacked = stack.predictor(adapter(*runs).name)
    by_hand = AutoModelForCausalLM.from_pretrained(tiny_llama)
    weights = dict(by_hand.named_parameters())
    from safetensors.torch import load_file

    for run in runs:
        tensors = load_file(run.folder / "model" / "adapter_model.safetensors")
        for name, down_RI in tensors.items():
            if ".lora_A." in name:
                place = name.removeprefix("base_model.model.").replace(".lora_A.", ".")
                up_OR = tensors[name.replace(".lora_A.", ".lora_B.")]
                weights[place].data += 2.0 * up_OR @ down_RI  # alpha is twice the rank
    token_1T = torch.tensor([[3, 50, 61, 72]])
    with torch.inference_mode():
        mine, theirs = stacked.policy.network(input_ids=token_1T).logits, by_hand(input_ids=token_1T).logits
        single = load_run(runs[0].folder, parse_recipe(runs[0].recipe)).policy.network(input_ids=token_1T).logits
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    assert (mine - single).abs().max() > 1e-3


def test_heads_of_other_widths_get_networks_of_their_own(tiny_bert: Path, topics_csv: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer.csv"
    lines = topics_csv.read_text().splitlines()
    fewer.write_text("\n".join(line for line in lines if not line.endswith("music")) + "\n")
    one, other = tuned(tiny_bert, topics_csv, 1), tuned(tiny_bert, fewer, 2)
    found = list(predict(one.id, ["rain", "soup"], None, False, [other.id]))
    assert [(answer["row"], answer["adapter"]) for answer in found] == [
        (row, run.id) for row in (0, 1) for run in (one, other)
    ]
    assert [len(answer["scores"]) for answer in found] == [3, 2, 3, 2]
    assert isinstance(open_adapters([adapter(one), adapter(other)]), Apart)
    alone = load_run(other.folder, parse_recipe(other.recipe)).predict(["rain"])[0]["scores"]
    assert found[1]["scores"] == pytest.approx(alone, rel=1e-6)  # one row or two at once: another order of sums


def test_what_mixes_and_what_does_not(tiny_llama: Path, chat_jsonl: Path) -> None:
    run, bf16 = tuned(tiny_llama, chat_jsonl, 1), tuned(tiny_llama, chat_jsonl, 2, train={"precision": "bf16"})
    recipe = parse_recipe(run.recipe)
    assert obstacles(run.folder, recipe) == []
    assert isinstance(open_adapters([adapter(run), adapter(bf16)]), Apart), "one network has one precision"
    low = cast(Mixed, open_adapters([adapter(bf16)]))
    dtypes = {name.split(".")[-3]: p.dtype for name, p in low._policy.network.named_parameters() if "q_proj" in name}
    assert dtypes == {"q_proj": torch.bfloat16, "lora_A": torch.float32, "lora_B": torch.float32}
    config = run.folder / "model" / "adapter_config.json"
    for name, value in (("use_dora", True), ("init_lora_weights", "pissa"), ("bias", "all"), ("peft_type", "IA3")):
        config.write_text(json.dumps({**settings(run.folder), name: value}))
        assert obstacles(run.folder, recipe) == (["IA3"] if name == "peft_type" else [name])
        config.write_text(json.dumps({**settings(run.folder), name: getattr(LoraConfig(), name)}))
    config.write_text(json.dumps({**settings(run.folder), "peft_type": "LORA", "use_rslora": True}))
    assert obstacles(run.folder, recipe) == []


def test_a_head_of_several_modules_does_not_mix() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["query"])
    bert = BertForSequenceClassification(BertConfig(vocab_size=20, **sizes))
    roberta = RobertaForSequenceClassification(RobertaConfig(vocab_size=20, **sizes))
    with quiet():
        assert several._mixes(get_peft_model(bert, lora))
        assert not several._mixes(get_peft_model(roberta, lora))


def test_rows_are_answered_by_the_adapter_that_they_name(tiny_bert: Path, topics_csv: Path, tmp_path: Path) -> None:
    one, other = tuned(tiny_bert, topics_csv, 1), tuned(tiny_bert, topics_csv, 2)
    asked = tmp_path / "asked.jsonl"
    stack = f"{one.id}+{other.id}"
    wanted = [other.id[:6], None, one.id[:6], f"{one.id}+{other.id[:4]}"]
    asked.write_text("".join(json.dumps({"text": "rain is", "adapter": name}) + "\n" for name in wanted))
    found = list(predict(one.id, ["soup"], asked, False, [other.id, stack]))
    everyone = [one.id, other.id, stack]
    expected = [(0, name) for name in everyone] + [(1, other.id)] + [(2, name) for name in everyone]
    assert [(answer["row"], answer["adapter"]) for answer in found] == [*expected, (3, one.id), (4, stack)]
    asked.write_text(json.dumps({"text": "rain", "adapter": "nobody"}) + "\n")
    with pytest.raises(DataError, match=r"asked\.jsonl:1: The row asks for the adapter 'nobody'"):
        list(predict(one.id, [], asked, False, [other.id]))
    asked.write_text(json.dumps({"text": " ", "adapter": one.id}) + "\n")
    with pytest.raises(DataError, match="Row 2 cannot be answered"):
        list(predict(one.id, ["soup"], asked, False, [other.id]))


def test_a_conversation_goes_on_with_another_adapter(tiny_llama: Path, chat_jsonl: Path) -> None:
    one, other = tuned(tiny_llama, chat_jsonl, 1), tuned(tiny_llama, chat_jsonl, 2)
    talk = conversation(one.id, False, [other.id])
    first = talk.say("is there rain here").tuned
    talk.switch(other.id[:5])
    assert talk.adapter == other.id
    beside = conversation(other.id, False, [f"{one.id}+{other.id}", one.id])
    for begun, name in ((one.id[:5], one.id), (f"{one.id}+", f"{one.id}+{other.id}")):
        beside.switch(begun)
        assert beside.adapter == name
    second = talk.say("soup please").tuned
    told = [
        {"role": "user", "content": "is there rain here"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "soup please"},
    ]
    assert second == load_run(other.folder, parse_recipe(other.recipe)).chat(told)
    assert first == load_run(one.folder, parse_recipe(one.recipe)).chat(told[:1])
