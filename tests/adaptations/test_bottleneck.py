"""Bottleneck adapters: against a layer written down from Houlsby et al.'s formula, at the places of both variants (of
Pfeiffer et al. the place alone is taken), and on their way to disk and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

import onsa
import trial
from onsa.adaptations.bottleneck import Bottleneck
from onsa.engine.batches import micro_batches
from onsa.evaluate.card import model_card
from onsa.evaluate.document import read_document
from onsa.models.heads import Head
from onsa.models.load import load
from onsa.programs.prepare import Prepared
from onsa.spec.errors import ModelError, RecipeError
from onsa.spec.recipe import parse_recipe

HEADS, LAYERS = 2, 2  # of the tiny BERT
ACTIVATIONS = {"gelu": functional.gelu, "relu": functional.relu, "silu": functional.silu}
Weights = Mapping[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)


def adapted(w: Weights, name: str, h: Tensor, f: Any) -> Tensor:
    """Houlsby et al. 2019, figure 2: down, nonlinearity, up, and the skip; nothing where there is no adapter."""
    if f"{name}.bottleneck.down.weight" not in w:
        return h
    return h + linear(w, f"{name}.bottleneck.up", f(linear(w, f"{name}.bottleneck.down", h)))


def bert(w: Weights, tokens: list[int], f: Any) -> Tensor:
    """The logits of one row, by hand: BERT for classification with an adapter wherever there are weights for one."""
    e = "bert.embeddings."
    x = w[f"{e}word_embeddings.weight"][tokens] + w[f"{e}position_embeddings.weight"][: len(tokens)]
    x = norm(w, f"{e}LayerNorm", x + w[f"{e}token_type_embeddings.weight"][0])
    for layer in range(LAYERS):
        at = f"bert.encoder.layer.{layer}."
        q, k, v = (linear(w, f"{at}attention.self.{part}", x) for part in ("query", "key", "value"))
        mixed = []
        for a, b, c in zip(q.chunk(HEADS, -1), k.chunk(HEADS, -1), v.chunk(HEADS, -1), strict=True):
            mixed.append(torch.softmax(a @ b.T / a.shape[-1] ** 0.5, -1) @ c)
        out = f"{at}attention.output."
        x = norm(w, f"{out}LayerNorm", x + adapted(w, f"{out}dense", linear(w, f"{out}dense", torch.cat(mixed, -1)), f))
        h = linear(w, f"{at}output.dense", functional.gelu(linear(w, f"{at}intermediate.dense", x)))
        x = norm(w, f"{at}output.LayerNorm", x + adapted(w, f"{at}output.dense", h, f))
    return linear(w, "classifier", torch.tanh(linear(w, "bert.pooler.dense", x[0])))


def stirred(session: Any) -> None:
    """Move the adapters away from identity, where most of their gradients are zero."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, p in trial.network(session).named_parameters():
            if ".bottleneck." in name:
                p.normal_(0, 0.3)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize(("variant", "adapters"), [("houlsby", 4), ("pfeiffer", 2)])
def test_loss_and_gradient_equal_houlsbys_formula_at_the_variants_places(
    variant: str, adapters: int, activation: str, rows: Any
) -> None:
    prepared = rows({"kind": "bottleneck", "variant": variant, "activation": activation, "reduction": 8})
    session: Any = trial.opened(prepared)
    stirred(session)
    examples = prepared.examples["train"][:8]
    loss = session.forward_backward(micro_batches(examples, prepared.plan, 1), trial.objective(prepared))["loss"]
    names = [name for name, p in trial.network(session).named_parameters() if p.requires_grad]
    assert len([name for name in names if name.endswith("bottleneck.up.weight")]) == adapters
    mine = {name: session.trainable[name].grad / 8 for name in names}

    weights = {name: p.detach().clone() for name, p in trial.network(session).named_parameters()}
    for name in names:
        weights[name].requires_grad_(True)
    logits = torch.stack([bert(weights, e.token_T.tolist(), ACTIVATIONS[activation]) for e in examples])
    reference = functional.cross_entropy(logits, torch.tensor([e.target for e in examples]))
    theirs = torch.autograd.grad(reference, [weights[name] for name in names])
    assert loss == pytest.approx(float(reference.detach()), rel=1e-5)
    assert weights["bert.encoder.layer.0.output.dense.bottleneck.down.weight"].shape == (32 // 8, 32)
    for name, gradient in zip(names, theirs, strict=True):
        assert float(gradient.norm()) > 0 and trial.apart(gradient, mine[name]) <= 1e-5, name


def test_dropout_acts_inside_and_in_training_only(rows: Any) -> None:
    session = trial.opened(rows({"kind": "bottleneck", "dropout": 0.5}))
    stirred(session)
    adapter = trial.network(session).bert.encoder.layer[0].output.dense.bottleneck.train()
    h = torch.randn(3, 32)
    plain = adapter.eval()(h)
    assert torch.equal(plain, adapter(h)) and not torch.equal(adapter.train()(h), plain)
    assert torch.linalg.matrix_rank(adapter(h) - h - adapter.up.bias) <= adapter.up.in_features


ARCHITECTURES = {
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 2}, 4),
    "T5ForConditionalGeneration": ("T5Config", {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2}, 10),
    "MixtralForCausalLM": ("MixtralConfig", {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}, 4),
}


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_other_architectures_take_adapters_and_start_as_themselves(model: str) -> None:
    config, fields, count = ARCHITECTURES[model]
    torch.manual_seed(0)
    made = getattr(transformers, config)(**fields, vocab_size=60, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    network = getattr(transformers, model)(made).eval()
    more = {"decoder_input_ids": torch.tensor([[3, 4]])} if "T5" in model else {}
    before = network(input_ids=torch.tensor([[3, 4, 5]]), **more).logits.detach()
    Bottleneck().apply(network, Head.TOKENS, frozenset(), 6)
    after = network(input_ids=torch.tensor([[3, 4, 5]]), **more).logits
    assert trial.apart(before, after.detach()) <= 1e-6
    ups = [p for name, p in network.named_parameters() if name.endswith("bottleneck.up.weight")]
    assert len(ups) == count
    after.square().sum().backward()
    assert all(float(p.grad.norm()) > 0 for p in ups), "each adapter lies in the stream's way"


@pytest.mark.parametrize("model", ["XLNetLMHeadModel", "MambaForCausalLM"])
def test_blocks_without_both_parts_are_refused(model: str) -> None:
    fields = {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64} if "XLNet" in model else {"hidden_size": 32}
    config = getattr(transformers, model.replace("LMHeadModel", "Config").replace("ForCausalLM", "Config"))
    network = getattr(transformers, model)(config(**fields, vocab_size=60))
    with pytest.raises(RecipeError) as caught:
        Bottleneck().apply(network, Head.TOKENS, frozenset(), 6)
    assert [problem.code for problem in caught.value.problems] == ["places-missing"]


@pytest.fixture
def saved(rows: Any, tmp_path: Path) -> tuple[Prepared, Path, Any]:
    prepared = rows({"kind": "bottleneck", "variant": "pfeiffer", "reduction": 4, "freeze": ["*.layer.0.*"]})
    session = trial.opened(prepared)
    trial.advance(prepared, session, 3)
    folder = tmp_path / "model"
    prepared.adaptation.save(trial.network(session), prepared.tokenizer, folder)
    return prepared, folder, trial.network(session)


def fresh(prepared: Prepared) -> Any:
    task = prepared.task
    return load(prepared.base.folder, prepared.recipe.model, task.head, task.outputs, task.hf_problem, 99).network


def test_the_files_hold_the_adapters_the_head_and_the_settings(saved: tuple[Prepared, Path, Any]) -> None:
    prepared, folder, network = saved
    settings = json.loads((folder / "bottleneck.json").read_text())
    assert settings == {
        "format": 1,
        "kind": "bottleneck",
        "variant": "pfeiffer",
        "reduction": 4,
        "activation": "gelu",
        "dropout": 0.0,
    }
    held = load_file(folder / "bottleneck.safetensors")
    assert {name.split(".")[0] for name in held} == {"bert", "classifier"}
    assert all(".bottleneck." in name for name in held if name.startswith("bert"))
    reloaded = Bottleneck().reload(fresh(prepared), folder)  # the files say what is built, not the caller
    assert all(torch.equal(p, network.get_parameter(name)) for name, p in reloaded.named_parameters())


def test_files_that_do_not_fit_are_refused(saved: tuple[Prepared, Path, Any], tmp_path: Path) -> None:
    prepared, folder, _ = saved
    held, config = load_file(folder / "bottleneck.safetensors"), (folder / "bottleneck.json").read_text()
    gone = dict(list(held.items())[1:])
    strange = {**held, "bert.encoder.layer.7.output.dense.bottleneck.up.bias": torch.zeros(32)}
    wide = {name: torch.zeros(*value.shape, 2) for name, value in held.items()}
    for tensors, lacking in ((gone, next(iter(sorted(set(held) - set(gone))))), (strange, "layer.7"), (wide, "bert.")):
        save_file(tensors, folder / "bottleneck.safetensors")
        assert lacking in said(prepared, folder, "adapter-unfit")
    save_file(held, folder / "bottleneck.safetensors")
    for written, code in (
        (config.replace('"format": 1', '"format": 2'), "adapter-format"),
        (config.replace('"kind": "bottleneck"', '"kind": "lora"'), "adapter-format"),
        (config.replace('"pfeiffer"', '"other"'), "adapter-unreadable"),
        ("[]", "adapter-unreadable"),
        ("{", "adapter-unreadable"),
    ):
        (folder / "bottleneck.json").write_text(written)
        said(prepared, folder, code)
    (folder / "bottleneck.json").write_text(config)
    (folder / "bottleneck.safetensors").write_bytes(b"no tensors")
    said(prepared, folder, "adapter-unreadable")
    said(prepared, tmp_path / "nowhere", "adapter-unreadable")


def said(prepared: Prepared, folder: Path, code: str) -> str:
    with pytest.raises(ModelError) as caught:
        Bottleneck().reload(fresh(prepared), folder)
    assert [problem.code for problem in caught.value.problems] == [code]
    return str(caught.value)


def test_a_run_s_card_loads_it_through_onsa(tiny_bert: Path, topics_csv: Path) -> None:
    recipe = {
        "model": str(tiny_bert),
        "data": str(topics_csv),
        "adaptation": "bottleneck",
        "engine": trial.ENGINE,
        "train": trial.TRAIN,
        "evaluate": {"bootstrap": 100, "baseline": False},
    }
    run = onsa.run(parse_recipe(recipe))
    document = read_document(run.folder / "metrics.json")
    card = (run.folder / "model" / "README.md").read_text()
    assert card == model_card(document) and "library_name: onsa" in card and "AutoModel" not in card
    answers: list[Any] = []
    code = card.partition("```python\n")[2].partition("```")[0].replace("…", "tell me about the storm")
    exec(code, {"print": answers.append})  # the card's own code
    assert document["model"]["saved_as"] == "onsa" and answers[0][0]["label"] in ("weather", "food", "music")
