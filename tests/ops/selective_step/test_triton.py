"""The Triton kernel of the selective steps against the step as written: interpreted, or compiled on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sequence_kernels import ops
from tests.ops import second_derivatives
from tests.triton_kernels import device, skip_reason

from . import exact
from .test_selective_step import draw

if skip_reason() is not None:
    pytest.skip(str(skip_reason()), allow_module_level=True)

import triton

from sequence_kernels.ops import dispatch
from sequence_kernels.ops.selective_step import triton as kernels

pytestmark = pytest.mark.checks("oracle", "interpreter", "GPU", of="selective_step/triton")

DEVICE = device()


def run(x: exact.Step, numbers: exact.Numbers, in_place: bool) -> torch.Tensor:
    """Step, compare, and return the states."""
    on = exact.Step(*(None if t is None else t.clone().to(DEVICE) for t in x))
    after = on.state if in_place else torch.full_like(on.state, float("nan"))
    y = kernels.kernel(*on, *numbers, after)
    exact.check(x, numbers, y.cpu(), after.cpu())
    return after.cpu()


@pytest.mark.on_ptx
@pytest.mark.parametrize("shape", exact.SHAPES, ids=str)
def test_step(shape: Any) -> None:
    run(exact.sample(*shape), exact.Numbers(), in_place=False)
    run(exact.sample(*shape, bare=True), exact.PLAIN, in_place=True)


@pytest.mark.parametrize("dtype", [t for t in exact.TOLERANCE if t != torch.float32], ids=str)
@pytest.mark.parametrize("shape", exact.SHAPES[1:2] + exact.SHAPES[3:4], ids=str)
def test_other_precisions(shape: Any, dtype: torch.dtype) -> None:
    run(exact.sample(*shape, dtype=dtype), exact.Numbers(), in_place=False)


def filled(rows: int, heads: int, width: int, size: int, groups: int, one_decay: bool) -> Any:
    """Such a shape, of which all tiles are filled but the last channels'."""
    heads = heads if width > 1 else triton.next_power_of_2(heads)
    width = width if width == 1 else triton.next_power_of_2(width) + (8 if width > 16 else 0)
    size = triton.next_power_of_2(max(size, 1))
    return max(rows, 2), heads, width, size, heads if groups > 2 else groups, one_decay


def smaller(shape: Any, less: int) -> Any:
    """A shape for the same kernel with so many heads or channels, and entries, fewer."""
    rows, heads, width, size, groups, one_decay = shape
    if width > 1:
        width, groups = max(width - less, width // 2 + 1), heads if less % 2 else groups
    else:
        heads = max(heads - less, heads // 2 + 1)
        groups = 1 if groups < 3 else heads
    return rows, heads, width, max(size - less, size // 2 + 1), groups, one_decay


def grown(x: exact.Step, numbers: exact.Numbers) -> exact.Step:
    """With steps that make e^76 of a state, or e^700 in float64: not far below the largest number. Results of 16 bits
    cannot hold that, and read none of it."""
    x.delta.fill_(10.0 if numbers.softplus else 1.0)  # of 1.5 at most, or of 1
    if x.u.dtype not in (torch.float32, torch.float64):
        x.c.zero_()
    rate = 700.0 if x.state.dtype == torch.float64 else 50.625 if numbers.softplus else 76.0
    return x._replace(a=torch.full_like(x.a, rate))


def of_decays_alone(x: exact.Step, rates: torch.Tensor) -> exact.Step:
    """With states of 1 and inputs of 0: a step of dt makes e^(dt a) of each, where a goes through the rates."""
    for t in (x.u, x.bias):
        if t is not None:
            t.zero_()
    a = rates.to(x.a.dtype)[torch.arange(x.a.numel()) % len(rates)].view(x.a.shape)
    return x._replace(state=torch.ones_like(x.state), a=a)


def states_after(x: exact.Step, numbers: exact.Numbers) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel's, and what they are."""
    after = torch.full_like(x.state, float("nan")).to(DEVICE)
    kernels.kernel(*(None if t is None else t.to(DEVICE) for t in x), *numbers, after)
    return after.cpu(), exact.step(x, numbers)[1]


def assert_last_digits(x: exact.Step, numbers: exact.Numbers) -> None:
    """Of e^x at the ends of its series' range, each to a unit in its last place; and e^x too large to be a number."""
    x.delta.fill_(10.0 if numbers.softplus else 1.0)  # of 1.5 at most, or of 1
    dt = 1.5 if numbers.softplus else 1.0
    ends = torch.linspace(0.31, 0.346, 29) * torch.tensor([-1.0, 1.0]).repeat(15)[:29]
    after, want = states_after(of_decays_alone(x, ends / dt), numbers)
    units = 1.3 if after.dtype == torch.float32 else 2.3  # of 1: of the largest it is half of one
    assert (after.double() - want).abs().max() <= units * torch.finfo(after.dtype).eps
    most = 200.0 if after.dtype == torch.float32 else 2000.0
    after, want = states_after(of_decays_alone(x, torch.tensor([-0.3, most, -0.4]) / dt), numbers)
    torch.testing.assert_close(after, want.to(after.dtype))


#: Kernels of the tests below, which look at something else.
ELSEWHERE = [
    ((4, 16, 1, 16, 1, False), torch.float32, exact.PLAIN),
    ((4, 16, 1, 16, 1, True), torch.float32, exact.PLAIN),
    ((3, 8, 1, 2, 1, False), torch.float32, exact.PLAIN),
    ((4, 4, 1, 8, 2, False), torch.float64, exact.PLAIN),
    ((3, 4, 4, 8, 2, True), torch.float64, exact.PLAIN),
    ((2, 2, 1, 2, 1, False), torch.float64, exact.PLAIN._replace(softplus=True)),
]
KERNELS = [
    (filled(*s), torch.float32, numbers) for s in exact.SHAPES for numbers in (exact.Numbers(), exact.PLAIN)
]
KERNELS += [
    (filled(*s), dtype, exact.Numbers())
    for s in exact.SHAPES[1:2] + exact.SHAPES[3:4]
    for dtype in exact.TOLERANCE
    if dtype != torch.float32
]


@pytest.mark.thorough
@pytest.mark.parametrize(("shape", "dtype", "numbers"), KERNELS + ELSEWHERE, ids=str)
def test_tiles_that_are_filled(shape: Any, dtype: torch.dtype, numbers: exact.Numbers) -> None:
    """And almost; and states that grow as much as they can."""
    options = {"dtype": dtype, "bare": numbers == exact.PLAIN and dtype == torch.float32}
    for less in (0, 1, 2, 3, 5, 6, 7):
        x = exact.sample(*smaller(shape, less), **options)
        if not numbers.softplus:
            x.delta.abs_()  # of so many, some would grow beyond float32
        run(x, numbers, in_place=False)
    if dtype != torch.float64 or not numbers.softplus:
        run(grown(exact.sample(*shape, **options), numbers), numbers, in_place=True)
        assert_last_digits(exact.sample(*shape, **options), numbers)
    if dtype == torch.float64:
        x = exact.sample(*shape, state_indices=[*range(shape[0])][::-1], **options)
        x.delta.abs_()
        run(x, numbers, in_place=True)


@pytest.mark.parametrize("one_decay", [False, True])
def test_state_indices(one_decay: bool) -> None:
    """Idle rows give 0, slots that do not exist NaN; the states of others keep their bits."""
    indices = [4, -1, 0, 5, 2, -1, 1, 99, 8]
    width = 2 if one_decay else 1
    x = exact.sample(9, 3, width, 4, 1, one_decay, state_indices=indices, slots=9)
    run(x, exact.Numbers(), in_place=True)


@pytest.mark.parametrize("one_decay", [False, True])
def test_what_moves_a_state_is_added_at_once(one_decay: bool) -> None:
    x = exact.nearly_still(one_decay)
    exact.rounded_once(x, run(x, exact.PLAIN, in_place=False))


def test_fast_and_slow_decays() -> None:
    """Also where e^x - 1 is -1, or infinite; dt of NaN spoils its channel alone."""
    x = exact.sample(1, 8, 1, 2, 1, False, bare=True)
    rates = torch.tensor([0.0, -1e-6, -0.3, -20.0, -1e4, 1e-3, 60.0, 1.0])
    x = x._replace(a=rates.unsqueeze(1).expand(8, 2).contiguous(), delta=torch.ones(1, 8))
    run(x, exact.PLAIN, in_place=False)
    spoilt = x._replace(delta=torch.where(torch.arange(8) == 3, torch.nan, 1.0).unsqueeze(0))
    run(spoilt, exact.Numbers(False, 0.0, 2.0), in_place=False)


@pytest.mark.launches_nothing
def test_empty_dimensions() -> None:
    for rows, heads, width in ((0, 2, 1), (2, 0, 1), (2, 3, 0)):
        run(exact.sample(rows, heads, width, 3, 1, True), exact.PLAIN, in_place=True)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel serves backend="triton" of the ops, on the CPU too."""
    monkeypatch.setitem(dispatch._DEVICES, "triton", ("cpu", "cuda"))
    monkeypatch.setattr(dispatch, "PROVEN_FIRST", ())
    dispatch.forget()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("width", [None, 3])
def test_registered_ops(width: int | None) -> None:
    """Any batch, any layout of inputs and state, in place and with slots, as plain torch has them."""
    given = draw(6, 4, width, 5, 2)
    batched = [t.to(DEVICE) for t in (given.state, given.u, given.delta, given.b, given.c, given.z)]

    def call(batch: list[torch.Tensor], backend: str, **options: Any) -> Any:
        state, u, delta, b, c, z = batch
        a, d, bias = (t.to(DEVICE) for t in (given.a, given.d, given.delta_bias))
        op = ops.selective_step_ if options else ops.selective_step
        return op(state, u, delta, a, b, c, d, z, bias, backend=backend, **options)

    def backwards(t: torch.Tensor) -> torch.Tensor:
        return t.permute(*range(t.dim())[::-1]).contiguous().permute(*range(t.dim())[::-1])

    two = [t.unflatten(0, (2, 3)) for t in batched]
    for batch in (two, [t[0, 0] for t in two], [backwards(t) for t in batched]):
        for want, got in zip(*(call(batch, b) for b in ("torch", "triton")), strict=True):
            torch.testing.assert_close(got, want)
    slots = torch.tensor([5, -1, 0, 2, 3, 1], device=DEVICE)
    for indices in (None, slots, slots.int()):
        pools = [backwards(batched[0].clone()) for _ in "12"]
        y, other = (
            call([pool, *batched[1:]], b, state_indices=indices)
            for pool, b in zip(pools, ("torch", "triton"), strict=True)
        )
        torch.testing.assert_close(other, y)
        torch.testing.assert_close(*pools)


@pytest.mark.checks("gradcheck", of="selective_step/triton")
@pytest.mark.usefixtures("registered")
def test_first_and_second_derivatives() -> None:
    """The values are the kernel's; the derivatives are plain torch's."""
    given = [t.to(DEVICE).requires_grad_() for t in draw(2, 2, None, 2).leaves()]

    def function(backend: str) -> Any:
        return lambda *tensors: ops.selective_step(*tensors, delta_softplus=True, backend=backend)

    assert torch.autograd.gradcheck(function("triton"), given, fast_mode=True)
    second_derivatives.assert_those_of_torch(function, given, "triton")
