"""The short causal convolution of packed sequences against that of each of them alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops
from sequence_kernels.ops.causal_conv1d import _mended
from sequence_kernels.ops.dispatch import implementation

from ..devices import backends
from ..packed import BAD_BOUNDS, LENGTHS, bounds_of, close
from ..sample import Sample, real

every_backend = pytest.mark.parametrize("backend", backends("causal_conv1d_packed"))
LONG = LENGTHS | {"blocks": [128, 130, 2, 0, 257, 3]}
every_length = pytest.mark.parametrize("lengths", LONG.values(), ids=LONG)


def drawn(lengths: list[int], channels: int, width: int) -> list[Tensor]:
    """x, weight, bias and initial states."""
    return [
        real(1, channels, sum(lengths)),
        real(channels, width, seed=1),
        real(channels, seed=2),
        real(len(lengths), channels, width - 1, seed=3),
    ]


def call(tensors: list[Tensor], backend: str | None, bounds: Tensor | None = None) -> tuple[Tensor, Tensor]:
    x, weight, bias, state = tensors
    options = {"activation": "silu", "initial_state": state, "cu_seqlens": bounds}
    return ops.causal_conv1d(x, weight, bias, **options, backend=backend)


def alone(tensors: list[Tensor], lengths: list[int]) -> tuple[Tensor, Tensor]:
    x, weight, bias, states = tensors
    results = [
        call([part, weight, bias, states[q : q + 1]], "torch") for q, part in enumerate(x.split(lengths, -1))
    ]
    return torch.cat([y for y, _ in results], -1), torch.cat([final for _, final in results])


def _sample(*tensors: Tensor) -> Sample:
    def function(x: Tensor, weight: Tensor, bias: Tensor, *state: Tensor) -> tuple[Tensor, Tensor]:
        before = state[0] if state else None
        return ops.causal_conv1d(x, weight, bias, initial_state=before, cu_seqlens=bounds_of([4, 0, 1]))

    return Sample("causal_conv1d_packed", function, tensors)


SAMPLES = {
    "causal_conv1d_packed": _sample(*drawn([4, 0, 1], 2, 4)),
    "causal_conv1d_packed-bare": _sample(*drawn([4, 0, 1], 2, 3)[:3]),
}


@pytest.mark.checks("oracle", "gradcheck")
@every_backend
@every_length
@pytest.mark.parametrize("width", [1, 3, 4, 6])
def test_each_sequence_is_as_if_it_were_alone(backend: str, lengths: list[int], width: int) -> None:
    tensors = [t.requires_grad_() for t in drawn(lengths, 5, width)]
    got, want = call(tensors, backend, bounds_of(lengths).int()), alone(tensors, lengths)
    close(got, want)
    weights = [torch.randn_like(t) for t in want]
    close(
        *(torch.autograd.grad(results, tensors, weights, materialize_grads=True) for results in (got, want))
    )


@every_length
@pytest.mark.parametrize("width", [1, 4])
def test_what_gpus_take_instead(lengths: list[int], width: int) -> None:
    tensors = drawn(lengths, 5, width)
    close(_mended(*tensors, bounds_of(lengths), True, "torch"), alone(tensors, lengths))


@every_backend
def test_what_is_not_finite_stays_in_its_sequence(backend: str) -> None:
    lengths, results = [5, 70, 2, 3], []
    tensors = drawn(lengths, 6, 4)
    for value in (0.0, float("nan")):
        x = tensors[0].clone()
        x[..., 74] = value
        x.requires_grad_()
        y, final = call([x, *tensors[1:]], backend, bounds_of(lengths))
        (g,) = torch.autograd.grad(y.sum() + final.sum(), x)
        results.append((y, final, g))
    others = torch.tensor([*range(5), *range(75, 80)])
    (y, final, g), (y_bad, final_bad, g_bad) = results
    assert not y_bad.isfinite().all()
    assert torch.equal(y[..., others], y_bad[..., others])
    assert torch.equal(final[[0, 2, 3]], final_bad[[0, 2, 3]])
    assert torch.equal(g[..., others], g_bad[..., others])


@every_backend
@pytest.mark.parametrize(("bounds", "said"), BAD_BOUNDS)
def test_bounds_that_are_none(backend: str, bounds: list[int], said: str) -> None:
    x, weight, bias, _ = drawn([9], 2, 3)
    at = torch.tensor(bounds)
    with pytest.raises(ValueError, match=f"cu_seqlens.*({said})"):
        ops.causal_conv1d(x, weight, bias, cu_seqlens=at, backend=backend)
    with pytest.raises((ValueError, RuntimeError), match=f"cu_seqlens.*({said})"):
        implementation("causal_conv1d_packed", backend)(x.mT, weight, bias, None, at, False)
