"""What a float32 state loses in a step, and in many: the rounding of the new state, and nothing else."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sequence_kernels import S4, S4D, SequenceModule, native, ops

from ...test_law import WIDTH, Factory, cases
from ..devices import backends, device_of, gpu_backends
from .exact import Step, nearly_still, rounded_up

needs_native = pytest.mark.skipif(native.unavailable("cpu") is not None, reason="needs the native library")
HEADS = 2


@pytest.mark.parametrize("backend", backends("ssm_step") + gpu_backends("ssm_step"))
@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("rows", [1, 3])
def test_what_moves_a_state_is_added_at_once(backend: str, rank: int | None, rows: int) -> None:
    x = nearly_still(rows, rank)
    on = Step(*(None if t is None else t.to(device_of(backend)) for t in x))
    _, after = ops.ssm_step(on.state, on.u, *on[3:], backend=backend)
    rounded_up(after.cpu())


def has_complex_state(module: SequenceModule) -> bool:
    state = module.default_state(1) if module.causal else None
    return isinstance(state, Tensor) and state.is_complex()


#: The logarithms of how far a step goes.
SPEEDS = ("log_dt", "nu_log", "theta_log", "gamma_log")


def slow(layer: SequenceModule) -> SequenceModule:
    """The layer with dynamics of 1e-4 a step."""
    speeds = [p for name, p in layer.named_parameters() if name.endswith(SPEEDS)]
    assert speeds, f"no parameter of {type(layer).__name__} is one of {SPEEDS}"
    for parameter in speeds:
        torch.nn.init.constant_(parameter, math.log(1e-4))
    return layer.eval()


@pytest.mark.parametrize("way", ["step", "stepper"])
@pytest.mark.parametrize("make", cases(has_complex_state))
@torch.no_grad()
def test_a_step_rounds_once(make: Factory, way: str) -> None:
    """The new state is within 0.75 of its last digit of the exact one; rounding A itself loses up to 1.5 more."""
    layer = slow(make())
    x, zeros = torch.randn(50, WIDTH) / 100, layer.default_state(50)
    state = torch.complex(1 + torch.rand(zeros.shape), 1 + torch.rand(zeros.shape))
    _, exact = copy.deepcopy(layer).double().step(x.double(), state.to(torch.complex128))
    if way == "stepper":
        stepper = layer.stepper((50,))
        stepper.state = state
        stepper.step(x)
        found = stepper.state
    else:
        found = layer.step(x, state)[1]
    want, got = torch.view_as_real(exact), torch.view_as_real(found)
    digit = 2.0 ** (want.abs().log2().floor() - 23)
    assert float(((got - want).abs() / digit).max()) < 0.75


def drive(layer: S4, steps: int, *, zeros: bool = False) -> tuple[float, float]:
    """Relative errors of the state, and of the output over the last tenth, after ``steps`` random inputs.

    With ``zeros`` after as many zeros more, of the last of them.
    """
    step = torch.ops.sequence_kernels_native.ssm_step.default
    single, double = _given(layer), _given(copy.deepcopy(layer).double())
    state = torch.zeros(1, HEADS, layer.n, dtype=torch.complex64)
    exact = state.to(torch.complex128)
    blocks, error, size = steps // 1000, 0.0, 0.0
    for block in range(2 * blocks if zeros else blocks):
        inputs = torch.randn(1000, 1, HEADS) if block < blocks else torch.zeros(1000, 1, HEADS)
        found, wanted = [], []
        for u, wide in zip(inputs, inputs.double(), strict=True):
            found.append(step(state, None, u, *single, state))
            wanted.append(step(exact, None, wide, *double, exact))
        y, want = torch.cat(found), torch.cat(wanted)
        if block >= (1.9 if zeros else 0.9) * blocks:
            error += float((y - want).square().sum())
            size += float(want.square().sum())
    return float((state - exact).norm() / exact.norm()), math.sqrt(error / size)


def _given(layer: S4) -> list[Tensor | None]:
    """What the kernel takes, without the skip."""
    return [None if t is None else t.resolve_conj().contiguous() for t in layer.system().step_parameters()]


def random_walk(dt: float, steps: int) -> float:
    """What rounding a float32 state costs, that decays by half a dt a step: see the op's README."""
    return 2.5e-8 * math.sqrt((1 - math.exp(-dt * steps)) / dt)


def slow_by(make: Callable[..., S4], dt: float) -> S4:
    layer = make(HEADS)
    torch.nn.init.constant_(layer.get_parameter("kernel.kernel.log_dt"), math.log(dt))
    return layer


@needs_native
@torch.no_grad()
@pytest.mark.parametrize("make", [S4, S4D])
def test_many_steps(make: Callable[..., S4]) -> None:
    state, output = drive(slow_by(make, 1e-4), 100_000)
    assert state < 1e-5
    assert output < 1e-5


@needs_native
@pytest.mark.thorough
@torch.no_grad()
@pytest.mark.parametrize("make", [S4, S4D])
@pytest.mark.parametrize("dt", [1e-6, 1e-5, 1e-4, 1e-3])
def test_a_million_steps(make: Callable[..., S4], dt: float) -> None:
    state, output = drive(slow_by(make, dt), 1_000_000)
    bound = 1e-5 if dt >= 1e-4 else 3 * random_walk(dt, 1_000_000)
    assert state < bound
    assert output < bound


@needs_native
@pytest.mark.thorough
@torch.no_grad()
@pytest.mark.parametrize(("make", "bound"), [(S4, 2e-3), (S4D, 3e-3)])
def test_a_million_steps_and_a_million_zeros(make: Callable[..., S4], bound: float) -> None:
    state, _ = drive(slow_by(make, 1e-6), 1_000_000, zeros=True)
    assert state < bound
