"""vLLM as the engine: what comes through its process is what Onsa's own engine says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import decoders
from decoders import send
from onsa.app.cli import app
from onsa.programs.answering import begin
from onsa.serve import remote
from onsa.serve.adapters import Adapter
from onsa.serve.asks import Ask, Busy, Done, Said
from onsa.serve.remote import asked
from onsa.serve.residents import InProcess, Residents, Target
from onsa.serve.vllm import Vllm, check
from onsa.spec.errors import MachineError, ModelError
from onsa.spec.recipe import Recipe, parse_recipe

INSTALLED = shutil.which("vllm")
PROMPTS = [(5, 9, 40), (17,), (8, 8, 30, 21, 4)]


def recipe(base: Path, **more: Any) -> Recipe:
    values = {"model": str(base), "data": "-", "task": "chat", "adaptation": "lora", "engine": "local"}
    return parse_recipe({**values, "train": {"precision": "fp32"}, **more})


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A ``vllm`` command in PATH; the file of what it is asked."""
    folder = tmp_path_factory.mktemp("bin")
    path = folder / "vllm"
    here = str(Path(__file__).parent)
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {here!r})\nimport plain_vllm\nplain_vllm.main()\n"
    )
    path.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder), prepend=os.pathsep)
        patch.setenv("PLAIN_VLLM_RECORD", str(folder / "record"))
        yield folder / "record"


@pytest.fixture
def record(command: Path) -> Path:
    command.write_text("")
    return command


@pytest.fixture(scope="module")
def residents(command: Path) -> Iterator[Residents]:
    made = Residents(Vllm(1), 1)
    yield made
    made.close()


@pytest.fixture
def adapter(tiny_llama: Path, tmp_path: Path) -> Adapter:
    network = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    made = decoders.adapter(tmp_path, "tuned", over=network)
    return replace(made, recipe=recipe(tiny_llama))


def recorded(record: Path, what: str) -> list[Any]:
    lines = map(json.loads, record.read_text().splitlines())
    return [line[what] for line in lines if what in line]


def target(one: Adapter) -> Target:
    return Target(one.name, one.recipe, one.folders[0])


def heard(residents: Residents, whom: Target, asks: list[Ask]) -> list[list[Any]]:
    resident, _, name = residents.open(whom)
    return [one.events for one in [send(resident.answers, replace(ask, adapter=name)) for ask in asks] if one.done]


def close(ours: list[Any], theirs: list[Any]) -> None:
    """Whether the same was told, to 1e-5 in log-probabilities."""
    assert [type(event) for event in ours] == [type(event) for event in theirs]
    for mine, its in zip(ours, theirs, strict=True):
        if isinstance(mine, Said):
            assert mine.token == its.token
            assert mine.logprob == pytest.approx(its.logprob, abs=1e-5)
            assert [token for token, _ in mine.top] == [token for token, _ in its.top]
        elif isinstance(mine, Done):
            assert (mine.reason, mine.prompt_tokens) == (its.reason, its.prompt_tokens)
        else:
            assert mine.logprobs[1:] == pytest.approx(its.logprobs[1:], abs=1e-5)
            assert mine.logprobs[0] is its.logprobs[0] is None
            assert [[token for token, _ in top] for top in mine.tops] == [[t for t, _ in top] for top in its.tops]


def test_equals_own_engine(residents: Residents, tiny_llama: Path, adapter: Adapter, record: Path) -> None:
    asks = [
        *(Ask(prompt, 12, temperature=0.0, alternatives=3) for prompt in PROMPTS),
        Ask(PROMPTS[0], 6, temperature=0.0, alternatives=2, prompt_logprobs=True),
        Ask(PROMPTS[2], 0, temperature=0.0, alternatives=1, prompt_logprobs=True),
        Ask(PROMPTS[1], 6, temperature=0.0, logit_bias={7: 50.0}),
    ]
    own = Residents(InProcess(), 1)
    base = Target("base", recipe(tiny_llama))
    said = heard(own, base, asks)
    stops = (said[0][3].token,)  # what it says fourth
    asks.append(Ask(PROMPTS[0], 12, temperature=0.0, stops=stops))
    for whom in (base, target(adapter)):
        for ours, theirs in zip(heard(own, whom, asks), heard(residents, whom, asks), strict=True):
            close(ours, theirs)
    assert heard(own, base, asks[-1:])[0][-1].reason == "stop"
    own.close()
    (loaded,) = recorded(record, "load")  # once, whoever asks
    assert loaded["lora_path"] == str(adapter.folders[0] / "model")
    assert residents.open(base)[0].answers.state().prefix_tokens == 2 * len(recorded(record, "ask"))


def test_schema_is_handed_on(residents: Residents, tiny_llama: Path, record: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    values = {"target": {"name": str(tiny_llama)}, "temperature": 0.0, "top_p": 1.0, "seed": 3, "sender": "", "n": 1}
    begun = begin(residents, {**values, "messages": [{"role": "user", "content": "hi"}], "schema": schema, "most": 2})
    events: list[Any] = []
    begun.submit(begun.asks[0], events.append)
    deadline = time.monotonic() + 20
    while not (events and isinstance(events[-1], Done)) and time.monotonic() < deadline:
        time.sleep(0.01)
    (body,) = recorded(record, "ask")
    assert body["structured_outputs"] == {"json": schema}
    assert body["stop_token_ids"] == list(begun.asks[0].stops) and body["ignore_eos"]
    assert asked(replace(begun.asks[0], allowed=None), 2).keys() == body.keys() - {
        "structured_outputs",
        "stream",
        "stream_options",
    }


def test_cancelled(residents: Residents, tiny_llama: Path, record: Path) -> None:
    resident, _, _ = residents.open(Target("base", recipe(tiny_llama)))
    one = send(resident.answers, Ask(PROMPTS[0], 150, temperature=0.0))
    assert one.begun.wait(20) and one.ticket is not None
    one.ticket.cancel()
    assert one.done.reason == "cancelled" and len(one.said) < 150
    one.ticket.cancel()  # what is over stays as it was
    deadline = time.monotonic() + 20
    while not recorded(record, "left") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert recorded(record, "left") == ["base"]  # vLLM heard of it


def test_waiting(residents: Residents, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ROWS", 1)
    monkeypatch.setattr(remote, "WAITING", 2)
    resident, _, _ = residents.open(Target("base", recipe(tiny_llama)))
    first = send(resident.answers, Ask(PROMPTS[0], 150, temperature=0.0, sender="a"))
    assert first.begun.wait(20)
    second = send(resident.answers, Ask(PROMPTS[1], 3, temperature=0.0, sender="a"))
    third = send(resident.answers, Ask(PROMPTS[2], 3, temperature=0.0, sender="b"))
    with pytest.raises(Busy):
        send(resident.answers, Ask(PROMPTS[1], 3, temperature=0.0, sender="a"))
    assert resident.answers.state().waiting == 2 and resident.answers.state().running == 1
    assert second.ticket is not None and first.ticket is not None
    second.ticket.cancel()
    first.ticket.cancel()
    assert (first.done.reason, second.done.reason, third.done.reason) == ("cancelled", "cancelled", "length")


def test_no_room_while_others_are_asked(residents: Residents, tiny_llama: Path) -> None:
    residents.open(Target("base", recipe(tiny_llama)))
    with pytest.raises(Busy):  # of another arithmetic: another network
        residents.open(Target("base", recipe(tiny_llama, train={"precision": "bf16"})))


def test_begun_anew_where_it_dies(residents: Residents, tiny_llama: Path) -> None:
    resident, _, _ = residents.open(Target("base", recipe(tiny_llama)))
    one = send(resident.answers, Ask(PROMPTS[0], 150, temperature=0.0))
    assert one.begun.wait(20)
    (program,) = [child for child in psutil.Process().children(True) if "vllm" in " ".join(child.cmdline()[:2])]
    program.send_signal(signal.SIGKILL)
    assert one.done.reason == "failed"
    deadline = time.monotonic() + 20
    while resident.answers.alive and time.monotonic() < deadline:
        time.sleep(0.05)
    again, _, _ = residents.open(Target("base", recipe(tiny_llama)))
    assert again is not resident
    assert send(again.answers, Ask(PROMPTS[0], 3, temperature=0.0)).done.reason == "length"


def test_ends_with_who_started_it(residents: Residents, tiny_llama: Path) -> None:
    residents.open(Target("base", recipe(tiny_llama)))
    programs = [child for child in psutil.Process().children(True) if "vllm" in " ".join(child.cmdline())]
    assert len(programs) == 2  # who keeps it, and itself
    residents.close()
    _, left = psutil.wait_procs(programs, 20)
    assert not left


def test_reason_where_it_does_not_begin(command: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIN_VLLM_FAILS", "1")
    with pytest.raises(MachineError, match="no memory left"):
        Residents(Vllm(1), 1).open(Target("base", recipe(tiny_llama)))


def test_adapters_that_it_cannot_take(command: Path, tiny_llama: Path, adapter: Adapter, tmp_path: Path) -> None:
    check(adapter)
    network = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    wide = decoders.adapter(tmp_path, "wide", over=network, r=65)
    with pytest.raises(ValueError, match="rank 65"):
        check(wide)
    network = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    dora = decoders.adapter(tmp_path, "dora", over=network, use_dora=True)
    with pytest.raises(ValueError, match="use_dora"):
        check(dora)
    with pytest.raises(ModelError, match="vLLM cannot answer by this adapter"):
        Vllm(1).alone(dora.folders[0], recipe(tiny_llama))
    with pytest.raises(ModelError, match="nf4"):
        Vllm(1).base(recipe(tiny_llama, model={"name": str(tiny_llama), "quantize": "nf4"}))


def test_message_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(app, ["serve", "--engine", "vllm"])
    assert result.exit_code != 0
    assert "--engine vllm needs the program vllm" in str(result.exception or result.output)
    assert not any(home.glob("*.db"))  # and made no key


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif(not INSTALLED, reason="needs vLLM")
def test_real_vllm(tiny_llama: Path, adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(INSTALLED or "").parent), prepend=os.pathsep)
    own, its = Residents(InProcess(), 1), Residents(Vllm(1), 1)
    asks = [Ask(prompt, 12, temperature=0.0) for prompt in PROMPTS]
    for whom in (Target("base", recipe(tiny_llama)), target(adapter)):
        mine, theirs = heard(own, whom, asks), heard(its, whom, asks)
        for ours, others in zip(mine, theirs, strict=True):
            said = [(event.token, event.logprob) for event in ours if isinstance(event, Said)]
            heard_there = [(event.token, event.logprob) for event in others if isinstance(event, Said)]
            assert said[0][0] == heard_there[0][0]
            assert said[0][1] == pytest.approx(heard_there[0][1], abs=0.05)
    own.close()
    its.close()
