"""Every tuner that PEFT lists: where PEFT itself can train it on a base, so can Onsa; where not, Onsa says so.

What is expected is found by trying PEFT, not written down.
"""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from onsa.adaptations.peft import Peft
from onsa.models.batch import Batch
from onsa.models.heads import Head
from onsa.models.policy import Policy
from onsa.spec.errors import ModelError, RecipeError

TUNERS = {kind.value.lower().replace("_", "-"): kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
# What a tuner requires, and what its defaults need to fit matrices 32 wide.
FITTING: dict[str, dict[str, Any]] = {
    "adaption-prompt": {"adapter_len": 4, "adapter_layers": 2},
    "c3a": {"block_size": 16},
    "fourierft": {"n_frequency": 100},
    "miss": {"r": 8},
    "psoft": {"r": 8},
    "road": {"group_size": 8},
    "shira": {"r": 4},
    "trainable-tokens": {"token_indices": [5, 6, 7]},
    "vblora": {"vector_length": 16, "num_vectors": 16},
    "waveft": {"n_frequency": 100},
}
TOTAL = 4
every_tuner = pytest.mark.parametrize("tuner", sorted(TUNERS))
on_every_head = pytest.mark.parametrize("head", list(Head), ids=lambda head: head.value)


def base(head: Head, folder: Path) -> Any:
    torch.manual_seed(3)
    if head is Head.TOKENS:
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()


def batch(head: Head) -> Batch:
    dice = torch.Generator().manual_seed(5)
    length_R = (9, 5, 7)
    token_N = torch.randint(5, 60, (sum(length_R),), generator=dice)
    if head is Head.ROWS:
        return Batch(token_N, length_R, None, torch.tensor([0, 1, 2]), torch.ones(3), (0, 1, 2))
    places = torch.tensor([3, 4, 10, 16])
    return Batch(token_N, length_R, places, token_N[places + 1], torch.ones(4), (0, 1, 2))


def settings(tuner: str, network: Any) -> dict[str, Any]:
    """What plain PEFT is given: what is required, and nothing that it finds itself."""
    of = PEFT_TYPE_TO_CONFIG_MAPPING[TUNERS[tuner]]
    known = {field.name for field in fields(of)}
    required = {"total_step": TOTAL, "num_virtual_tokens": 20, "encoder_hidden_size": 32}
    given = {name: value for name, value in required.items() if name in known} | FITTING.get(tuner, {})
    usual = getattr(PEFT_TYPE_TO_TUNER_MAPPING[TUNERS[tuner]], "target_module_mapping", None)
    if usual and network.config.model_type not in usual and tuner != "ln-tuning":
        given["target_modules"] = "all-linear"
    return given


def trouble(tuner: str, head: Head, folder: Path) -> str | None:
    """Why plain PEFT cannot train a tuner on a base; ``None`` if it can."""
    network = base(head, folder)
    token_RT = torch.arange(6, 18).view(2, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            task = TaskType.SEQ_CLS if head is Head.ROWS else TaskType.CAUSAL_LM
            config = PEFT_TYPE_TO_CONFIG_MAPPING[TUNERS[tuner]](**settings(tuner, network), task_type=task)
            plain = get_peft_model(network, config)
            plain(input_ids=token_RT, attention_mask=torch.ones_like(token_RT)).logits.square().mean().backward()
        except Exception as error:
            return repr(error)
    trained = {name for name, p in plain.named_parameters() if p.requires_grad and p.grad is not None}
    if head is Head.ROWS and not any("classifier" in name for name in trained):
        return "the new head is left as it was"
    return None if trained else "nothing trains"


def said(network: Any, head: Head) -> Tensor:
    network.eval()
    policy = Policy(network, 0, torch.device("cpu"))
    return policy.classes(batch(head)) if head is Head.ROWS else policy.logprobs(batch(head))


@every_tuner
@on_every_head
def test_what_peft_can_train_onsa_can(
    tuner: str, head: Head, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = tiny_bert if head is Head.ROWS else tiny_llama
    kind = Peft(tuner=tuner, settings=FITTING.get(tuner, {}))
    new = frozenset({"classifier.weight", "classifier.bias"} if head is Head.ROWS else ())
    reason = trouble(tuner, head, folder)
    if reason is not None:
        with pytest.raises(RecipeError):
            kind.apply(base(head, folder), head, new, TOTAL)
        return
    network = kind.apply(base(head, folder), head, new, TOTAL)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    before = said(network, head).detach()
    for step in range(2):
        kind.before_step(network, step, TOTAL)
        kind.train_mode(network)
        policy = Policy(network, 0, torch.device("cpu"))
        asked = batch(head)
        loss = -policy.logprobs(asked).mean() if head is Head.TOKENS else policy.classes(asked).square().mean()
        penalty = kind.penalty(network)
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        kind.after_step(network, step, TOTAL)
        optimizer.zero_grad()
    after = said(network, head).detach()
    assert not torch.equal(before, after)
    if head is Head.TOKENS:
        short = Policy(network, 0, torch.device("cpu"), logits="supervised")
        assert torch.allclose(short.logprobs(batch(head)), after, atol=1e-5), "nothing acts outside of the layers"
    kind.save(network, AutoTokenizer.from_pretrained(folder), tmp_path)
    again = kind.reload(base(head, folder), tmp_path)
    assert torch.allclose(said(again, head), after, atol=1e-5)
    try:
        merged = kind.merge(network)
    except ModelError:
        return  # not every tuner can be folded into the base
    assert torch.allclose(said(merged, head), after, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "code", "key"),
    [
        ({"tuner": "verra"}, "value-unknown", "adaptation.tuner"),
        ({"tuner": "vera", "settings": {"rank": 4}}, "key-unknown", "adaptation.settings.rank"),
        ({"tuner": "vera", "settings": {"r": "four"}}, "value-refused", "adaptation.settings.r"),
        ({"tuner": "vera", "settings": {"task_type": "SEQ_CLS"}}, "key-unknown", "adaptation.settings.task_type"),
        (
            {"tuner": "adalora", "settings": {"init_r": 4, "target_r": 4}},
            "value-not-below",
            "adaptation.settings.target_r",
        ),
        ({"tuner": "oft", "settings": {"r": 8, "oft_block_size": 8}}, "peft-refuses", "adaptation"),
        ({"tuner": "vera", "settings": {"target_modules": ["nonsense"]}}, "peft-refuses", "adaptation"),
        (
            {"tuner": "lora", "settings": {"init_lora_weights": "eva"}},
            "peft-setting-idle",
            "adaptation.settings.init_lora_weights",
        ),
        (
            {"tuner": "shadow", "settings": {"auxiliary_loss_weight": 1.0}},
            "peft-setting-idle",
            "adaptation.settings.auxiliary_loss_weight",
        ),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], code: str, key: str, tiny_llama: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        Peft(**given).apply(base(Head.TOKENS, tiny_llama), Head.TOKENS, frozenset(), TOTAL)
    (problem,) = caught.value.problems
    assert (problem.code, problem.key) == (code, key)
    if code == "value-unknown":
        assert problem.values["near"] == "vera"
    if problem.values.get("value") == "task_type":
        assert "target_modules" in problem.values["choices"] and "task_type" not in problem.values["choices"].split(
            ", "
        )


def test_any_spelling_of_a_tuner_will_do(tiny_llama: Path) -> None:
    for tuner in ("LN_TUNING", "ln_tuning", "ln-tuning"):
        network = Peft(tuner=tuner).apply(base(Head.TOKENS, tiny_llama), Head.TOKENS, frozenset(), TOTAL)
        assert all("norm" in name for name, p in network.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("tuner", "settings"),
    [
        ("adalora", {"init_r": 6, "target_r": 2, "deltaT": 2, "tfinal": 1}),
        (
            "adamss",
            {"use_asa": True, "asa_target_subspaces": 3, "init_warmup": 1, "final_warmup": 6, "mask_interval": 2},
        ),
    ],
)
@pytest.mark.parametrize("stop", [4, 5, 7])
def test_ranks_are_spread_as_peft_does_it(tuner: str, settings: dict[str, Any], stop: int, tiny_llama: Path) -> None:
    """Eight steps beside plain PEFT, with a stop and a restart in the middle."""
    kind, total = Peft(tuner=tuner, settings=settings), 8
    torch.manual_seed(1)
    ours = kind.apply(base(Head.TOKENS, tiny_llama), Head.TOKENS, frozenset(), total)
    torch.manual_seed(1)
    restarted = kind.apply(base(Head.TOKENS, tiny_llama), Head.TOKENS, frozenset(), total)
    torch.manual_seed(1)
    given = settings | ({"total_step": total} if tuner == "adalora" else {})
    config = PEFT_TYPE_TO_CONFIG_MAPPING[TUNERS[tuner]](**given, task_type=TaskType.CAUSAL_LM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain: Any = get_peft_model(base(Head.TOKENS, tiny_llama), config).eval()
    asked = batch(Head.TOKENS)
    steps = {name: torch.optim.SGD(net.parameters(), lr=0.5) for name, net in (("ours", ours), ("plain", plain))}
    for step in range(total):
        if step == stop:
            state = {name: value.clone() for name, value in kind.state(ours).items()}
            with torch.no_grad():
                for (_, p), (_, q) in zip(restarted.named_parameters(), ours.named_parameters(), strict=True):
                    p.copy_(q)
            kind.restore(restarted, state)
            ours, steps["ours"] = restarted, torch.optim.SGD(restarted.parameters(), lr=0.5)
        ours.eval()
        loss = -Policy(ours, 0, torch.device("cpu")).logprobs(asked).mean()
        penalty = kind.penalty(ours)
        whole = loss if penalty is None else loss + penalty
        whole.backward()
        steps["ours"].step()
        kind.after_step(ours, step, total)
        steps["ours"].zero_grad()
        token_N, place_M = asked.token_N, asked.predict_M
        label_RT, token_RT, mask_RT = (
            torch.full((3, 9), -100),
            torch.zeros((3, 9), dtype=torch.long),
            torch.zeros((3, 9)),
        )
        for row, (at, n) in enumerate(((0, 9), (9, 5), (14, 7))):
            token_RT[row, :n], mask_RT[row, :n] = token_N[at : at + n], 1
            for place in place_M.tolist() if place_M is not None else ():
                if at <= place < at + n:
                    label_RT[row, place - at + 1] = token_N[place + 1]
        theirs = plain(input_ids=token_RT, attention_mask=mask_RT, labels=label_RT).loss
        theirs.backward()
        steps["plain"].step()
        plain.base_model.update_and_allocate(step + 1)
        steps["plain"].zero_grad()
        assert theirs.item() == pytest.approx(whole.item(), rel=1e-5)
    mine, other = (dict(net.named_parameters()) for net in (ours, plain))
    assert all(torch.allclose(p, other[name], atol=1e-6) for name, p in mine.items())
    assert {n for n, p in mine.items() if p.requires_grad} == {n for n, p in other.items() if p.requires_grad}
    switched_off = (
        [n for n, p in mine.items() if "lora_E" in n and (p == 0).any()]
        if tuner == "adalora"
        else [n for n, p in mine.items() if "adamss_" in n and not p.requires_grad]
    )
    assert switched_off, "something has been let go of"
