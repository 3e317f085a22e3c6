"""The Triton kernels of the selective scan against the recurrence in float64: interpreted, or compiled on a GPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops import second_derivatives
from tests.triton_kernels import compiled, device, skip_reason

from ..sample import F64, real
from .test_selective_scan import draw, error

if skip_reason() is not None:
    pytest.skip(str(skip_reason()), allow_module_level=True)

import triton

from sequence_kernels import ops
from sequence_kernels.ops import dispatch
from sequence_kernels.ops.selective_scan import reference
from sequence_kernels.ops.selective_scan import triton as kernels

pytestmark = pytest.mark.checks("oracle", "interpreter", "GPU", of="selective_scan/triton")

DEVICE = device()
F32 = torch.float32
TOLERANCE = {F64: 1e-13, F32: 5e-7 if DEVICE == "cpu" else 3e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
#: Batch, channels, length, entries and groups; all options or none; the dtype of sequences, and whether time is last.
CASES = [
    ((1, 4, 70, 4, 1), True, F32, False),
    ((1, 3, 65, 3, 1), False, F64, True),
    ((1, 2, 5, 20, 2), True, F32, False),
    ((1, 4, 9, 3, 1), True, torch.bfloat16, True),
    ((1, 4, 9, 3, 1), True, torch.float16, False),
]


def call(sizes: Any, whole: bool, dtype: torch.dtype, time_last: bool) -> tuple[list[Any], list[Tensor]]:
    """The op's arguments and the gradients of its results; sequences lie with the channels or the time last."""
    given = draw(*sizes, all_options=whole)
    parameter = F64 if dtype == F64 else F32

    def sequence(t: Tensor | None) -> Tensor | None:
        return None if t is None else (t.mT if time_last else t.mT.contiguous()).to(dtype)

    b, c = (m.movedim(-1, 1).to(dtype) for m in (given.b, given.c))
    small = [
        None if t is None else t.to(parameter)
        for t in (given.a, given.d, given.delta_bias, given.initial_state)
    ]
    a, d, bias, state = small
    limit = (True, -math.inf, math.inf) if whole else (False, 0.05, 1.0)
    arguments = [sequence(given.u), sequence(given.delta), a, b, c, d, sequence(given.z), bias, state, *limit]
    gradients = sequence(torch.cos(given.u)), torch.sin(real(sizes[0], *given.a.shape)).to(parameter)
    return arguments, list(gradients)  # type: ignore[arg-type]


def compare(arguments: list[Any], gradients: list[Tensor], dtype: torch.dtype) -> None:
    def on(how: Any, values: list[Any]) -> list[Any]:
        return [how(v) if isinstance(v, Tensor) else v for v in values]

    wide, there = (
        on(Tensor.double, [*gradients, *arguments]),
        on(lambda t: t.to(DEVICE), [*gradients, *arguments]),
    )
    want, got = reference.selective_scan(*wide[2:]), kernels.selective_scan(*there[2:])
    want += reference.selective_scan_backward(*wide[:11], want[2], *wide[11:])
    got += kernels.selective_scan_backward(*there[:11], got[2], *there[11:])
    for one, other in zip(got, want, strict=True):
        bound = max(TOLERANCE[one.dtype], TOLERANCE[dtype] if dtype == F64 else TOLERANCE[F32])
        one = one.cpu().double()
        assert error(one, other) < bound
        if other.numel():
            assert (one - other).abs().max() <= bound * other.abs().max()  # one element among many


@pytest.mark.on_ptx
@pytest.mark.parametrize(("sizes", "whole", "dtype", "time_last"), CASES, ids=str)
def test_results_and_gradients(sizes: Any, whole: bool, dtype: torch.dtype, time_last: bool) -> None:
    compare(*call(sizes, whole, dtype, time_last), dtype)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("sizes", "whole", "dtype", "time_last"), [*CASES, ((1, 3, 65, 3, 1), True, F64, False)], ids=str
)
def test_tiles_that_are_filled(sizes: Any, whole: bool, dtype: torch.dtype, time_last: bool) -> None:
    """By time, channels and entries, of several groups and sequences, and in each direction one more; time steps too
    large for their logarithm."""
    entries = triton.next_power_of_2(sizes[3])
    channels = 1 if dtype == F64 else max(1, 16 // entries)
    arguments, gradients = call((2, 2 * (channels + 1), 67, entries, 2), whole, dtype, time_last)
    arguments[1][:, 5::7], arguments[1][:, 3::7] = 21.0, -100.0
    compare(arguments, gradients, dtype)


@pytest.mark.thorough
@pytest.mark.parametrize(("sizes", "whole", "dtype", "time_last"), CASES, ids=str)
def test_decays_to_nothing(sizes: Any, whole: bool, dtype: torch.dtype, time_last: bool) -> None:
    """Exponentials beyond the range of numbers, beside those of every day."""
    arguments, gradients = call(sizes, whole, dtype, time_last)
    arguments[2] = arguments[2] * torch.logspace(0, 4, sizes[3], dtype=arguments[2].dtype)
    compare(arguments, gradients, dtype)


@pytest.mark.thorough
@pytest.mark.parametrize(("sizes", "whole", "dtype", "time_last"), CASES, ids=str)
def test_series_at_the_ends_of_their_range(
    sizes: Any, whole: bool, dtype: torch.dtype, time_last: bool
) -> None:
    """Exponents half a log 2 from its multiples, where every term counts."""
    arguments, gradients = call(sizes, whole, dtype, time_last)
    _, delta, a, *_, z, bias, _ = arguments[:9]
    delta.fill_(math.log(math.e - 1) if whole else 1.0)  # time steps of 1
    a.fill_(-0.3465)
    if whole:
        z.fill_(-0.3465)
        bias.zero_()
    compare(arguments, gradients, dtype)


def one_step(
    sizes: Any, dtype: torch.dtype, time_last: bool, batch: int, moves: list[int]
) -> tuple[list[Any], list[Tensor]]:
    """Arguments and gradients, states of 1 and no inputs, of which only so many times move the states: by e^-0.3465."""
    arguments, gradients = call((batch, *sizes[1:]), True, dtype, time_last)
    u, delta, a, b, *_, bias, state = arguments[:9]
    for t, value in ((u, 0.0), (bias, 0.0), (gradients[0], 0.0), (delta, -100.0), (a, -0.3465 / 21)):
        t.fill_(value)
    for t in (b, state, gradients[1]):
        t.fill_(1.0)
    delta[:, moves] = 21.0  # whose logarithm is not taken
    return arguments, gradients


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("sizes", "dtype", "time_last"), [(s, t, last) for s, whole, t, last in CASES if whole], ids=str
)
def test_last_digits_of_decays(
    sizes: Any, dtype: torch.dtype, time_last: bool, request: pytest.FixtureRequest
) -> None:
    """Each exponential by itself: that of one time in the gradient of a and in those of the states, and of the next
    one in that of b, channel by channel."""
    _, channels, _, entries, groups = sizes
    length = reference.CHUNK
    sizes = 1, channels, length, triton.next_power_of_2(entries), groups
    times = range(length - 1) if compiled(request) else (length // 2,)

    def off(arguments: list[Any], gradients: list[Tensor], picked: Any) -> float:
        """By how much of itself any of these results is."""
        wide = [t.double() if isinstance(t, Tensor) else t for t in (*gradients, *arguments)]
        there = [t.to(DEVICE) if isinstance(t, Tensor) else t for t in (*gradients, *arguments)]
        found = []
        for how, given in ((reference, wide), (kernels, there)):
            _, final, kept = how.selective_scan(*given[2:])
            found.append(picked(final, how.selective_scan_backward(*given[:11], kept, *given[11:])))
        want, got = (torch.cat([t.cpu().double().flatten() for t in ts]) for ts in found)
        return float((got / want - 1).abs().max())

    for t in (*times, length - 1):
        arguments, gradients = one_step(sizes, dtype, time_last, 1, [t])
        assert off(arguments, gradients, lambda final, back: (final, back[2], back[-1])) < 1e-7
    for t in times if dtype == F32 else ():
        arguments, gradients = one_step(sizes, dtype, time_last, channels, [t, t + 1])
        arguments[0].diagonal(0, 0, 2).fill_(1.0)  # each channel in a sequence of its own
        which = torch.arange(channels), t, torch.arange(channels) // (channels // groups)
        assert off(arguments, gradients, lambda final, back, which=which: (back[3][which],)) < 1e-7


def test_slices_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SPAN", 2)
    compare(*call((1, 5, 2, 3, 1), True, F64, False), F64)


@pytest.mark.parametrize(("b_size", "c_size"), [((1, 2), (5, 3)), ((5, 1), (1, 2))], ids=str)
def test_b_and_c_of_other_times_and_groups(b_size: Any, c_size: Any) -> None:
    """Constant ones, and groups of b across those of c."""
    arguments, gradients = call((2, 6, 5, 3, 1), True, F64, False)
    for i, size in ((3, b_size), (4, c_size)):
        arguments[i] = real(2, *size, 3, seed=i)
    compare(arguments, gradients, F64)


@pytest.mark.launches_nothing
def test_what_the_kernels_do_not_take_is_left_to_torch() -> None:
    for sizes in ((1, 3, 0, 4, 1), (1, 3, 5, 40, 1)):
        arguments, gradients = call(sizes, True, F64, False)
        assert not kernels.fits(arguments[0], *arguments[2:5])
        compare(arguments, gradients, F64)


@pytest.mark.checks("gradcheck", of="selective_scan/triton")
def test_second_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch._DEVICES, "triton", ("cpu", "cuda"))
    monkeypatch.setattr(dispatch, "PROVEN_FIRST", ())
    dispatch.forget()
    given = [t.to(DEVICE) for t in draw(1, 2, 2, 3, 1).leaves()]

    def function(backend: str) -> Any:
        def scan(*tensors: Tensor) -> Any:
            *front, state = tensors
            return ops.selective_scan(*front, initial_state=state, delta_softplus=True, backend=backend)

        return scan

    second_derivatives.assert_those_of_torch(function, given, "triton")
