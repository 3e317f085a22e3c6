"""Steppers of models that have a ``step`` of their own around layers of the library."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sequence_kernels import S4D, CausalConv, Mamba, SequenceModule, use_backend
from sequence_kernels.stepping.parts import InOneCall

from .test_law import close
from .test_stepper import native, stepped

WIDTH = 6


class Stack(SequenceModule):
    """Layers with norms before them and what comes in added to what comes out, as its author wrote it."""

    def __init__(self, layers: list[SequenceModule] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.d_model = self.d_output = WIDTH
        layers = layers or [S4D(WIDTH, 8, transposed=False), CausalConv(WIDTH, 3), Mamba(WIDTH, 4)]
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in layers)
        self.out = nn.Linear(WIDTH, WIDTH)

    def default_state(self, *batch_shape: int, device: Any = None) -> Any:
        return [layer.default_state(*batch_shape, device=device) for layer in self.layers]

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        states = []
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            y, after = layer(norm(x), None if state is None else state[i])
            x = x + y
            states.append(after)
        return self.out(x), None if state is None else states

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        states = []
        for layer, norm, before in zip(self.layers, self.norms, state, strict=True):
            y, after = layer.step(norm(x), before)
            x = x + y
            states.append(after)
        return self.out(x), states


class Late(Stack):
    """Gives back states that it has kept, which a step must not have changed; in eager Python alone."""

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        ahead, _ = super().step(x, state)
        if float(ahead.sum()) > 0:
            return super().step(x, state)
        return ahead, state


@native
@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 2)])
def test_each_layer_of_a_step_in_python_is_one_call(batch_shape: tuple[int, ...]) -> None:
    module = Late().double().eval()
    x = torch.randn(*batch_shape, 12, WIDTH, dtype=torch.float64)
    want, last = stepped(module, x, batch_shape)
    stepper = module.stepper(batch_shape)
    close(torch.stack([stepper.step(x[..., t, :]) for t in range(12)], -2), want, 1e-9)
    close(stepper.state, last, 1e-9)
    stepper.reset()
    close(stepper.forward(x), want, 1e-9)
    served = [part for part in stepper._source.modules() if isinstance(vars(part).get("step"), InOneCall)]
    assert len(served) == 3
    assert not any("step" in vars(part) for part in module.modules())


@native
def test_what_a_program_cannot_serve_goes_to_the_layer() -> None:
    class Slow(Stack):
        def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            float(x.sum())
            y, after = self.layers[0].step(x, state[0], rate=0.5)
            with pytest.raises(ValueError, match="d_model"):
                self.layers[0].step(x[..., :2], after)
            return self.layers[0].step(y, None)[0], [after]

        def default_state(self, *batch_shape: int, device: Any = None) -> Any:
            return [self.layers[0].default_state(*batch_shape, device=device)]

    module = Slow().eval()
    x = torch.randn(2, 5, WIDTH)
    want, last = stepped(module, x, (2,))
    stepper = module.stepper((2,))
    close(torch.stack([stepper.step(x[:, t]) for t in range(5)], 1), want, 1e-5)
    close(stepper.state, last, 1e-5)


def test_plain_torch_has_no_programs() -> None:
    with use_backend("torch"):
        stepper = Stack().stepper((2,))
    assert not any("step" in vars(part) for part in stepper._source.modules())
