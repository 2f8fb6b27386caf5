"""Where training begins in a network, and what is kept of the rows below."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trial
from onsa.models import states
from onsa.models.batch import collate
from onsa.models.boundary import crosses
from onsa.models.states import Writing, digest, opened
from onsa.models.strata import Strata
from onsa.programs.forecast import build
from onsa.programs.prepare import Prepared
from onsa.store.home import home

LAST = {"kind": "last-layers", "blocks": 1}
TWICE = {"max_steps": 24}  # two passes over the rows


@pytest.fixture
def rows(tiny_bert: Path, topics_csv: Path) -> Any:
    """A run on the lively tiny BERT, which has dropout."""
    return lambda **sections: trial.ready(tiny_bert, topics_csv, **{"train": TWICE, "accel": "auto", **sections})


@pytest.fixture
def tokens(tiny_llama: Path, chat_jsonl: Path) -> Any:
    return lambda **sections: trial.ready(tiny_llama, chat_jsonl, **{"train": TWICE, "accel": "auto", **sections})


def folders() -> list[Path]:
    return sorted((home() / "cache" / "states").glob("*"))


def run(prepared: Prepared, steps: int = 24) -> tuple[list[float], torch.Tensor]:
    session = trial.opened(prepared)
    said, _ = trial.advance(build(prepared).prepared, session, steps)
    weights = torch.cat([value.flatten() for value in trial.trained(session).values()])
    return [step["loss"] for step in said], weights


def test_below_what_trains_nothing_is_dropped(rows: Any) -> None:
    session: Any = trial.opened(rows(adaptation=LAST, accel="off"))
    network = trial.network(session)
    first, last = (network.get_submodule(f"bert.encoder.layer.{place}") for place in (0, 1))
    assert not first.training and not network.bert.embeddings.dropout.training
    assert last.training and network.dropout.training
    assert all(module.training for module in trial.network(trial.opened(rows(adaptation="lora"))).modules())


def test_strata_name_the_lowest_that_trains(rows: Any) -> None:
    network = build(rows(adaptation="gradual-unfreeze")).network
    strata = Strata.of(network)
    assert (len(strata.blocks), strata.top, strata.lowest) == (2, 3, 0)
    for parameter, depth in strata.parameters:
        parameter.requires_grad_(depth >= 2)
    assert strata.lowest == 2


@pytest.mark.parametrize("adaptation", ["head", LAST], ids=str)
def test_rows_go_through_the_lower_part_once(adaptation: Any, rows: Any) -> None:
    prepared = rows(adaptation=adaptation)
    prepared, session = build(prepared).prepared, trial.opened(prepared)
    _, at = trial.advance(prepared, session, 1)
    calls: list[int] = []
    first = trial.network(session).get_submodule("bert.encoder.layer.0.attention.self.query")
    first.register_forward_hook(lambda *_: calls.append(1))
    trial.advance(prepared, session, 23, at)
    session.evaluate(prepared.examples["validation"], prepared.task)
    assert not calls
    session.evaluate(prepared.examples["test"], prepared.task)
    assert calls, "rows that are not kept go through the whole network"


def test_a_row_head_that_reads_the_pooled_output_keeps_one_state_a_row(rows: Any) -> None:
    prepared = rows(adaptation="head")
    run(prepared, 1)
    (folder,) = folders()
    examples = [*prepared.examples["train"], *prepared.examples["validation"]]
    assert (folder / states.VALUES).stat().st_size == len({digest(e.token_T, None) for e in examples}) * 4 * 32


def test_exact_states_are_the_very_bits_and_halves_are_near(tokens: Any) -> None:
    exact, weights = run(tokens(adaptation=LAST))
    again, same = run(tokens(adaptation=LAST))
    assert exact == again and torch.equal(weights, same)
    plain, _ = run(tokens(adaptation=LAST, accel="off"))
    assert exact == pytest.approx(plain, rel=1e-4)
    half, _ = run(tokens(adaptation=LAST, accel={"states": "fp16"}))
    assert half != exact and half == pytest.approx(exact, rel=1e-3)
    sizes = sorted((folder / states.VALUES).stat().st_size for folder in folders())
    assert len(sizes) == 2 and sizes[1] == 2 * sizes[0]


def test_runs_over_the_same_rows_share_them(tokens: Any) -> None:
    run(tokens(adaptation=LAST), 1)
    before = folders()
    stamp = (before[0] / states.VALUES).stat().st_mtime_ns
    run(tokens(adaptation=LAST, seed=9, optimizer={"kind": "adamw", "lr": 1e-5}), 1)
    assert folders() == before and (before[0] / states.VALUES).stat().st_mtime_ns == stamp
    run(tokens(adaptation=LAST, task={"kind": "chat", "system": "be brief"}), 1)
    assert len(folders()) == 2, "other rows have other states"


def test_a_damaged_file_is_made_anew(tokens: Any) -> None:
    sound, _ = run(tokens(adaptation=LAST), 6)
    (folder,) = folders()
    data = bytearray((folder / states.VALUES).read_bytes())
    data[100] ^= 0xFF
    (folder / states.VALUES).write_bytes(data)
    assert opened(folder.name) is None and not folder.exists()
    assert run(tokens(adaptation=LAST), 6)[0] == sound


def test_gradual_unfreezing_begins_lower_and_lower(tokens: Any) -> None:
    settings = {"adaptation": {"kind": "gradual-unfreeze", "share": 0.8}, "train": {"max_steps": 60, "epochs": 9}}
    prepared = tokens(**settings)
    plan = build(prepared).prepared.plan
    assert plan.anatomy is not None and plan.cuts == plan.anatomy.cuts and len(plan.cuts) == 2
    fast, _ = run(prepared, 60)
    slow, _ = run(tokens(**settings, accel="off"), 60)
    assert fast == pytest.approx(slow, rel=1e-4)


def test_what_is_used_longest_ago_goes_where_room_is_short() -> None:
    def write(key: str) -> None:
        writing = Writing(key, single=False, half=False)
        writing.add(digest(np.arange(3), None), torch.ones(3, 1000))
        writing.done(budget=30_000)

    for age, key in enumerate(("a", "b")):
        write(key)
        os.utime(home() / "cache" / "states" / key, (1000 + age, 1000 + age))
    opened("a")
    write("c")
    assert [folder.name for folder in folders()] == ["a", "c"]


def test_a_state_is_known_by_tokens_and_types() -> None:
    token_T, type_T = np.array([3, 4]), np.array([0, 1])
    assert digest(token_T, None) == digest(token_T.astype(np.int32), np.zeros(2, np.int64))
    assert len({digest(token_T, None), digest(token_T, type_T), digest(token_T[::-1].copy(), None)}) == 3


def test_what_was_begun_is_left_nowhere(tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Writing, "add", fail)
    with pytest.raises(KeyboardInterrupt):
        run(tokens(adaptation=LAST), 1)
    assert folders() == []


def test_a_network_whose_parts_hang_together_otherwise_is_refused() -> None:
    from transformers import BartConfig, BartForSequenceClassification

    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=40,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        eos_token_id=5,  # the row head looks for it
    )
    network = BartForSequenceClassification(config).eval()
    assert crosses(network, Strata.of(network), [4]) is None


def test_batches_tell_their_rows(rows: Any) -> None:
    examples = rows().examples["train"][:3]
    told = collate(examples).rows()
    assert all(np.array_equal(row, example.token_T) for (row, _), example in zip(told, examples, strict=True))
