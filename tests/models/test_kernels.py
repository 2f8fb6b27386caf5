"""Kernels: each gives what its network's own code gives, forward and back; what is different is not replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from onsa.models import kernels

TYPES = [torch.float32, torch.bfloat16]
NEAR = {torch.float32: 1e-6, torch.bfloat16: 8e-3}  # the way back is rounded in fewer places
SHAPES = [(1, 8), (3, 24), (2, 7, 64), (2, 5, 3, 33), (700, 576)]

pytestmark = pytest.mark.skipif(kernels.library(torch.float32) is None, reason="there is no C compiler")


def both_ways(way: Callable[..., Any], given: list[Tensor]) -> list[Tensor]:
    """What a function gives, and the gradients of what it was given, for a certain gradient of its results."""
    leaves = [x.clone().requires_grad_() for x in given]
    results = way(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    torch.manual_seed(1)
    torch.autograd.backward(results, [torch.randn(result.shape).to(result.dtype) for result in results])
    return [*(result.detach() for result in results), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def apart(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape and one.dtype == other.dtype
    return float((one.float() - other.float()).norm() / other.float().norm())


@pytest.fixture(autouse=True, params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_norms(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    own = LlamaRMSNorm(shape[-1]).to(dtype)

    def theirs(x: Tensor, weight: Tensor) -> Any:
        return torch.func.functional_call(own, {"weight": weight}, (x,))

    given = [torch.randn(shape, dtype=dtype), torch.randn(shape[-1], dtype=dtype)]
    ours = both_ways(lambda x, w: kernels.Norm.apply(x, w, own.variance_epsilon), given)
    assert [apart(*pair) <= NEAR[dtype] for pair in zip(ours, both_ways(theirs, given), strict=True)] == [True] * 3


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gates(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given = [torch.randn(shape, dtype=dtype) * 8, torch.randn(shape, dtype=dtype)]
    ours = both_ways(kernels.Gate.apply, given)
    theirs = both_ways(lambda gate, up: functional.silu(gate) * up, given)
    assert [apart(*pair) <= NEAR[dtype] for pair in zip(ours, theirs, strict=True)] == [True] * 3


def test_gates_of_numbers_at_the_ends() -> None:
    far = torch.tensor([-1e38, -200.0, -88.0, -0.0, 0.0, 88.0, 200.0, 1e38, float("nan")])
    found, sure = kernels.Gate.apply(far, torch.ones_like(far)), functional.silu(far)
    assert torch.allclose(found, sure, rtol=1e-6, atol=1e-34, equal_nan=True)


def test_what_is_no_number_stays_none_in_few_bits() -> None:
    x = torch.tensor([[1.0, float("nan"), 2.0, float("inf")]], dtype=torch.bfloat16)
    assert kernels.Gate.apply(x, torch.ones_like(x)).isnan().tolist() == [[False, True, False, False]]
    assert kernels.Norm.apply(x, torch.ones(4, dtype=torch.bfloat16), 1e-6).isnan().all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows_of_angles", [1, 2])
def test_rotary_positions(rows_of_angles: int, dtype: torch.dtype) -> None:
    angles = [torch.randn(rows_of_angles, 7, 16).to(dtype) for _ in range(2)]
    # As networks have them: heads lie inside of tokens.
    given = [torch.randn(2, 7, heads, 16).to(dtype) for heads in (6, 3)]

    def turned(way: Any) -> list[Tensor]:
        return both_ways(lambda q, k: way(q.transpose(1, 2), k.transpose(1, 2), *angles), given)

    pairs = zip(turned(kernels.Rotary.apply), turned(apply_rotary_pos_emb), strict=True)
    assert [apart(*pair) <= NEAR[dtype] for pair in pairs] == [True] * 4


def test_what_has_another_shape_goes_its_own_way() -> None:
    """Kernels trust what they are given: these would read beyond its end."""
    query, angle = torch.randn(2, 4, 6, 8), torch.randn(1, 6, 8)
    fewer, wider = torch.randn(2, 2, 5, 8), torch.randn(1, 6, 16)

    def own(*given: Tensor) -> str:
        return "own"

    for given in ((query, fewer, angle, angle), (query, query, wider, wider), (query, query, angle, angle[:, :5])):
        assert kernels._rotated(own, *given) == "own"
    assert kernels._rotated(own, query, query, angle, angle) != "own"


def test_a_networks_modules_are_found_and_replaced(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    token_RT = torch.arange(12).view(2, 6)

    def came() -> list[Tensor]:
        network.zero_grad()
        found = network(input_ids=token_RT, labels=token_RT)
        found.loss.backward()
        return [found.logits.detach(), *(p.grad.clone() for p in network.parameters())]

    own = came()
    names = kernels.found(network)
    blocks = network.config.num_hidden_layers
    assert len(names) == 4 * blocks + 1 and not any("forward" in vars(m) for m in network.modules())
    kernels.use(network, names)
    assert sum("forward" in vars(module) for module in network.modules()) == len(names)
    assert max(apart(*pair) for pair in zip(came(), own, strict=True)) <= 1e-5
    with torch.autocast("cpu", torch.bfloat16):  # what comes in several types goes its old way
        assert apart(network(input_ids=token_RT).logits.detach().float(), own[0]) <= 0.05


def test_what_is_computed_otherwise_is_left_alone() -> None:
    """Gemma's norm has the same name and another formula; a gated block with dropout speaks of something more."""

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(8, 8) for _ in range(3))
            self.act_fn, self.dropout = nn.SiLU(), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Any:
            return self.down_proj(self.dropout(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))

    class Gelu(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(8, 8) for _ in range(3))
            self.act_fn = nn.GELU()

        def forward(self, x: Tensor) -> Any:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(4, 8)
            self.one, self.two, self.three = Gemma2RMSNorm(8), Dropping(), Gelu()
            self.four = LlamaRMSNorm(8)

        def get_input_embeddings(self) -> nn.Module:
            return self.embed

    assert kernels.found(Network().eval()) == ("four",)


def test_without_a_compiler_there_are_none(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    monkeypatch.setenv("ONSA_HOME", str(tmp_path))
    for compiler in ("no-such-compiler", "false"):
        monkeypatch.setenv("CC", compiler)
        kernels.library.cache_clear()
        assert kernels.found(network) == ()
    kernels.library.cache_clear()
