"""Second derivatives through a kernel against those through plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def of(function: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The first derivatives of a random projection of the results, then the gradients of one of those, of the
    weights of the first projection too.
    """
    torch.manual_seed(7)
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    results = function(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    weights = [torch.randn_like(r).requires_grad_() for r in results]
    first = torch.autograd.grad(results, inputs, weights, create_graph=True)
    again = [torch.randn_like(g) for g in first]
    return [*first, *torch.autograd.grad(first, [*inputs, *weights], again, materialize_grads=True)]


def assert_those_of_torch(function: Callable[..., Any], inputs: Sequence[Tensor], backend: str) -> None:
    """``function(backend)`` is differentiated; tests/ops/test_contract.py holds those of "torch" against differences.

    Element by element and to rounding, and with a hundredth of the calls that gradgradcheck makes of an interpreter.
    """
    got, want = of(function(backend), inputs), of(function("torch"), inputs)
    assert any((w != 0).any() for w in want[len(inputs) :])
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
