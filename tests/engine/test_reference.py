"""The reference: what a run began as, computed once, kept on disk, and never read where anything else is asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
import trial
from onsa.engine.batches import micro_batches
from onsa.models.batch import collate
from onsa.models.policy import Policy
from onsa.programs.prepare import Prepared
from onsa.store.home import home

ADAPTATIONS = [
    "full",
    "lora",
    {"kind": "lora", "init": "pissa"},
    "prompt",
    "prefix",
    "bottleneck",
    "ia3",
    "last-layers",
]
SPARSE = {"kind": "lora", "freeze": ["*.layers.0.*"]}


@pytest.fixture
def pairs(tiny_llama: Path, tmp_path: Path) -> Callable[..., Prepared]:
    data = tiny.write_pairs(tmp_path / "pairs.jsonl")
    return lambda **sections: trial.ready(tiny_llama, data, **{"task": "preference", "accel": "off", **sections})


def kept() -> set[str]:
    folder = home() / "cache" / "states"
    return {path.name for path in folder.glob("[!.]*")} if folder.is_dir() else set()


def base_says(model: Path, prepared: Prepared) -> torch.Tensor:
    policy = Policy(AutoModelForCausalLM.from_pretrained(model), prepared.tokenizer.pad_token_id, torch.device("cpu"))
    with torch.no_grad():
        return policy.logprobs(collate(prepared.examples["train"][:8]))


@pytest.mark.parametrize("adaptation", ADAPTATIONS, ids=str)
def test_it_is_the_base_however_far_the_policy_has_gone(adaptation: Any, pairs: Any, tiny_llama: Path) -> None:
    prepared = pairs(adaptation=adaptation)
    session = trial.opened(prepared)
    trial.advance(prepared, session, 3)
    assert session.models.reference is not None
    found = session.models.reference.logprobs(collate(prepared.examples["train"][:8]))
    assert trial.apart(base_says(tiny_llama, prepared), found) <= 1e-5
    policy = session.models.policy.logprobs(collate(prepared.examples["train"][:8])).detach()
    assert trial.apart(found, policy) > 1e-5, "the policy itself has moved"


def test_what_trains_stays_marked(pairs: Any) -> None:
    prepared = pairs(adaptation=SPARSE)
    session = trial.opened(prepared)
    before = set(trial.trained(session))
    trial.advance(prepared, session, 1)
    assert set(trial.trained(session)) == before


def test_it_is_computed_once(pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = pairs(adaptation="lora")
    first, _ = trial.advance(prepared, trial.opened(prepared), 2)
    (there,) = kept()
    written = (home() / "cache" / "states" / there / "states.bin").stat().st_mtime_ns
    again, _ = trial.advance(prepared, trial.opened(prepared), 2)
    other = pairs(adaptation="lora", objective={"kind": "ipo", "beta": 0.5}, seed=8)
    trial.advance(other, trial.opened(other), 1)
    assert kept() == {there} and (home() / "cache" / "states" / there / "states.bin").stat().st_mtime_ns == written
    assert [step["loss"] for step in first] == [step["loss"] for step in again]


def test_other_weights_rows_or_templates_have_their_own(pairs: Any, tiny_llama: Path, tmp_path: Path) -> None:
    def more(prepared: Prepared) -> int:
        before = kept()
        trial.advance(prepared, trial.opened(prepared), 1)
        return len(kept() - before)

    assert more(pairs(adaptation="lora")) == 1
    assert more(pairs(adaptation="lora", train={"precision": "bf16"})) == 1
    assert more(pairs(adaptation="lora", task={"kind": "preference", "system": "be brief"})) == 1
    assert more(pairs(adaptation="full")) == 0, "what trains begins as the base, whose file there is"
    other = Path(shutil.copytree(tiny_llama, tmp_path / "other"))
    network = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        network.model.norm.weight.mul_(1.5)
    network.save_pretrained(other)
    data = tiny.write_pairs(tmp_path / "again.jsonl")
    assert more(trial.ready(other, data, task="preference", accel="off", adaptation="lora")) == 1
    lines = data.read_text().splitlines()
    data.write_text("\n".join([*lines[:-1], json.dumps({**json.loads(lines[-1]), "chosen": "that is all"})]) + "\n")
    assert more(trial.ready(tiny_llama, data, task="preference", accel="off", adaptation="lora")) == 1


@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_a_run_that_goes_on_without_the_file_has_the_same(adaptation: str, pairs: Any, tmp_path: Path) -> None:
    prepared = pairs(adaptation=adaptation)
    session = trial.opened(prepared)
    _, at = trial.advance(prepared, session, 2)
    (tmp_path / "at").mkdir()
    session.save(tmp_path / "at")
    wanted, _ = trial.advance(prepared, session, 2, at)
    shutil.rmtree(home() / "cache" / "states")
    resumed = trial.opened(prepared)
    resumed.restore(tmp_path / "at")
    found, _ = trial.advance(prepared, resumed, 2, at)
    assert [step["loss"] for step in found] == [step["loss"] for step in wanted]


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_a_step_does_not_hang_on_its_parts(kind: str, pairs: Any) -> None:
    """KTO asks of a whole step how far the policy has moved, whatever parts the step is computed in."""
    prepared = pairs(adaptation="full", objective=kind)
    session = trial.opened(prepared)
    trial.advance(prepared, session, 2)
    examples = prepared.examples["train"][8:16]
    found = [
        session.gradient(micro_batches(examples, prepared.plan, accumulate), trial.objective(prepared))
        for accumulate in (1, 4)
    ]
    (loss, gradient), (other, split) = found
    assert loss == pytest.approx(other, rel=1e-5)
    assert all(trial.apart(value, split[name]) <= 1e-4 for name, value in gradient.items())
