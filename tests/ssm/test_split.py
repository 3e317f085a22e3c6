"""A part whose state is awaited: outputs, states and gradients are those of a part whose state is known."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor

from sequence_kernels import S4, S4D, use_backend
from sequence_kernels.awaited import Awaited, Elapsed, Transition
from sequence_kernels.ssm import split

from ..ops.devices import backends

LAYERS: dict[str, Callable[[], S4 | S4D]] = {
    "s4d": lambda: S4D(6, 8, transposed=False),
    "s4d-of-two-channels": lambda: S4D(6, 8, channels=2, transposed=False),
    "s4": lambda: S4(6, 8, transposed=False),
}


class First:
    """The exchange of the only part there is."""

    def __call__(
        self, start: Tensor, end: Tensor, transition: Transition, elapsed: Elapsed, backwards: bool = False
    ) -> tuple[Tensor, Tensor]:
        return start.clone(), transition(elapsed)(start) + end

    def joined(self, start: Tensor, part: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def slopes(layer: S4 | S4D, x: Tensor, start: Tensor, awaited: bool, second: bool) -> list[Tensor]:
    """Outputs, the state after them, and the gradients of both; or of a sum of those gradients."""
    x, start = x.clone().requires_grad_(), start.clone().requires_grad_()
    y, after = layer(x, Awaited(start, First()) if awaited else start)
    loss = y.pow(3).sum() + after.abs().pow(3).sum()
    inputs = [x, start, *layer.parameters()]
    found = torch.autograd.grad(loss, inputs, create_graph=second)
    if second:
        found = torch.autograd.grad(sum(g.abs().square().sum() for g in found), inputs)
    return [y, after, *found]


@pytest.mark.parametrize("backend", backends("ssm_conv"))
@pytest.mark.parametrize("length", [0, 5, 128, 200])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_an_awaited_state_that_is_known(make: Callable[[], S4 | S4D], length: int, backend: str) -> None:
    torch.manual_seed(0)
    layer = make().double()
    x, start = torch.randn(2, length, 6, dtype=torch.float64), torch.randn(2, 6, 4, dtype=torch.complex128)
    if layer.default_state(2).dim() == 4:
        start = start.unsqueeze(1)
    with mock.patch.object(split, "TURNED", 64), use_backend(backend):
        for second in (False, True) if length == 5 else (False,):
            wanted, got = (slopes(layer, x, start, awaited, second) for awaited in (False, True))
            for one, other in zip(got, wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
