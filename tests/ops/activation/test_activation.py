"""GELU and GLU of every backend against their definitions in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sequence_kernels import ops
from sequence_kernels.layers import activations

from ..devices import backends, on_every_instruction_set
from ..sample import F64, Sample, real

every_backend = pytest.mark.parametrize("backend", backends("activation"))
every_kind = pytest.mark.parametrize("kind", ["gelu", "glu"])


def by_definition(x: Tensor, kind: str) -> Tensor:
    if kind == "glu":
        a, b = x.chunk(2, -1)
        return a / (1 + torch.exp(-b))
    return x * torch.special.erfc(-x / math.sqrt(2)) / 2


def far_and_near(dtype: torch.dtype) -> Tensor:
    """All that Phi can be: both tails, the middle, signed zeros; of an odd number of rows, of no whole vectors."""
    x = torch.cat((torch.linspace(-14, 14, 2021, dtype=F64), torch.tensor([0.0, -0.0, 1e-30, -40.0, 40.0])))
    return x.to(dtype)[: 2026 // 22 * 22].view(-1, 22)


@pytest.mark.checks("oracle")
@every_backend
@every_kind
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(F64, 4e-15), (torch.float32, 1.5e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)],
)
def test_values_and_gradients(backend: str, kind: str, dtype: torch.dtype, bound: float) -> None:
    x = far_and_near(dtype).requires_grad_()
    wide = x.detach().double().requires_grad_()
    y, want = ops.activation(x, kind, backend=backend), by_definition(wide, kind)
    g = torch.cos(torch.arange(y.numel(), dtype=F64)).view(y.shape).to(dtype)
    (dx,), (wanted,) = torch.autograd.grad(y, x, g), torch.autograd.grad(want, wide, g.double())
    assert y.dtype == dx.dtype == dtype
    # of 14 in y; of half precision relative, as it is rounded once
    for got, right in ((y, want), (dx, wanted)):
        if dtype in (F64, torch.float32):
            assert float((got.double() - right).detach().abs().max()) < bound
        elif backend == "cpu":  # torch's own rounds the gradient of a gate twice
            torch.testing.assert_close(got.double(), right, rtol=bound * 1.01, atol=1e-6)


@every_backend
@every_kind
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2,), (2, 3, 5, 6)])
def test_any_shape_and_strides(backend: str, kind: str, shape: tuple[int, ...]) -> None:
    x = real(*shape)
    torch.testing.assert_close(
        ops.activation(x, kind, backend=backend), by_definition(x, kind), rtol=1e-14, atol=1e-15
    )
    if len(shape) > 1:
        turned = x.mT.contiguous().mT
        assert torch.equal(
            ops.activation(turned, kind, backend=backend), ops.activation(x, kind, backend=backend)
        )


@every_backend
@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_are_as_in_torch(backend: str, kind: str, dtype: torch.dtype) -> None:
    x = torch.tensor([[math.nan, 1.0, math.inf, -math.inf, 3.0, 2.0]] * 5, dtype=dtype).requires_grad_()
    plain = x.detach().clone().requires_grad_()
    y = ops.activation(x, kind, backend=backend)
    want = F.glu(plain) if kind == "glu" else F.gelu(plain)
    torch.testing.assert_close(y, want, equal_nan=True)
    (dx,), (wanted,) = torch.autograd.grad(y.sum(), x), torch.autograd.grad(want.sum(), plain)
    torch.testing.assert_close(dx, wanted, equal_nan=True)
    assert dx.isnan().any()


@pytest.mark.skipif("cpu" not in backends("activation"), reason="needs the native library")
@every_kind
def test_every_instruction_set_and_number_of_threads(kind: str) -> None:
    x = real(300, 130).float().requires_grad_()

    def gradient(backend: str) -> tuple[Tensor, ...]:
        return torch.autograd.grad(ops.activation(x, kind, backend=backend).square().sum(), x)

    want = gradient("torch")
    for found in on_every_instruction_set(lambda: gradient("cpu")):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "kind", "error", "message"),
    [
        (torch.ones(2, 5), "glu", ValueError, "even number of channels for kind='glu', got 5"),
        (torch.ones(2, 5), "relu", ValueError, r"kind must be one of \('gelu', 'glu'\), got 'relu'"),
        (torch.ones(2, 5).long(), "gelu", TypeError, "x must be one of"),
        (torch.ones(()), "gelu", ValueError, r"x must have shape \(..., C\), got a scalar"),
    ],
)
def test_bad_arguments_are_named(x: Tensor, kind: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.activation(x, kind)


@pytest.mark.parametrize(("ours", "torchs"), [(activations.GELU, nn.GELU), (activations.GLU, nn.GLU)])
def test_modules_take_it_where_it_is_faster_and_are_torchs_own_else(
    ours: type[nn.Module], torchs: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def counted(x: Tensor, kind: str, _op: Any = ops.activation) -> Tensor:
        calls.append(kind)
        return _op(x, kind)

    monkeypatch.setattr(ops, "activation", counted)
    long, short = torch.randn(512, 256), torch.randn(4, 256)
    for x, taken in ((long.clone().requires_grad_(), True), (long, False), (short.requires_grad_(), False)):
        calls.clear()
        torch.testing.assert_close(ours()(x), torchs()(x))
        assert bool(calls) == taken
    x = long.requires_grad_()
    calls.clear()
    with torch.no_grad():
        ours()(x)
    with torch.autocast("cpu", torch.bfloat16):
        ours()(x)
    ours()(x.T)
    ours()(x.double())
    assert not calls
    assert isinstance(ours(), torchs)
    assert repr(ours()) == repr(torchs())


SAMPLES = {
    f"activation-{kind}": Sample("activation", lambda x, kind=kind: ops.activation(x, kind), (real(2, 6),))
    for kind in ("gelu", "glu")
}
