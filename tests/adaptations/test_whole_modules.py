"""What trains beside PEFT's methods are whole modules: row heads of several layers, and what is unfrozen by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
)

import trial
from onsa.adaptations.base import Adaptation, PeftAdapter, SoftPrompt
from onsa.models.heads import Head
from onsa.models.load import load
from onsa.models.names import plain
from onsa.optim.optimizers.adamw import AdamW
from onsa.spec import registry
from onsa.spec.errors import RecipeError

HEADS = {"roberta": {"classifier.dense", "classifier.out_proj"}, "distilbert": {"pre_classifier", "classifier"}}
SETTINGS: dict[str, dict[str, Any]] = {"ia3": {"targets": r".*(key|k_lin)", "feedforward": ()}}
PAIRS = [
    (kind, base)
    for kind in registry.kinds("adaptation")
    for base in HEADS
    if issubclass(found := registry.load("adaptation", kind), PeftAdapter)
    and (
        base == "roberta" or not issubclass(found, SoftPrompt)
    )  # which PEFT does not know how to put before DistilBERT
]


def made(base: str, folder: Path) -> Any:
    """A base with a head that it does not have yet."""
    if not folder.exists():
        torch.manual_seed(1)
        if base == "roberta":
            small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
            RobertaModel(RobertaConfig(vocab_size=60, max_position_embeddings=64, **small)).save_pretrained(folder)
        else:
            short = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 64}
            DistilBertModel(DistilBertConfig(vocab_size=60, **short)).save_pretrained(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)


@pytest.mark.parametrize(("kind", "base"), PAIRS)
def test_a_head_of_several_layers_trains_and_is_saved(kind: str, base: str, tiny_bert: Path, tmp_path: Path) -> None:
    network = made(base, tmp_path / "base")
    new = frozenset(f"{layer}.{name}" for layer in HEADS[base] for name in ("weight", "bias"))
    assert new <= {name for name, _ in network.named_parameters()}
    adaptation: Any = registry.load("adaptation", kind)(**SETTINGS.get(kind, {}))
    adapted = adaptation.apply(network, Head.ROWS, new, 4)
    free = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    groups = AdamW(lr=1e-3, lr_new=1e-2).groups(adapted, new, by_block=False)
    fast = {id(p) for group in groups if group["lr"] == 1e-2 for p in group["params"]}
    assert {plain(adapted)[name] for name, p in free.items() if id(p) in fast} == new

    token_RT = torch.randint(5, 60, (4, 9), generator=torch.Generator().manual_seed(3))
    inputs = {"input_ids": token_RT, "attention_mask": torch.ones_like(token_RT)}
    adapted.eval()(**inputs, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    assert [name for name, p in free.items() if p.grad is None] == []
    before = {name: p.detach().clone() for name, p in free.items()}
    torch.optim.AdamW(groups).step()
    assert all(not torch.equal(p, before[name]) for name, p in free.items() if id(p) in fast)

    with torch.no_grad():
        said = adapted(**inputs).logits
        adaptation.save(adapted, AutoTokenizer.from_pretrained(tiny_bert), tmp_path / "model")
        again = adaptation.reload(made(base, tmp_path / "base"), tmp_path / "model").eval()
        assert torch.allclose(said, again(**inputs).logits, atol=1e-6)


@pytest.mark.parametrize("kind", ["lora", "ia3", "prompt"])
@pytest.mark.parametrize("pattern", ["*.query.bias", "*.LayerNorm.weight", "bert.pooler.dense.bias"])
def test_parts_of_modules_are_refused(kind: str, pattern: str, rows: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        trial.opened(rows({"kind": kind, "unfreeze": [pattern]}))
    (problem,) = caught.value.problems
    assert (problem.code, problem.key) == ("unfreeze-partial", "adaptation.unfreeze")
    assert any(part in problem.what for part in ("self.query'", "LayerNorm'", "pooler.dense'"))


@pytest.mark.parametrize("targets", ["all-linear", ["query", "value"]])
def test_a_whole_module_trains_in_place_of_being_adapted(targets: Any, rows: Any) -> None:
    query = "bert.encoder.layer.{}.attention.self.query"
    session = trial.opened(rows({"kind": "lora", "targets": targets, "unfreeze": [query.format(0)]}))
    network = trial.network(session)
    names = plain(network)
    free = {name for name, p in network.named_parameters() if p.requires_grad}
    own = {names[name] for name in free if "lora_" not in name}
    assert own == {f"{module}.{name}" for module in (query.format(0), "classifier") for name in ("weight", "bias")}
    adapted = {name for name in free if "lora_" in name}
    assert any(query.format(1) in name for name in adapted) and not any(query.format(0) in name for name in adapted)


def test_tied_embeddings_stay_tied_beside_lora(talks: Any, tmp_path: Path) -> None:
    prepared = talks({"kind": "lora", "unfreeze": ["embeddings"]})
    session = trial.opened(prepared)
    network = trial.network(session)
    inner, start = network.get_base_model(), network.get_base_model().get_input_embeddings().weight.detach().clone()
    trial.advance(prepared, session, 3)
    embedding_VD = inner.get_input_embeddings().weight
    assert inner.get_output_embeddings().weight is embedding_VD and not torch.equal(embedding_VD, start)

    def said(network: Any) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = network.eval()(input_ids=torch.arange(3, 20)[None]).logits
        return logits

    def fresh(folder: Path) -> Any:
        return load(folder, prepared.recipe.model, prepared.task.head, (), None, 7).network

    adaptation: Adaptation = prepared.adaptation
    tuned = said(network)
    adaptation.save(network, prepared.tokenizer, tmp_path / "model")
    reloaded: Any = adaptation.reload(fresh(prepared.base.folder), tmp_path / "model")
    assert torch.allclose(tuned, said(reloaded), atol=1e-6)
    inner = reloaded.get_base_model()
    assert inner.get_output_embeddings().weight is inner.get_input_embeddings().weight
    folded: Any = adaptation.merge(network)
    assert folded.lm_head.weight is folded.model.embed_tokens.weight
    folded.save_pretrained(tmp_path / "folded")
    prepared.tokenizer.save_pretrained(tmp_path / "folded")
    assert torch.allclose(tuned, said(fresh(tmp_path / "folded")), atol=1e-5)


@pytest.mark.parametrize("kind", ["ia3", "prompt"])
def test_what_would_untie_them_is_refused(kind: str, talks: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        trial.opened(talks({"kind": kind, "unfreeze": ["embeddings"]}))
    (problem,) = caught.value.problems
    assert (problem.code, problem.key) == ("unfreeze-unties", "adaptation.unfreeze") and kind in problem.what
