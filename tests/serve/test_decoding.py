"""Decoding: the short way through a network says what its library's own code says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import decoders
from decoders import policy
from onsa.models.decoding import Decoding
from onsa.serve.adapters import Adapter
from onsa.serve.asks import Ask
from onsa.serve.running import Limits, Row, Running
from onsa.serve.stacked import Stacked

SHORT = {"llama", "window", "mixed", "normed"}  # families that go the short way


def ask(number: int, adapter: str | None = None) -> Ask:
    return Ask(tuple(1 + (number * 7 + place) % 90 for place in range(3 + 2 * number)), 20, 0.0, adapter=adapter)


@torch.inference_mode()
def answered(running: Running, asks: list[Ask]) -> tuple[list[list[int]], list[torch.Tensor]]:
    """What is said, and the logits of every step."""
    found: list[torch.Tensor] = []
    forward = running._forward

    def kept(*given: Any) -> torch.Tensor:
        found.append(forward(*given))
        return found[-1]

    running._forward = kept  # type: ignore[method-assign]
    rows = [Row(one, lambda event: None, one.most) for one in asks]
    for row in rows:
        assert running.takes(row)
        running.add(row)
        running.read()
    while running.rows:
        running.decode()
    return [row.known for row in rows], found


def says_the_same(short: Running, plain: Running, asks: list[Ask]) -> None:
    plain._decoding = None
    (said, logits), (wanted, known) = answered(short, asks), answered(plain, asks)
    assert said == wanted
    for one, other in zip(logits, known, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("family", decoders.FAMILIES)
def test_it_says_what_the_network_says(family: str) -> None:
    short, plain = (Running(policy(family), Limits()) for _ in range(2))
    assert (short._decoding is not None) == (family in SHORT)
    says_the_same(short, plain, [ask(number) for number in range(5)])


def test_layers_that_get_adapters_go_their_own_way(tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {"a": {}, "b": {"target_modules": ["k_proj", "gate_proj", "o_proj"]}}
    kinds["c"] = {"target_modules": ["lm_head"]}
    made: dict[str, Adapter] = {name: decoders.adapter(tmp_path, name, **kind) for name, kind in kinds.items()}
    short, plain = (Running(policy(), Limits(), made.__getitem__) for _ in range(2))
    for names in ([None, None], ["a", None], ["b", "a", None, "b"], ["c", "b"]):
        says_the_same(short, plain, [ask(number, name) for number, name in enumerate(names)])
    assert short._decoding is not None


def test_an_adapter_that_failed_once_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"a": decoders.adapter(tmp_path, "a")}
    short, plain = (Running(policy(), Limits(), made.__getitem__) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(Stacked, "put", lambda *given: 1 / 0)
        heard = decoders.Heard()
        short.add(Row(ask(1, "a"), heard, 4))
        assert heard.done.reason == "failed" and short.stacks is not None and short.stacks.layers
    says_the_same(short, plain, [ask(1, "a")])


def test_what_is_one_product_is_held_once() -> None:
    network = decoders.network()
    wanted = {name: value.clone() for name, value in network.state_dict().items()}
    Decoding(network)
    attention, block = network.model.layers[1].self_attn, network.model.layers[1].mlp
    for modules in ((attention.q_proj, attention.k_proj, attention.v_proj), (block.gate_proj, block.up_proj)):
        assert len({module.weight.untyped_storage().data_ptr() for module in modules}) == 1
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=0)


def widened(network: Any) -> None:
    """It adds what it does not add."""
    layer = network.model.layers[0]
    forward = layer.forward
    layer.forward = lambda *given, **named: forward(*given, **named) * 1.5


def other_norm(network: Any) -> None:
    network.model.norm = nn.LayerNorm(32)


def hooked(network: Any) -> None:
    """As bottleneck adapters are."""
    network.model.layers[1].mlp.register_forward_hook(lambda module, given, result: result * 1.0001)


@pytest.mark.parametrize("change", [widened, other_norm, hooked])
def test_a_network_that_says_something_else_goes_the_long_way(change: Callable[[Any], None]) -> None:
    given = policy()
    change(given.network)
    running = Running(given, Limits())
    assert running._decoding is None
    said, _ = answered(running, [ask(1)])
    assert len(said[0]) > len(ask(1).prompt)


def test_another_build_is_refused() -> None:
    with pytest.raises(ValueError, match="another build"):
        Decoding(decoders.network("learned-places"))
    twice = decoders.network()
    twice.model.layers[1] = twice.model.layers[0]
    with pytest.raises(ValueError, match="twice"):
        Decoding(twice)
