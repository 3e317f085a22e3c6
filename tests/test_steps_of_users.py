"""Steppers of models that have a ``step`` of their own around layers of the library."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sequence_kernels
from sequence_kernels import S4D, CausalConv, Mamba, SequenceModule, use_backend
from sequence_kernels.stepping.parts import InOneCall

from .stream import library
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
    with pytest.warns(UserWarning, match=r"sum\(\) is not known to it, in Late, line \d+ of .*test_steps_of"):
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
    stepper = module.stepper((2,), derive=False)
    close(torch.stack([stepper.step(x[:, t]) for t in range(5)], 1), want, 1e-5)
    close(stepper.state, last, 1e-5)


def test_plain_torch_has_no_programs() -> None:
    with use_backend("torch"):
        stepper = Stack().stepper((2,))
    assert not any("step" in vars(part) for part in stepper._source.modules())


class Gated(Stack):
    """Values that are used again later, slices, constants, and a model of the library within."""

    def __init__(self) -> None:
        inner = sequence_kernels.SequenceModel(
            WIDTH, n_layers=2, layer=["s4d", "ff"], residual="R", norm="layer"
        )
        super().__init__([S4D(WIDTH, 8, transposed=False, gate=None), inner])
        self.mix = nn.Linear(2 * WIDTH, 2 * WIDTH, bias=False)
        self.scale = nn.Parameter(torch.randn(WIDTH))
        self.rms = nn.RMSNorm(WIDTH)

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        first, a = self.layers[0].step(self.norms[0](x), state[0])
        left, right = self.mix(torch.cat((first, x), -1)).chunk(2, -1)
        gate = torch.sigmoid(right) * (1 - self.scale * left / 2)
        second, b = self.layers[1].step(self.rms(gate * gate), state[1])
        y = torch.cat((x[..., 1:], second[:, :1], -left), -1) if x.dim() == 2 else x
        y = nn.functional.glu(y, -1) + nn.functional.silu(first - second.square())
        return self.out(y + x), [a, b]


class Turned(Stack):
    """Its layers in another order than their states."""

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        states = list(state)
        for at in (2, 0, 1):
            x, states[at] = self.layers[at].step(x, state[at])
        return x, states


@native
@pytest.mark.parametrize("make", [Stack, Gated, Turned])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_in_python_is_one_call(make: Callable[[], Stack], dtype: torch.dtype) -> None:
    module = make().to(dtype).eval()
    x = torch.randn(19, 9, WIDTH, dtype=dtype)
    want, last = stepped(module, x, (19,))
    tolerance = 1e-9 if dtype is torch.float64 else 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stepper = module.stepper((19,))
    assert stepper._program is not None
    close(torch.stack([stepper.step(x[:, t]) for t in range(9)], 1), want, tolerance)
    close(stepper.state, last, tolerance)
    stepper.reset()
    close(stepper.forward(x[:, :5]), want[:, :5], tolerance)
    rows = torch.tensor([4, -1, 2])
    y = stepper.step(x[rows, 5], state_indices=rows)
    close(y[[0, 2]], want[[4, 2], 5], tolerance)
    with torch.no_grad():
        module.out.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="refresh"):
        stepper.step(x[:, 0])


@native
def test_the_c_library_runs_it_with_the_same_bits(tmp_path: Path) -> None:
    stepper = Gated().eval().stepper((3,))
    stepper.save(tmp_path / "gated.skp")
    saved = library.Model(tmp_path / "gated.skp", streams=3)
    for x in torch.randn(6, 3, WIDTH):
        assert torch.equal(saved.step(x), stepper.step(x))


class Stateful(Stack):
    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, after = super().step(x, state)
        return y, self.last(x, state, after)

    def last(self, x: Tensor, state: Any, after: Any) -> Any:
        return after


class Counting(Stateful):
    def last(self, x: Tensor, state: Any, after: Any) -> Any:
        self.count = getattr(self, "count", 0) + 1
        return after


class Forgetful(Stateful):
    def last(self, x: Tensor, state: Any, after: Any) -> Any:
        return [after[0], state[1], after[2]]


class Random(Stack):
    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return super().step(x + torch.rand(WIDTH, dtype=x.dtype), state)


class Twice(Stack):
    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return super().step(super().step(x, state)[0], state)


class Scaling(Stack):
    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return super().step(x, [0.5 * state[0], *state[1:]])


class Sorting(Stack):
    def __init__(self) -> None:
        super().__init__()
        self.norms[1] = nn.Softmax(-1)


@native
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Counting, "changes attributes"),
        (Forgetful, "state that step returns"),
        (Random, "not what another step does"),
        (Twice, r"layers\.0 \(S4D\) is stepped .* twice"),
        (Scaling, r"__r?mul__\(\) of the state|mul\(\) of the state"),
        (Sorting, r"softmax\(\) is not known to it, in norms\.1 \(Softmax\)"),
    ],
)
def test_what_cannot_be_one_call_is_named(make: Callable[[], Stack], reason: str) -> None:
    module = make().eval()
    with pytest.warns(UserWarning, match=f"steps of a {make.__name__} run in Python.*{reason}"):
        stepper = module.stepper((2,))
    assert stepper._program is None
    if make is not Random:
        x = torch.randn(2, 3, WIDTH)
        want, last = stepped(module, x, (2,))
        close(torch.stack([stepper.step(x[:, t]) for t in range(3)], 1), want, 1e-5)
        close(stepper.state, last, 1e-5)


@native
def test_any_module_has_a_stepper(tmp_path: Any) -> None:
    torch.manual_seed(0)
    layer = S4D(WIDTH, 8, transposed=False)
    chain = nn.Sequential(nn.Linear(4, WIDTH), layer, nn.ReLU(), nn.Linear(WIDTH, 3)).eval()
    stepper = sequence_kernels.stepper(chain, (2,))
    x = torch.randn(2, 7, 4)
    with torch.no_grad():
        y, state = layer(chain[0](x), layer.default_state(2))
        want = chain[3](chain[2](y))
    close(torch.stack([stepper.step(x[:, t]) for t in range(7)], 1), want, 1e-5)
    close(stepper.state, [None, state, None, None], 1e-5)
    stepper.save(tmp_path / "chain.skp")

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def default_state(self, *batch_shape: int, device: Any = None) -> Any:
            return {"layer": self.layer.default_state(*batch_shape, device=device)}

        def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
            y, after = self.layer.step(x, state["layer"])
            return x + y, {"layer": after}

    stepper = sequence_kernels.stepper(Plain(), (2,))
    assert stepper._program is not None
    assert sequence_kernels.stepper(layer, (2,)).module is layer
    with pytest.raises(TypeError, match="got Linear"):
        sequence_kernels.stepper(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="d_model must be given"):
        sequence_kernels.stepper(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="must be that of the model, 6, got 5"):
        sequence_kernels.stepper(layer, d_model=5)
