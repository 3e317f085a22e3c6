"""GELU and GLU of every backend against their definitions in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sequence_kernels import ops
from sequence_kernels.layers import activations, components

from ..devices import backends, on_every_instruction_set
from ..sample import F64, Sample, real

every_backend = pytest.mark.parametrize("backend", backends("activation"))
every_kind = pytest.mark.parametrize("kind", ["gelu", "glu"])
with_and_without_bias = pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])


def by_definition(x: Tensor, kind: str) -> Tensor:
    if kind == "glu":
        a, b = x.chunk(2, -1)
        return a / (1 + torch.exp(-b))
    return x * torch.special.erfc(-x / math.sqrt(2)) / 2


def far_and_near(dtype: torch.dtype) -> Tensor:
    """All that Phi can be: both tails, the middle, signed zeros; of an odd number of rows, of no whole vectors."""
    x = torch.cat((torch.linspace(-14, 14, 2021, dtype=F64), torch.tensor([0.0, -0.0, 1e-30, -40.0, 40.0])))
    return x.to(dtype)[: 2026 // 22 * 22].view(-1, 22)


def bias_of(x: Tensor) -> Tensor:
    """Other numbers for the two halves of a gate."""
    real = F64 if x.dtype == F64 else torch.float32
    return torch.linspace(-1, 2, x.shape[-1], dtype=F64).to(real).requires_grad_()


@pytest.mark.checks("oracle")
@every_backend
@every_kind
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(F64, 4e-15), (torch.float32, 1.5e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)],
)
@with_and_without_bias
def test_values_and_gradients(
    backend: str, kind: str, dtype: torch.dtype, bound: float, biased: bool
) -> None:
    x = far_and_near(dtype).requires_grad_()
    bias = bias_of(x) if biased else None
    wide = (x.detach().double() + (0 if bias is None else bias.detach().double())).requires_grad_()
    y, want = ops.activation(x, kind, bias, backend=backend), by_definition(wide, kind)
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
def test_nan_and_infinity_are_as_in_the_formula(backend: str, kind: str, dtype: torch.dtype) -> None:
    """Plain torch's are torch's own: its GELU of infinity is infinity on AVX2 and NaN on AVX-512."""
    x = torch.tensor([[math.nan, 1.0, math.inf, -math.inf, 3.0, 2.0]] * 5, dtype=dtype).requires_grad_()
    plain = x.detach().clone().requires_grad_()
    y = ops.activation(x, kind, backend=backend)
    torchs = F.glu if kind == "glu" else F.gelu
    want = torchs(plain) if backend == "torch" else by_definition(plain.double(), kind).to(dtype)
    torch.testing.assert_close(y, want, equal_nan=True)
    (dx,), (wanted,) = torch.autograd.grad(y.sum(), x), torch.autograd.grad(want.sum(), plain)
    torch.testing.assert_close(dx, wanted, equal_nan=True)
    assert dx.isnan().any()


@every_backend
@every_kind
@pytest.mark.parametrize("shape", [(0, 4), (1, 2), (301, 46), (3, 500, 130)])
def test_the_gradient_of_a_bias_is_the_sum_over_the_rows(
    backend: str, kind: str, shape: tuple[int, ...]
) -> None:
    x = real(*shape).requires_grad_()
    bias = bias_of(x)
    got = torch.autograd.grad(ops.activation(x, kind, bias, backend=backend).sin().sum(), (x, bias))
    want = torch.autograd.grad(by_definition(x + bias, kind).sin().sum(), (x, bias))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif("cpu" not in backends("activation"), reason="needs the native library")
@every_kind
@with_and_without_bias
def test_every_instruction_set_and_number_of_threads(kind: str, biased: bool) -> None:
    x = real(300, 130).float().requires_grad_()
    bias = bias_of(x) if biased else None
    inputs = [x] if bias is None else [x, bias]

    def gradient(backend: str) -> tuple[Tensor, ...]:
        return torch.autograd.grad(ops.activation(x, kind, bias, backend=backend).square().sum(), inputs)

    want = gradient("torch")
    for found in on_every_instruction_set(lambda: gradient("cpu")):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif("cpu" not in backends("activation"), reason="needs the native library")
@every_kind
@with_and_without_bias
def test_a_result_past_the_caches_is_that_of_its_parts(kind: str, biased: bool) -> None:
    """From 8 MiB on results are written past the caches, by whole lines."""
    x = real(2100, 1024, seed=1).float().requires_grad_()
    bias = bias_of(x) if biased else None
    g = real(2100, 512 if kind == "glu" else 1024, seed=2).float()

    def both(rows: slice) -> tuple[Tensor, Tensor]:
        part = x[rows]
        y = ops.activation(part, kind, bias, backend="cpu")
        return y, torch.autograd.grad(y, part, g[rows])[0]

    def found() -> list[Tensor]:
        return [*both(slice(None))]

    parts = [both(slice(at, at + 700)) for at in (0, 700, 1400)]
    want = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    for got in on_every_instruction_set(found):
        assert all(float((a - b).detach().abs().max()) < 2e-6 for a, b in zip(got, want, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found(), want, strict=True))


@pytest.mark.parametrize(
    ("x", "bias", "error", "message"),
    [
        (torch.ones(2, 4), torch.ones(2), ValueError, r"bias must have shape \(C=4\), got \(2,\)"),
        (torch.ones(2, 4), torch.ones(4).double(), TypeError, "bias must be one of"),
        (
            torch.ones(2, 4).double(),
            torch.ones(4),
            TypeError,
            "bias must be one of float64, got torch.float32",
        ),
        (torch.ones(2, 4), 1.0, TypeError, "bias must be a torch.Tensor, got float"),
    ],
)
def test_a_bad_bias_is_named(x: Tensor, bias: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.activation(x, "gelu", bias)


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


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each call of the op by a module: whether it brings a bias."""
    made: list[bool] = []

    def counted(x: Tensor, kind: str, bias: Tensor | None = None, _op: Any = ops.activation) -> Tensor:
        made.append(bias is not None)
        return _op(x, kind, bias)

    monkeypatch.setattr(ops, "activation", counted)
    return made


@pytest.mark.parametrize(("ours", "torchs"), [(activations.GELU, nn.GELU), (activations.GLU, nn.GLU)])
def test_modules_take_it_where_it_is_faster_and_are_torchs_own_else(
    ours: type[nn.Module], torchs: type[nn.Module], calls: list[bool]
) -> None:
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
        assert ours()(x).dtype == torch.float32
    ours()(x.double())
    ours()(x[:, ::2])
    assert not calls
    assert isinstance(ours(), torchs)
    assert repr(ours()) == repr(torchs())


def test_gelu_takes_channels_first_as_they_lie(calls: list[bool]) -> None:
    x = torch.randn(2, 512, 256, requires_grad=True)
    y = activations.GELU()(x.mT)
    assert calls == [False]
    assert y.mT.is_contiguous()
    torch.testing.assert_close(y, F.gelu(x.mT))


def _linear(activation: str, bias: bool = True) -> tuple[nn.Sequential, Tensor]:
    made = components.linear_activation(8, 128, activation, bias=bias)
    assert isinstance(made, components.LinearActivation)
    return made, torch.randn(2, 1024, 8, requires_grad=True)


@every_kind
def test_the_bias_of_a_linear_map_is_added_in_the_activation(kind: str, calls: list[bool]) -> None:
    made, x = _linear(kind)
    y = made(x)
    assert calls == [True]
    plain = nn.Sequential(*made)
    for part, wanted in zip(plain, (nn.Linear, nn.GLU if kind == "glu" else nn.GELU), strict=True):
        assert isinstance(part, wanted)
    want = (F.glu if kind == "glu" else F.gelu)(plain[0](x))
    inputs = (x, *made.parameters())
    torch.testing.assert_close(y, want)
    g = torch.randn_like(y)
    got, right = torch.autograd.grad(y, inputs, g), torch.autograd.grad(want, inputs, g)
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_glu_of_bfloat16_is_taken_too_and_gelu_is_not(calls: list[bool]) -> None:
    x = torch.randn(512, 512).bfloat16().requires_grad_()
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = activations.GLU()(x)
            assert activations.GELU()(x).dtype == torch.bfloat16
        assert calls == [False]
        calls.clear()
        torch.testing.assert_close(y, F.glu(x.float()).bfloat16(), rtol=0.01, atol=0)
    with torch.autocast("cpu", torch.float16):
        assert activations.GLU()(x).dtype == torch.bfloat16
    assert not calls


@pytest.mark.parametrize("halves", [False, True])
def test_the_bias_of_a_map_under_autocast_or_in_bfloat16_is_added_in_glu(
    halves: bool, calls: list[bool]
) -> None:
    made, x = _linear("glu")
    wide = [t.detach().requires_grad_() for t in (x, *made.parameters())]
    want = F.glu(F.linear(*wide))
    g = torch.randn_like(want)
    right = torch.autograd.grad(want, wide, g)
    if halves:
        made, x = made.bfloat16(), x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=not halves):
        y = made(x)
    assert calls == [True]
    assert y.dtype == torch.bfloat16
    got = torch.autograd.grad(y, (x, *made.parameters()), g.bfloat16())
    for a, b in zip((y, *got), (want, *right), strict=True):
        assert (a.float() - b).norm() < 0.01 * b.norm()


def test_a_bias_of_another_type_is_refused_as_in_torch(calls: list[bool]) -> None:
    made, x = _linear("glu")
    made[0].weight.data = made[0].weight.data.bfloat16()
    with pytest.raises(RuntimeError):
        made(x.bfloat16())
    assert not calls


class _Adapted(nn.Linear):
    """As adapters make: another map under the same name."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _changes() -> dict[str, Any]:
    def hooked(part: int) -> Any:
        return lambda made: made[part].register_forward_hook(lambda module, args, y: 3 * y)

    def replaced(made: nn.Sequential) -> None:
        made[0].forward = lambda x: torch.zeros(*x.shape[:-1], made[0].out_features).requires_grad_()

    def adapted(made: nn.Sequential) -> None:
        made[0] = _Adapted(8, 128)

    return {
        "hook of the map": hooked(0),
        "hook of the activation": hooked(1),
        "a forward of its own": replaced,
        "another class": adapted,
        "weight normalisation": lambda made: nn.utils.parametrizations.weight_norm(made[0]),
        "a third part": lambda made: made.append(nn.Tanh()),
        "tanh formula": lambda made: setattr(made[1], "approximate", "tanh"),
    }


@pytest.mark.parametrize("change", _changes())
def test_what_was_changed_of_a_linear_map_and_its_activation_counts(change: str, calls: list[bool]) -> None:
    made, x = _linear("gelu")
    _changes()[change](made)
    y = made(x)
    assert True not in calls
    want = x
    for part in made:
        want = part(want)
    torch.testing.assert_close(y, want)


def test_without_a_bias_or_a_gradient_nothing_is_added_in_the_activation(calls: list[bool]) -> None:
    made, x = _linear("gelu", bias=False)
    made(x)
    assert True not in calls
    made, x = _linear("gelu")
    with torch.no_grad():
        made(x)
    with torch.autocast("cpu", torch.bfloat16):
        made(x)
    made.double()(x.double())
    assert True not in calls


@every_kind
def test_a_compiled_map_takes_it_too(kind: str) -> None:
    made, x = _linear(kind)
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(made, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), made(x))
    assert "sequence_kernels.activation.default" in seen


SAMPLES = {
    f"activation-{kind}{'-bias' * biased}": Sample(
        "activation",
        lambda x, *bias, kind=kind: ops.activation(x, kind, *bias),
        (real(2, 6), *[real(6, seed=1)] * biased),
    )
    for kind in ("gelu", "glu")
    for biased in (0, 1)
}
