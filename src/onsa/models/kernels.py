"""Kernels: what a block does to each value in one go through memory, on a CPU.

Norms by the root mean square (Zhang and Sennrich 2019, eq. 4), gates ``silu(g) · u`` (Shazeer 2020, SwiGLU) and rotary
positions (Su et al. 2021, eq. 34) take many small operations in a network's own code, each of which reads all values
and writes them again, and some of which keep them in fp32 for the way back. Here each is one loop in C, forward and
back. The machine's own C compiler builds them once; they run on torch's threads. A module is computed so only where a
trial shows that it then gives what its own code gives.

Shape legend: N rows of W values; R rows, H heads, T tokens, D width of a head.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator
from functools import cache, partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from onsa.models.lowering import base_network
from onsa.store.home import home

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-std=gnu11")
TYPES = {torch.float32: (), torch.bfloat16: ("-DBF16",)}
SAME = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # how far apart, relatively, results may be that are the same
GATED = {"gate_proj", "up_proj", "act_fn", "down_proj"}  # all that a gated block's code speaks of
ROTARY = "apply_rotary_pos_emb"  # transformers' name of it in every network
BUILD_S = 120
Forward = Callable[..., Any]


@cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels for one type of values, built for this processor; none where there is no compiler that can."""
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    flags = (*FLAGS, *TYPES[dtype])
    key = hashlib.sha256(repr((SOURCE.read_bytes(), flags, _processor())).encode()).hexdigest()[:16]
    path = home() / "cache" / "kernels" / f"{key}.so"
    try:
        if not path.exists():
            _build(compiler, flags, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> list[str]:
    """What this processor can do: a home may be shared by machines."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    return sorted({line for line in lines if line.startswith(("flags", "Features"))})


def _build(compiler: str, flags: Collection[str], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part, whole = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
        # Linked without OpenMP: a second library of it would bring threads of its own, which fight with torch's.
        for command in ([*flags, "-c", str(SOURCE), "-o", str(part)], ["-shared", str(part), "-o", str(whole), "-lm"]):
            subprocess.run([compiler, *command], check=True, capture_output=True, timeout=BUILD_S)
        whole.replace(path)


def _call(name: str, like: Tensor, *given: Any) -> None:
    getattr(library(like.dtype), name)(*map(_argument, given), ctypes.c_int(torch.get_num_threads()))


def _argument(given: Any) -> Any:
    if isinstance(given, Tensor):
        return ctypes.c_void_p(given.data_ptr())
    if isinstance(given, tuple):
        return (ctypes.c_int64 * len(given))(*given)
    return ctypes.c_float(given) if isinstance(given, float) else ctypes.c_int64(given)


class Norm(torch.autograd.Function):
    """``w x / sqrt(mean(x²) + eps)`` of rows ``x_NW``, with one weight for each of their values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_W: Tensor, eps: float) -> Tensor:
        x, width = x.contiguous(), x.shape[-1]
        y, scale_N = torch.empty_like(x), torch.empty(x.numel() // width)
        _call("norm_forward", x, x, weight_W, y, scale_N, len(scale_N), width, eps)
        ctx.save_for_backward(x, weight_W, scale_N)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight_W, scale_N = ctx.saved_tensors
        dy, size = dy.contiguous(), (len(scale_N), x.shape[-1])
        dx = dweight_W = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            _call("norm_backward", x, dy, x, weight_W, scale_N, dx, *size)
        if ctx.needs_input_grad[1]:
            dweight_W = torch.zeros(x.shape[-1])
            _call("norm_weight", x, dy, x, scale_N, dweight_W, *size)
            dweight_W = dweight_W.to(weight_W.dtype)
        return dx, dweight_W, None


class Gate(torch.autograd.Function):
    """``silu(g) · u``."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        h = torch.empty_like(gate)
        _call("gate_forward", gate, gate, up, h, gate.numel())
        ctx.save_for_backward(gate, up)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        _call("gate_backward", gate, dh.contiguous(), gate, up, dgate, dup, gate.numel())
        return dgate, dup


class Rotary(torch.autograd.Function):
    """Queries and keys, ``x_RHTD``, turned by their places' angles, ``cos_RTD`` and ``sin_RTD`` (or of one row)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        return _turned(query, cos, sin, False), _turned(key, cos, sin, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dquery: Tensor, dkey: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(dquery, cos, sin, True), _turned(dkey, cos, sin, True), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """What comes lies as products of heads read it; what goes back, as those of layers do."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    rows, heads, tokens, width = x.shape
    y = x.new_empty(rows, tokens, heads, width).transpose(1, 2) if back else x.new_empty(x.shape)
    shared = int(len(cos) == 1)
    _call("rotate", x, x, x.stride()[:3], cos, sin, y, y.stride()[:3], *x.shape, shared, int(back))
    return y


def _fits(*given: Tensor) -> bool:
    """Whether these are of one type that there are kernels for, in a CPU's memory."""
    return all(x.device.type == "cpu" and x.dtype == given[0].dtype for x in given) and given[0].dtype in TYPES


def _norm(module: Any, other: Forward) -> Forward:
    eps = float(getattr(module, "variance_epsilon", None) or getattr(module, "eps", None) or 0.0)

    def forward(x: Tensor) -> Any:
        fits = _fits(x, module.weight) and x.shape[-1:] == module.weight.shape
        return Norm.apply(x, module.weight, eps) if fits else other(x)  # type: ignore[no-untyped-call]

    return forward


def _gated(module: Any, other: Forward) -> Forward:
    def forward(x: Tensor) -> Any:
        gate, up = module.gate_proj(x), module.up_proj(x)
        fits = _fits(gate, up) and gate.shape == up.shape
        inner = Gate.apply(gate, up) if fits else module.act_fn(gate) * up  # type: ignore[no-untyped-call]
        return module.down_proj(inner)

    return forward


def _rotated(other: Forward, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, **named: Any) -> Any:
    """In place of a network's function of that name."""
    if named or not _fits(query, key, cos, sin) or query.ndim != 4 or key.ndim != 4:
        return other(query, key, cos, sin, **named)
    rows, _, tokens, width = query.shape
    alike = key.shape[::2] == (rows, tokens) and key.shape[3] == width and cos.shape == sin.shape and width % 2 == 0
    if not alike or cos.shape not in ((rows, tokens, width), (1, tokens, width)):
        return other(query, key, cos, sin)
    return Rotary.apply(query, key, cos, sin)  # type: ignore[no-untyped-call]


def _attending(module: Any, other: Forward) -> Forward:
    """An attention's own code, in which one name stands for another function."""
    code = cast(Any, type(module).forward)
    names = {**code.__globals__, ROTARY: partial(_rotated, code.__globals__[ROTARY])}
    made = FunctionType(code.__code__, names, code.__name__, code.__defaults__, code.__closure__)
    made.__kwdefaults__ = code.__kwdefaults__
    return MethodType(made, module)


def found(network: nn.Module) -> tuple[str, ...]:
    """Names of the modules that can be computed so and give what they gave; of the network, nothing is changed.

    The network must be in evaluation mode.
    """
    inputs = base_network(network).get_input_embeddings()
    dtype = getattr(getattr(inputs, "weight", None), "dtype", None)
    if dtype not in TYPES or any(library(one) is None for one in TYPES):  # a run may lower what it holds
        return ()
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        return tuple(name for name, module, make in _sites(network) if _same(module, make, dtype))


def use(network: nn.Module, names: Collection[str]) -> None:
    """Let these modules of a network be computed so."""
    for name, module, make in _sites(network):
        if name in names:
            module.forward = make(module, module.forward)


def _sites(network: nn.Module) -> Iterator[tuple[str, Any, Callable[[Any, Forward], Forward]]]:
    """Modules that look as if they could be, with what would compute them."""
    for name, module in base_network(network).named_modules():
        code = getattr(type(module).forward, "__code__", None)
        if "forward" in vars(module) or code is None:
            continue
        normed = type(module).__name__.endswith("RMSNorm") and code.co_argcount == 2
        if normed and isinstance(getattr(module, "weight", None), Tensor):
            yield name, module, _norm
        elif set(code.co_names) == GATED:
            yield name, module, _gated
        elif ROTARY in code.co_names and not hasattr(type(module).forward, "__wrapped__"):
            yield name, module, _attending


def _same(module: Any, make: Callable[[Any, Forward], Forward], dtype: torch.dtype) -> bool:
    """Whether a module gives the same either way."""
    try:
        if make is _attending:
            return _turns_alike(type(module).forward.__globals__[ROTARY], dtype)
        width = len(module.weight) if make is _norm else module.gate_proj.in_features
        x_NW = torch.randn(3, width, dtype=dtype)
        return _alike(make(module, module.forward)(x_NW), module.forward(x_NW))
    except (TypeError, ValueError, RuntimeError, AttributeError):  # it is another thing under that name
        return False


@cache
def _turns_alike(function: Forward, dtype: torch.dtype) -> bool:
    query, key, cos, sin = (torch.randn(2, *heads, 3, 8, dtype=dtype) for heads in ((4,), (2,), (), ()))
    theirs, ours = function(query, key, cos, sin), _rotated(function, query, key, cos, sin)
    return all(_alike(one, other) for one, other in zip(ours, theirs, strict=True))


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and float((one - other).norm()) <= SAME[other.dtype] * float(other.norm())
