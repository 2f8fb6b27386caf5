"""What every optimizer keeps: its library's own steps, vectors free of decay, a rate of its own for what is new, and a
state that outlives the process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import bitsandbytes
import pytest
import schedulefree
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForSequenceClassification

import tiny
import trial
from onsa.accel.fused_optimizer import FUSED
from onsa.optim.optimizers.base import Optimizer
from onsa.spec import registry

every_kind = pytest.mark.parametrize("kind", list(registry.kinds("optimizer")))
NEW = frozenset({"score.weight"})
Groups = list[dict[str, Any]]
Theirs = list[torch.optim.Optimizer]


def averaging(groups: Groups) -> Theirs:
    optimizer = schedulefree.AdamWScheduleFree(groups, betas=(0.9, 0.999), eps=1e-8, foreach=False)
    optimizer.train()
    return [optimizer]


def orthogonal(groups: Groups) -> Theirs:
    hidden = torch.optim.Muon(groups[:1], momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw")
    return [hidden, torch.optim.AdamW(groups[1:], betas=(0.9, 0.999), eps=1e-8, foreach=False)]


# Each kind's counterpart in its library, with the defaults as they are documented here; groups are the matrices of the
# blocks, the embeddings, the vectors and what is new.
TORCHS: dict[str, Callable[[Groups], Theirs]] = {
    "adafactor": lambda groups: [torch.optim.Adafactor(groups, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0)],
    "adamw": lambda groups: [torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, foreach=False)],
    "adamw-8bit": lambda groups: [bitsandbytes.optim.AdamW8bit(groups, betas=(0.9, 0.999), eps=1e-8)],
    "lion": lambda groups: [bitsandbytes.optim.Lion32bit(groups, betas=(0.9, 0.99))],
    "muon": orthogonal,
    "schedule-free": averaging,
    "sgd": lambda groups: [torch.optim.SGD(groups, momentum=0.9)],
}


def toy() -> Any:
    """A Llama of two blocks, with a row head that the base did not have."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForSequenceClassification(LlamaConfig(vocab_size=20, pad_token_id=0, num_labels=1, **sizes))


def loss(network: Any) -> Any:
    token_RT = torch.arange(1, 19).reshape(6, 3)
    return (network(input_ids=token_RT).logits[:, 0] - token_RT.float().mean(1) / 10).square().sum()


def built(kind: str, network: nn.Module, fused: bool = False, **settings: Any) -> torch.optim.Optimizer:
    values = {"lr": 1e-3, "lr_new": 1e-2, "weight_decay": 0.1, **settings}
    found = cast(Optimizer, registry.load("optimizer", kind).model_validate(values))
    return found.build(found.groups(network, NEW, by_block=False), fused)


def walk(network: nn.Module, *optimizers: torch.optim.Optimizer, steps: int = 5) -> dict[str, torch.Tensor]:
    for _ in range(steps):
        network.zero_grad()
        loss(network).backward()
        for optimizer in optimizers:
            optimizer.step()
    return {name: p.detach().clone() for name, p in network.named_parameters()}


@every_kind
def test_steps_are_the_librarys_own(kind: str) -> None:
    assert kind in TORCHS, "write the library's counterpart here"
    mine, other, start = toy(), toy(), dict(toy().named_parameters())
    found = walk(mine, built(kind, mine))
    matrices = [p for name, p in other.model.layers.named_parameters() if p.ndim == 2]
    vectors = [p for p in other.parameters() if p.ndim == 1]
    groups: Groups = [
        {"params": matrices, "lr": 1e-3, "weight_decay": 0.1},
        {"params": [other.model.embed_tokens.weight], "lr": 1e-3, "weight_decay": 0.1},
        {"params": vectors, "lr": 1e-3, "weight_decay": 0.0},
        {"params": [other.score.weight], "lr": 1e-2, "weight_decay": 0.1},
    ]
    wanted = walk(other, *TORCHS[kind](groups))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)
        assert not torch.equal(value, start[name])


@every_kind
def test_vectors_do_not_decay(kind: str) -> None:
    network = toy()
    decayed = {id(p) for g in built(kind, network).param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(p) for p in network.parameters() if p.ndim == 2}


@every_kind
def test_what_is_new_has_a_rate_of_its_own(kind: str) -> None:
    def rates(**settings: Any) -> dict[str, float]:
        network = toy()
        names = {id(p): name for name, p in network.named_parameters()}
        groups = built(kind, network, **settings).param_groups
        assert all(group["lr"] == group["base_lr"] for group in groups)
        return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}

    named = {name for name, _ in toy().named_parameters()}
    assert rates() == {name: 1e-2 if name in NEW else 1e-3 for name in named}
    assert rates(lr_new=None) == dict.fromkeys(named, 1e-3)


@every_kind
def test_what_is_frozen_is_left_out(kind: str) -> None:
    network = toy()
    network.model.layers.requires_grad_(False)
    held = {id(p) for group in built(kind, network).param_groups for p in group["params"]}
    assert held == {id(p) for p in network.parameters() if p.requires_grad}


@every_kind
def test_the_fused_step_is_the_same_step(kind: str) -> None:
    one, two = toy(), toy()
    plain, fused = walk(one, built(kind, one)), walk(two, built(kind, two, fused=True))
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-5, atol=1e-7)
    assert kind in FUSED or all(torch.equal(fused[name], value) for name, value in plain.items())


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> tuple[Path, Path]:
    """A base whose matrices have the 4096 values from which 8-bit moments begin, and rows for it."""
    folder = tmp_path_factory.mktemp("wide")
    shutil.copytree(tiny_bert, folder / "bert")
    config = BertConfig.from_pretrained(tiny_bert)
    config.hidden_size, config.intermediate_size = 64, 128
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder / "bert")
    return folder / "bert", tiny.write_csv(folder / "topics.csv")


@every_kind
def test_resuming_gives_the_same_bytes(kind: str, wide: tuple[Path, Path], tmp_path: Path) -> None:
    prepared = trial.ready(*wide, optimizer=kind)
    whole, first, second = (trial.opened(prepared) for _ in range(3))
    straight, _ = trial.advance(prepared, whole, 6)
    half, at = trial.advance(prepared, first, 3)
    first.evaluate(prepared.examples["validation"], prepared.task)  # which the straight run does not do
    first.save(tmp_path)
    second.restore(tmp_path)
    rest, _ = trial.advance(prepared, second, 3, at)
    assert [*half, *rest] == straight and len(straight) == 6
    ends = trial.trained(second)
    assert all(torch.equal(value, ends[name]) for name, value in trial.trained(whole).items())
    answers = [session.evaluate(prepared.examples["validation"], prepared.task).loss_R for session in (whole, second)]
    assert (answers[0] == answers[1]).all()
    third = trial.opened(prepared)
    third.restore(tmp_path, optimizer=False)
    losses = [session.evaluate(prepared.examples["validation"], prepared.task).loss_R for session in (first, third)]
    assert (losses[0] == losses[1]).all(), "what is deployed is what was measured"
    whole.restore(tmp_path, optimizer=False)
    again = whole.evaluate(prepared.examples["validation"], prepared.task).loss_R
    assert (losses[0] == again).all(), "nothing is left of the later steps"


@every_kind
def test_the_state_is_as_large_as_said(kind: str, wide: tuple[Path, Path]) -> None:
    """Bytes beside each value, which the forecasts of memory and disk count; small tensors take a little more."""
    prepared = trial.ready(*wide, optimizer=kind)
    session: Any = trial.opened(prepared)
    trial.advance(prepared, session, 1)
    values = sum(p.numel() for p in session.trainable.values())
    state = [v for one in session.optimizer.state.values() for name, v in one.items() if "qmap" not in name]
    held = sum(v.numel() * v.element_size() for v in state if isinstance(v, torch.Tensor))
    held += sum(v.numel() * v.element_size() for v in session._deployed().values())
    assert held / values <= cast(Any, prepared.recipe.optimizer).state_bytes + 1
    assert held / values > cast(Any, prepared.recipe.optimizer).state_bytes / 2
