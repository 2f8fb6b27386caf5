"""Freezing by name, under every kind of adaptation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import trial
from onsa.models.load import load, quiet
from onsa.programs.prepare import Prepared
from onsa.spec.errors import RecipeError

EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
ADAPTERS = ["lora", "bottleneck"]


def moved(prepared: Prepared, steps: int = 3) -> set[str]:
    """The names of what training changed; everything else must keep its very values."""
    session = trial.opened(prepared)
    before = {name: p.detach().clone() for name, p in trial.network(session).named_parameters()}
    trial.advance(prepared, session, steps)
    return {name for name, p in trial.network(session).named_parameters() if not torch.equal(p, before[name])}


def test_what_is_frozen_does_not_move(rows: Any) -> None:
    names = moved(rows({"kind": "full", "freeze": ["bert.encoder.layer.0", "embeddings", "*.LayerNorm.*"]}))
    assert names and not [n for n in names if ".layer.0." in n or n == EMBEDDINGS or ".LayerNorm." in n]
    assert "bert.embeddings.position_embeddings.weight" in names, "the alias names the input embeddings alone"


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_of_a_block_are_frozen_with_it(kind: str, rows: Any) -> None:
    names = moved(rows({"kind": kind, "freeze": ["*.layer.0.*"]}))
    assert [n for n in names if ".layer.1." in n] and not [n for n in names if ".layer.0." in n]


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_head_is_frozen_by_its_own_name_inside_of_a_wrapper(kind: str, rows: Any) -> None:
    names = moved(rows({"kind": kind, "freeze": ["classifier.weight"]}))
    assert [n for n in names if "classifier" in n and n.endswith("bias")]
    assert not [n for n in names if "classifier" in n and n.endswith("weight")]


@pytest.mark.parametrize("kind", ["lora", "bottleneck", "bitfit", "layer-norm", "head"])
def test_what_is_unfrozen_trains_and_survives_saving(kind: str, rows: Any, tmp_path: Path) -> None:
    prepared = rows({"kind": kind, "unfreeze": ["embeddings", "bert.pooler"]})
    session = trial.opened(prepared)
    free = trial.trained(session)
    wanted = {EMBEDDINGS, "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert all(any(stem(name) in found for found in free) for name in wanted)
    assert not [name for name in free if "position_embeddings" in name]
    trial.advance(prepared, session, 3)
    assert all(not torch.equal(value, free[name]) for name, value in trial.trained(session).items() if stemmed(name))
    prepared.adaptation.save(trial.network(session), prepared.tokenizer, tmp_path / "model")
    task, folder = prepared.task, prepared.base.folder if prepared.adaptation.adapter else tmp_path / "model"
    again = load(folder, prepared.recipe.model, task.head, task.outputs, task.hf_problem, 99)
    reloaded = prepared.adaptation.reload(again.network, tmp_path / "model")
    values = dict(reloaded.named_parameters())
    assert all(torch.equal(value, values[name]) for name, value in trial.trained(session).items())


def stem(name: str) -> str:
    return name.rpartition(".")[0]


def stemmed(name: str) -> bool:
    return "word_embeddings" in name or "pooler" in name


def test_tied_embeddings_are_one_parameter(talks: Any) -> None:
    """Frozen, they are frozen as the output layer too; a kind that unties them leaves the output layer free."""
    names = moved(talks({"kind": "full", "freeze": ["embeddings"]}))
    assert names and "model.embed_tokens.weight" not in names and "lm_head.weight" not in names
    names = moved(talks({"kind": "gradual-unfreeze", "share": 0.3, "freeze": ["embeddings"]}), 6)
    assert "lm_head.weight" in names and "model.embed_tokens.weight" not in names
    names = moved(talks({"kind": "head", "freeze": ["lm_head"], "unfreeze": ["model.norm"]}))
    assert names == {"model.norm.weight"}


def test_tied_embeddings_that_train_beside_an_adapter_stay_tied(talks: Any, tmp_path: Path) -> None:
    prepared = talks({"kind": "bottleneck", "unfreeze": ["embeddings"]})
    session = trial.opened(prepared)
    trial.advance(prepared, session, 3)
    network = trial.network(session)
    assert network.lm_head.weight is network.model.embed_tokens.weight
    prepared.adaptation.save(network, prepared.tokenizer, tmp_path / "model")
    again = load(prepared.base.folder, prepared.recipe.model, prepared.task.head, (), None, 7).network
    reloaded: Any = prepared.adaptation.reload(again, tmp_path / "model")
    assert torch.equal(reloaded.lm_head.weight, network.model.embed_tokens.weight)


@pytest.mark.parametrize(
    ("adaptation", "code", "key"),
    [
        ({"kind": "full", "freeze": ["*.layre.0.*"]}, "pattern-unmatched", "adaptation.freeze"),
        ({"kind": "head", "unfreeze": ["pooler"]}, "pattern-unmatched", "adaptation.unfreeze"),
        ({"kind": "full", "unfreeze": ["embeddings"]}, "unfreeze-idle", "adaptation.unfreeze"),
        ({"kind": "lora", "unfreeze": ["classifier"]}, "unfreeze-idle", "adaptation.unfreeze"),
        ({"kind": "bitfit", "unfreeze": ["*.bias"]}, "unfreeze-idle", "adaptation.unfreeze"),
        ({"kind": "bottleneck", "freeze": ["embeddings"]}, "freeze-idle", "adaptation.freeze"),
        ({"kind": "head", "freeze": ["*.layer.0.*"]}, "freeze-idle", "adaptation.freeze"),
        ({"kind": "head", "freeze": ["classifier"]}, "nothing-trains", "adaptation.freeze"),
        ({"kind": "full", "freeze": ["*"]}, "nothing-trains", "adaptation.freeze"),
    ],
)
def test_what_changes_nothing_or_leaves_nothing_is_refused(adaptation: Any, code: str, key: str, rows: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        trial.opened(rows(adaptation))
    assert [(problem.code, problem.key) for problem in caught.value.problems] == [(code, key)]


def test_a_frozen_base_is_saved_as_it_was(rows: Any, tiny_bert: Path, tmp_path: Path) -> None:
    prepared = rows({"kind": "full", "freeze": ["bert"]})
    session = trial.opened(prepared)
    trial.advance(prepared, session, 3)
    prepared.adaptation.save(trial.network(session), prepared.tokenizer, tmp_path / "model")
    with quiet():
        base = AutoModelForSequenceClassification.from_pretrained(tiny_bert).bert.state_dict()
        tuned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").bert.state_dict()
    assert all(torch.equal(value, tuned[name]) for name, value in base.items())
