"""The gated norm of every backend against its definition in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops

from ..devices import backends, on_every_instruction_set
from ..sample import F64, Sample, real

every_backend = pytest.mark.parametrize("backend", backends("gated_rms_norm"))


def by_definition(
    x: Tensor, weight: Tensor, z: Tensor | None, groups: int, gate_first: bool, eps: float
) -> Tensor:
    gate = 1 if z is None else z / (1 + torch.exp(-z))
    parts = (x * gate if gate_first else x).unflatten(-1, (groups, -1))
    y = (parts / torch.sqrt((parts**2).mean(-1, keepdim=True) + eps)).flatten(-2) * weight
    return y if gate_first else y * gate


def draw(rows: int, channels: int, gated: bool) -> list[Tensor]:
    x, weight = real(rows, channels), 1 + 0.3 * real(channels, seed=1)
    return [x, weight, *([real(rows, channels, seed=2)] if gated else [])]


def error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return (
        float((got - want).detach().norm() / max(float(want.detach().norm()), 1e-30)) if want.numel() else 0.0
    )


#: rows, channels and groups. Vectors that are full, and not; several pieces of rows.
SIZES = [(3, 16, 1), (2, 6, 2), (70, 33, 3), (33, 128, 4), (1, 2, 1), (0, 5, 1), (3, 0, 1)]


@pytest.mark.checks("oracle")
@every_backend
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("gate", [None, "first", "last"])
def test_values_and_gradients(backend: str, sizes: tuple[int, int, int], gate: str | None) -> None:
    rows, channels, groups = sizes
    options: dict[str, Any] = {"groups": groups, "gate_first": gate != "last", "eps": 1e-3}
    given = [t.requires_grad_() for t in draw(rows, channels, gate is not None)]
    want = by_definition(*(*given, *[None] * (3 - len(given))), **options)  # type: ignore[arg-type]
    for dtype, bound in ((F64, 1e-12), (torch.float32, 3e-6)):
        single = [t.detach().to(dtype).requires_grad_() for t in given]
        got = ops.gated_rms_norm(*single, **options, backend=backend)
        weights = torch.cos(torch.arange(want.numel(), dtype=F64)).view(want.shape)
        wanted = torch.autograd.grad(want, given, weights, retain_graph=True)
        found = torch.autograd.grad(got, single, weights.to(dtype))
        assert all(e < bound for e in map(error, (got, *found), (want, *wanted)))


@every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(backend: str, dtype: torch.dtype) -> None:
    x, weight, z = (t.to(dtype) for t in draw(40, 48, True))
    wide = [t.double() for t in (x, weight, z)]
    for options in ({}, {"gate_first": False, "groups": 2}):
        y = ops.gated_rms_norm(x, weight, z, **options, backend=backend)  # type: ignore[arg-type]
        want = by_definition(*wide, **{"groups": 1, "gate_first": True, "eps": 1e-5, **options})  # type: ignore[arg-type]
        assert y.dtype == dtype
        assert error(y.double(), want) < torch.finfo(dtype).eps


@every_backend
def test_any_leading_dimensions_and_strides(backend: str) -> None:
    x, weight, z = draw(24, 10, True)
    want = ops.gated_rms_norm(x, weight, z, backend=backend)
    wide = torch.cat((z, x, z), -1).unflatten(0, (2, 3, 4))
    got = ops.gated_rms_norm(wide[..., 10:20], weight, wide[..., 20:], backend=backend)
    turned = ops.gated_rms_norm(x.mT.contiguous().mT, weight, z, backend=backend)
    one = ops.gated_rms_norm(x[3], weight, z[3], backend=backend)
    for other, whole in ((got.flatten(0, 2), want), (turned, want), (one, want[3])):
        torch.testing.assert_close(other, whole, rtol=1e-14, atol=1e-15)


@every_backend
def test_nan_and_great_gates(backend: str) -> None:
    x, weight, z = (t.float() for t in draw(3, 8, True))
    x[1, 5] = math.nan
    z[2, 0], z[2, 1] = -200.0, 200.0
    y = ops.gated_rms_norm(x, weight, z, groups=2, gate_first=False, backend=backend)
    assert y[1, 4:].isnan().all()
    assert not y[1, :4].isnan().any()
    assert float(y[2, 0].abs()) < 1e-30
    torch.testing.assert_close(
        y[2].double(),
        by_definition(x[2].double(), weight.double(), z[2].double(), 2, False, 1e-5),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.skipif("cpu" not in backends("gated_rms_norm"), reason="needs the native library")
def test_every_instruction_set_and_number_of_threads() -> None:
    given = [t.float().requires_grad_() for t in draw(300, 130, True)]  # enough for threads

    def gradients(backend: str) -> tuple[Tensor, ...]:
        return torch.autograd.grad(ops.gated_rms_norm(*given, backend=backend).square().sum(), given)

    want = gradients("torch")
    for found in on_every_instruction_set(lambda: gradients("cpu")):
        assert all(e < 1e-5 for e in map(error, found, want))


@pytest.mark.skipif("cpu" not in backends("gated_rms_norm"), reason="needs the native library")
@pytest.mark.parametrize("gate", [None, "first", "last"])
def test_results_past_the_caches_are_those_of_their_parts(gate: str | None) -> None:
    """From 8 MiB on results are written past the caches, by whole lines."""
    given = [t.float().requires_grad_() for t in draw(2112, 1024, gate is not None)]
    x, weight, *z = given
    g = real(2112, 1024, seed=3).float()

    def both(rows: slice) -> tuple[Tensor, ...]:
        parts = [t[rows] for t in (x, *z)]
        options = {"groups": 2, "gate_first": gate == "first", "backend": "cpu"}
        y = ops.gated_rms_norm(parts[0], weight, *parts[1:], **options)
        return y, *torch.autograd.grad(y, parts, g[rows])

    pieces = [both(slice(at, at + 704)) for at in (0, 704, 1408)]
    want = [torch.cat(tensors) for tensors in zip(*pieces, strict=True)]
    for got in on_every_instruction_set(lambda: both(slice(None))):
        assert all(e < 1e-6 for e in map(error, got, want))
    assert all(torch.equal(a, b) for a, b in zip(both(slice(None)), want, strict=True))


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        ((torch.ones(2, 6), torch.ones(5)), {}, ValueError, r"weight must have shape \(C=6\), got \(5,\)"),
        (
            (torch.ones(2, 6), torch.ones(6)),
            {"groups": 4},
            ValueError,
            r"groups must divide the channels C=6, got 4",
        ),
        ((torch.ones(2, 6), torch.ones(6)), {"groups": 0}, ValueError, r"groups must be at least 1, got 0"),
        (
            (torch.ones(2, 6), torch.ones(6), torch.ones(6)),
            {},
            ValueError,
            r"z must have the shape of x, \(2, 6\)",
        ),
        (
            (torch.ones(2, 6).double(), torch.ones(6)),
            {},
            TypeError,
            r"weight must be one of float64, got torch.float32",
        ),
        ((torch.ones(()), torch.ones(6)), {}, ValueError, r"x must have shape \(..., C\), got a scalar"),
    ],
)
def test_bad_arguments_are_named(arguments: Any, options: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        ops.gated_rms_norm(*arguments, **options)


def _sample(gated: bool, **options: Any) -> Sample:
    def function(*tensors: Tensor) -> Tensor:
        return ops.gated_rms_norm(*tensors, **options)

    return Sample("gated_rms_norm", function, tuple(draw(2, 4, gated)))


SAMPLES = {
    "gated_rms_norm": _sample(True),
    "gated_rms_norm-last-groups": _sample(True, gate_first=False, groups=2),
    "gated_rms_norm-no-gate": _sample(False),
}
