"""Stacked adapters: each row of a batch is answered as PEFT answers it with its adapter alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config

import decoders
from onsa.adaptations.lora import Lora
from onsa.models.load import quiet
from onsa.serve.adapters import Adapter, joined
from onsa.serve.stacked import Stacked, Stacks, check, grouped
from onsa.spec.errors import ModelError

# What adapters may differ in: ranks, scales, the matrices that they adapt.
KINDS: list[dict[str, Any]] = [
    {},
    {"r": 2, "lora_alpha": 1},
    {"r": 9, "use_rslora": True},
    {"target_modules": "all-linear"},
    {"target_modules": ["o_proj"], "r": 1},
    {"rank_pattern": {"v_proj": 7}, "alpha_pattern": {"layers.1.mlp.down_proj": 3}},
    {"target_modules": ["q_proj", "lm_head"]},
    {"layers_to_transform": [1]},
]
FILE = Path("model", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return {f"a{place}": decoders.adapter(folder, f"a{place}", **kind) for place, kind in enumerate(KINDS)}


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def stacks(adapters: dict[str, Adapter], most: int = 8) -> tuple[Any, Stacks]:
    network = decoders.network()
    return network, Stacks(network, adapters.__getitem__, most, torch.float32)


def said(network: Any, found: Stacks, names: Sequence[str | None], token_RT: Tensor) -> Tensor:
    places = [0 if name is None else found.hold(name) for name in names]
    with found.answering(places):
        logit_RTV: Tensor = network(input_ids=token_RT).logits
    for name in names:
        if name is not None:
            found.release(name)
    return logit_RTV


@pytest.mark.parametrize("tokens", [1, 7])
def test_32_rows_of_8_adapters_are_each_as_alone(tokens: int, adapters: dict[str, Adapter]) -> None:
    network, found = stacks(adapters)
    alone = {name: decoders.alone(one) for name, one in adapters.items()} | {None: decoders.network()}
    dice = random.Random(tokens)
    token_RT = torch.tensor([[dice.randrange(decoders.VOCABULARY) for _ in range(tokens)] for _ in range(32)])
    for most in (8, 3, 1, 8):  # all adapters, some, and one with rows of the base
        among = [*dice.sample(list(adapters), most), *([None] if most < 8 else [])]
        names = [dice.choice(among) for _ in range(32 - most)] + among[:most]
        dice.shuffle(names)
        logit_RTV = said(network, found, names, token_RT)
        for name, row, logit_TV in zip(names, token_RT, logit_RTV, strict=True):
            wanted_TV = alone[name](input_ids=row[None]).logits[0]
            torch.testing.assert_close(logit_TV, wanted_TV, rtol=1e-5, atol=1e-5)


def test_rows_without_an_adapter_and_of_one_take_the_short_way(
    adapters: dict[str, Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, found = stacks(adapters)
    token_RT = torch.arange(12).view(4, 3)
    calls: list[int] = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *given: calls.append(1) or bmm(*given))
    base = said(network, found, [None] * 4, token_RT)
    torch.testing.assert_close(base, decoders.network()(input_ids=token_RT).logits, rtol=0, atol=0)
    shared = said(network, found, ["a3"] * 4, token_RT)
    torch.testing.assert_close(shared, decoders.alone(adapters["a3"])(input_ids=token_RT).logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(said(network, found, [None] * 4, token_RT), base, rtol=0, atol=0)
    assert calls == []
    said(network, found, ["a3", None, None, "a1"], token_RT)
    assert calls


def test_the_least_recently_used_goes_when_no_row_needs_it(adapters: dict[str, Adapter]) -> None:
    network, found = stacks(adapters, most=2)
    assert [found.hold(name) for name in ("a0", "a1", "a0", "a2")] == [1, 2, 1, 3]
    assert found.names == ("a1", "a0", "a2"), "all are in use"
    found.release("a0")
    assert found.names == ("a1", "a0", "a2"), "a0 still answers a row"
    found.release("a1")
    assert found.names == ("a0", "a2")
    assert found.hold("a4") == 2, "in the place of who left"
    assert found.names == ("a0", "a2", "a4")
    found.release("a2")
    assert found.names == ("a0", "a4")
    for name in ("a0", "a4"):
        found.release(name)
    assert found.names == ("a0", "a4"), "what fits stays"
    token_RT = torch.arange(6).view(2, 3)
    for names in (["a4", "a0"], ["a1", "a1"], ["a4", "a2"]):
        wanted = [
            decoders.alone(adapters[name])(input_ids=row[None]).logits
            for name, row in zip(names, token_RT, strict=True)
        ]
        torch.testing.assert_close(said(network, found, names, token_RT), torch.cat(wanted), rtol=1e-5, atol=1e-5)


def test_a_stack_of_runs_is_the_sum_of_their_updates(adapters: dict[str, Adapter]) -> None:
    first, second = adapters["a0"], adapters["a5"]
    both = Adapter("both", (*first.folders, *second.folders), first.recipe)
    network, found = stacks({"both": both})
    token_RT = torch.tensor([[5, 6, 7]])
    by_hand = decoders.network()
    for one in (first, second):
        network_of = decoders.alone(one).merge_and_unload()
        for name, weight in by_hand.named_parameters():
            weight.data = weight.data + network_of.get_parameter(name) - decoders.network().get_parameter(name)
    torch.testing.assert_close(
        said(network, found, ["both"], token_RT), by_hand(input_ids=token_RT).logits, rtol=1e-4, atol=1e-4
    )


def broken(
    adapters: dict[str, Adapter], tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], **config: Any
) -> Adapter:
    """An adapter whose files say something else."""
    source = adapters["a0"].folders[0] / "model"
    made = tmp_path / "run" / "model"
    made.mkdir(parents=True)
    settings = json.loads((source / "adapter_config.json").read_text()) | config
    (made / "adapter_config.json").write_text(json.dumps(settings))
    tensors = load_file(source / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, made / "adapter_model.safetensors")
    return Adapter("odd", (tmp_path / "run",), adapters["a0"].recipe)


LAYER = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (dict, {"use_dora": True}, "plain form: use_dora"),
        (dict, {"peft_type": "IA3"}, "plain form: IA3"),
        (
            lambda held: held.update({"base_model.model.lm_head.weight": torch.ones(97, 32)}),
            {},
            "lm_head.weight, which is no",
        ),
        (
            lambda held: held.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 97)}),
            {},
            "lora_embedding_A, which is no factor",
        ),
        (
            lambda held: held.update({LAYER.replace("q_proj", "x_proj"): torch.ones(4, 32)}),
            {},
            "no layer model.layers.0.self_attn.x_proj",
        ),
        (
            lambda held: held.update({LAYER.replace("q_proj", "o_proj"): torch.ones(4, 33)}),
            {},
            "width 33, and the base's has 32",
        ),
        (
            lambda held: held.update({LAYER.replace("self_attn.q_proj", "input_layernorm"): torch.ones(4, 32)}),
            {},
            "input_layernorm is no linear layer",
        ),
    ],
)
def test_what_cannot_be_stacked_is_told_without_reading_weights(
    change: Any, config: dict[str, Any], said: str, adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    odd = broken(adapters, tmp_path, change, **config)
    network, found = stacks({"odd": odd})
    with pytest.raises(ValueError, match=said):
        check(odd, network)
    with pytest.raises(ValueError, match=said):
        found.hold("odd")
    assert found.names == () and not any(isinstance(module, Stacked) for module in network.modules())


def test_numbers_that_are_not_finite_are_refused(adapters: dict[str, Adapter], tmp_path: Path) -> None:
    odd = broken(adapters, tmp_path, lambda held: held[LAYER].fill_(torch.inf))
    network, found = stacks({"odd": odd, **adapters})
    check(odd, network)
    with pytest.raises(ValueError, match="not finite"):
        found.hold("odd")
    assert found.hold("a0") == 1


def test_matrices_of_another_kind_are_refused(adapters: dict[str, Adapter], tmp_path: Path) -> None:
    """GPT-2's matrices lie the other way round."""
    with quiet():
        from transformers import GPT2LMHeadModel

        network = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=4))
    odd = broken(
        adapters,
        tmp_path,
        lambda held: (
            held.clear(),
            held.update({"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": torch.ones(4, 32)}),
        ),
    )
    with pytest.raises(ValueError, match="Conv1D"):
        check(odd, network)


def cut(model: Path) -> None:
    whole = (model / FILE.name).read_bytes()
    (model / FILE.name).write_bytes(whole[: len(whole) // 2])


def pickled(model: Path) -> None:
    torch.save(load_file(model / FILE.name), model / "adapter_model.bin")
    (model / FILE.name).unlink()


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (cut, "weights-damaged"),
        (lambda model: (model / FILE.name).write_bytes(b"no safetensors"), "weights-damaged"),
        (pickled, "weights-pickled"),
        (lambda model: (model / FILE.name).unlink(), "weights-missing"),
        (lambda model: (model / "adapter_config.json").write_text("{"), "model-json-unreadable"),
    ],
)
def test_damaged_files_are_told_and_no_pickle_is_read(
    damage: Callable[[Path], Any], code: str, adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    odd = broken(adapters, tmp_path, dict)
    damage(odd.folders[0] / "model")
    for read in (
        lambda: check(odd, decoders.network()),
        lambda: joined(decoders.network(), {"odd": odd.folders[0]}),
        lambda: Lora().reload(decoders.network(), odd.folders[0] / "model"),
    ):
        with pytest.raises(ModelError) as caught:
            read()
        assert caught.value.problems[0].code == code


def test_groups_leave_nothing_out() -> None:
    device = torch.device("cpu")
    assert grouped([0, 0], 4, device) is None
    one = grouped([2, 2], 4, device)
    assert one is not None and one.alone and one.stack_U == (1,)
    some = grouped([0, 3, 1, 3], 8, device)
    assert some is not None and (some.stack_U, some.alone) == ((0, 2), False)
    assert some.row_M.tolist() == [2, 0, 1, 3]
    assert (some.from_N.tolist(), some.to_N.tolist()) == ([0, 2, 3], [2, 1, 3])
    most = grouped([0, 3, 1, 3], 3, device)
    assert most is not None and most.stack_U == (0, 1, 2), "nothing has to be copied together"


def test_a_stacked_layer_is_its_base_elsewhere() -> None:
    from onsa.serve.stacked import Asked

    base = nn.Linear(3, 5)
    layer = Stacked(base, Asked(), torch.float32)
    x = torch.randn(2, 3)
    torch.testing.assert_close(layer(x), base(x))
    assert layer.weight is base.weight
