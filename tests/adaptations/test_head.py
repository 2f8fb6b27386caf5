"""Feature extraction: on a row head it is logistic regression on the base's features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from transformers import AutoModelForCausalLM

import trial
from onsa.engine.sessions.base import Session
from onsa.models.batch import Example, collate
from onsa.programs.prepare import Prepared

KEPT = 0.03  # share of the largest spread from which on a direction of the features counts
STILL = {"kind": "adamw", "lr": 0.05, "lr_new": 0.05, "weight_decay": 0.0}


def noisy(prepared: Prepared) -> list[Example]:
    """Each row with its label twice and with another one once: no line parts them, and the best loss is finite."""
    examples = prepared.examples["train"]
    return [replace(one, target=(one.target + more) % 3) for one in examples for more in (0, 0, 1)]


def features(session: Session, examples: list[Example]) -> np.ndarray[Any, Any]:
    """What the head reads."""
    seen: list[torch.Tensor] = []
    network = trial.network(session)
    handle = network.classifier.register_forward_hook(lambda module, inputs, result: seen.append(inputs[0].detach()))
    network.eval()
    session.models.policy.classes(collate(examples))
    handle.remove()
    return seen[0].double().numpy()


def test_the_head_learns_what_logistic_regression_learns(rows: Any) -> None:
    prepared = rows("head", optimizer=STILL, schedule="constant", train={"max_steps": 300})
    session: Any = trial.opened(prepared)
    examples = noisy(prepared)
    target = [example.target for example in examples]
    given = features(session, examples)
    # The tiny BERT's features hardly differ; their leading directions, whitened, are what the head and its judge see.
    mean, (_, spread, turn) = given.mean(0), np.linalg.svd(given - given.mean(0), full_matrices=False)
    whiten = (turn.T / spread) * len(given) ** 0.5 * (spread > KEPT * spread[0])
    shift, scale = torch.tensor(mean).float(), torch.tensor(whiten).float()
    trial.network(session).classifier.register_forward_pre_hook(lambda module, inputs: ((inputs[0] - shift) @ scale,))
    given = (given - mean) @ whiten
    reference = LogisticRegression(C=np.inf, max_iter=1000, tol=1e-8).fit(given, target)
    best = log_loss(target, reference.predict_proba(given))
    assert 0.5 < best < 1.0, "there is something to learn, and an end to it"

    batches = [collate(examples)]
    for _ in range(300):
        loss = session.forward_backward(batches, trial.objective(prepared))["loss"]
        session.step()
    assert best - 1e-5 <= loss <= best * 1.001
    with torch.inference_mode():
        found = session.models.policy.classes(batches[0]).argmax(-1).numpy()
    assert np.mean(found == reference.predict(given)) >= 0.98

    head = trial.network(session).classifier
    with torch.no_grad():  # and where logistic regression ends, the head has nothing left to learn
        head.weight.copy_(torch.tensor(reference.coef_))
        head.bias.copy_(torch.tensor(reference.intercept_))
    said = session.forward_backward(batches, trial.objective(prepared))["loss"]
    assert abs(said - best) <= 1e-5
    assert float(trial.gradients(session).norm()) / len(examples) <= 1e-4


def test_the_base_works_as_in_use_and_the_head_with_its_dropout(tiny_bert: Path, topics_csv: Path) -> None:
    prepared = trial.ready(tiny_bert, topics_csv, adaptation="head")
    session = trial.opened(prepared)
    network = trial.network(session)
    trial.advance(prepared, session, 1)
    assert not any(module.training for module in network.bert.modules())
    assert network.classifier.training and network.dropout.training and network.dropout.p > 0
    full = trial.opened(trial.ready(tiny_bert, topics_csv, adaptation="full"))
    trial.advance(prepared, full, 1)
    assert trial.network(full).bert.training


def test_an_output_layer_of_its_own_survives_saving(talks: Any, tmp_path: Path) -> None:
    prepared = talks("head")
    session = trial.opened(prepared)
    embeddings = trial.network(session).model.embed_tokens.weight.detach().clone()
    trial.advance(prepared, session, 3)
    prepared.adaptation.save(trial.network(session), prepared.tokenizer, tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(plain.model.embed_tokens.weight, embeddings)
    assert torch.equal(plain.lm_head.weight, trial.trained(session)["lm_head.weight"])
    assert not torch.equal(plain.lm_head.weight, embeddings)


def test_what_trained_is_not_opened_in_half_precision(rows: Any, tmp_path: Path) -> None:
    prepared = rows("head", train={"precision": "bf16"})
    session = trial.opened(prepared)
    trial.advance(prepared, session, 3)
    network = trial.network(session)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16, torch.float32}
    prepared.adaptation.save(network, prepared.tokenizer, tmp_path / "model")
    plain = type(network).from_pretrained(tmp_path / "model")
    assert torch.equal(plain.classifier.weight, network.classifier.weight)
