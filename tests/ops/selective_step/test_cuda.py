"""The selective step on the stand-in driver, host code and CUDA kernels, against the step as written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sequence_kernels.ops.selective_step import cuda as on_cuda
from sequence_kernels.ops.selective_step import reference
from tests.cuda_driver import ORDERS, driver, skip_reason

from . import exact

pytestmark = [
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
    pytest.mark.checks("oracle", "emulator", of="selective_step/cuda"),
]


def run(x: exact.Step, numbers: exact.Numbers, in_place: bool, **options: Any) -> torch.Tensor:
    """Step, compare, and return the states."""
    given = x._replace(state=x.state.clone())
    after = given.state if in_place else torch.full_like(x.state, math.nan)
    y = driver().run("selective_step", *given, *numbers, after, **options)
    exact.check(x, numbers, y, after)
    return after


def calls() -> Iterator[tuple[str, list[Any]]]:
    """Native ops and arguments, so that each launch occurs."""
    for dtype, rows, width in itertools.product((torch.float32, torch.float64), (1, 3), (1, 2)):
        x = exact.sample(rows, 4, width, 5, 1, True, dtype=dtype)
        yield "selective_step", [x.state.clone(), *x[1:], *exact.Numbers(), torch.empty_like(x.state)]


@pytest.mark.parametrize("dtype", exact.TOLERANCE, ids=str)
def test_step(dtype: torch.dtype) -> None:
    long = (1, 1, 1, 301, 1, False), (1, 1, 2, 301, 1, True), (1, 1, 2, 300, 1, True), (1, 1, 9, 132, 1, True)
    rows = [(5, 9, 1, size, 1, one_decay) for size in (4, 5, 300, 301) for one_decay in (False, True)]
    for shape in rows:
        run(exact.sample(*shape, dtype=dtype), exact.Numbers(), in_place=True)
    for shape in (*exact.SHAPES, *long):
        run(exact.sample(*shape, dtype=dtype), exact.Numbers(), in_place=False)
        if dtype.itemsize > 2:  # in which what grows this fast would overflow
            run(exact.sample(*shape, dtype=dtype, bare=True), exact.PLAIN, in_place=True)


def test_rows_for_which_a_block_reads_the_parameters_once() -> None:
    """From 4096 blocks on it takes rows by twos, one after the other; the last block has fewer. Most are idle here."""
    indices = [row // 37 if row % 37 == 0 or row > 8190 else -1 for row in range(8195)]
    indices[-4:] = range(222, 226)
    run(
        exact.sample(8195, 1, 1, 5, 1, False, state_indices=indices, slots=226),
        exact.Numbers(),
        in_place=True,
    )


def test_states_that_begin_anywhere() -> None:
    """Fours of entries are read at once only where they begin at multiples of 16 bytes."""
    for moved in ("state", "a"):
        x = exact.sample(2, 3, 1, 8, 1, False)
        t = getattr(x, moved)
        odd = torch.empty(t.numel() + 1)[1:].view(t.shape).copy_(t)
        run(x._replace(**{moved: odd}), exact.Numbers(), in_place=False)


def test_state_indices() -> None:
    """Idle rows give 0, slots that do not exist NaN; the states of others keep their bits."""
    for dtype in (torch.float32, torch.float64):
        for one_decay, width in ((False, 1), (True, 2)):
            indices = [4, -1, 0, 5, 2, -1, 1, 99, -2, 8]  # of 9 slots
            x = exact.sample(10, 3, width, 6, 1, one_decay, state_indices=indices, slots=9, dtype=dtype)
            run(x, exact.Numbers(), in_place=True)


def test_fast_and_slow_decays() -> None:
    """Also where e^x - 1 is -1, or infinite, and softplus is the identity; NaN spoils its channel alone."""
    for dtype in (torch.float32, torch.float64):
        x = exact.sample(1, 8, 1, 2, 1, False, bare=True, dtype=dtype)
        rates = torch.tensor([0.0, -1e-6, -0.3, -20.0, -1e4, 1e-3, 800.0, 1.0], dtype=dtype)
        delta = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 25.0, 1.0, -9.0]], dtype=dtype)
        x = x._replace(a=rates.unsqueeze(1).expand(8, 2).contiguous(), delta=delta)
        finite = x._replace(a=x.a.clamp(max=1.0))
        run(finite, exact.PLAIN, in_place=False)
        run(finite, exact.Numbers(True, 0.0, math.inf), in_place=False)
        after = torch.empty_like(x.state)
        driver().run("selective_step", *x, *exact.PLAIN, after)
        assert not after[0, 6].isfinite().any()
        delta[0, 3] = math.nan
        run(finite, exact.Numbers(False, 0.0, 2.0), in_place=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_element_has_its_last_digits(dtype: torch.dtype) -> None:
    """Whatever the rests of the exponentials are: of what has no cancellation, each by itself."""
    for size, one_decay in ((4, False), (5, False), (4, True), (5, True)):
        last_digits(exact.sample(1, 64, 1, size, 1, one_decay, dtype=dtype), dtype)


def last_digits(x: exact.Step, dtype: torch.dtype) -> None:
    spread = torch.linspace(-4, 4, 64, dtype=dtype)
    x = x._replace(state=torch.ones_like(x.state), a=0.4 * x.a.clamp(min=-1), c=torch.ones_like(x.c))
    x = x._replace(b=torch.zeros_like(x.b))
    x = x._replace(u=x.u.abs(), delta=spread[None] / 2, bias=None, d=x.d.abs(), z=spread.view(1, 64, 1))
    after = torch.empty_like(x.state)
    y = driver().run("selective_step", *x, *exact.Numbers(), after)
    bound = 8 * torch.finfo(dtype).eps
    for got, want in zip((y, after), exact.step(x, exact.Numbers()), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=bound, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_times_and_gates_at_the_ends_of_their_range(dtype: torch.dtype) -> None:
    """Softplus of what has no exponential; gates that are shut or open wide."""
    x = exact.sample(1, 3, 2, 5, 1, True, dtype=dtype)
    delta = torch.tensor([[-800.0, 25.0, -720.0]], dtype=dtype)
    z = torch.tensor([750.0, -750.0, 1.0, -720.0, 720.0, -100.0], dtype=dtype).view(1, 3, 2)
    run(x._replace(delta=delta, z=z), exact.Numbers(True, 0.0, math.inf), in_place=False)


@pytest.mark.parametrize("one_decay", [False, True])
def test_what_moves_a_state_is_added_at_once(one_decay: bool) -> None:
    x = exact.nearly_still(one_decay)
    exact.rounded_once(x, run(x, exact.PLAIN, in_place=False))


def check(**options: Any) -> None:
    indices = {"state_indices": [2, -1, 0, 9], "slots": 3}
    for dtype in (torch.float32, torch.float64):
        run(exact.sample(3, 9, 1, 5, 3, False, dtype=dtype), exact.Numbers(), False, check=True, **options)
        x = exact.sample(4, 2, 3, 8, 1, True, dtype=dtype, **indices)  # type: ignore[arg-type]
        run(x, exact.Numbers(), in_place=True, check=True, **options)


@pytest.mark.checks("sanitizers", of="selective_step/cuda")
@pytest.mark.parametrize("order", ["forward", "random"])
def test_every_access_is_in_bounds_and_ordered(order: str) -> None:
    check(order=order, seed=1)


@pytest.mark.checks("sanitizers", of="selective_step/cuda")
@pytest.mark.parametrize("dtype", exact.TOLERANCE, ids=str)
def test_no_entry_is_read_beyond_the_last(dtype: torch.dtype) -> None:
    """However many there are of the four that a thread has together."""
    for size in (*range(5, 9), *range(129, 133)):  # those that all lanes have first, and further ones
        run(exact.sample(1, 1, 1, size, 1, False, dtype=dtype), exact.Numbers(), in_place=False, check=True)


@pytest.mark.thorough
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(4))
def test_every_access_is_in_bounds_and_ordered_for_many_schedules(order: str, seed: int) -> None:
    check(order=order, seed=seed)


@pytest.mark.launches_nothing
def test_no_rows_and_no_heads() -> None:
    for rows, heads, width in ((0, 2, 1), (2, 0, 1), (2, 3, 0)):
        run(exact.sample(rows, heads, width, 3, 1, True), exact.PLAIN, in_place=True)


@pytest.mark.launches_nothing
def test_the_kernel_in_double_reads_double_alone() -> None:
    """Others are widened before. On CPU tensors, whose native op takes the same."""
    x = exact.sample(3, 4, 2, 5, 1, True, dtype=torch.float64)
    rows = [t.bfloat16().contiguous() for t in (x.u, x.delta, x.b, x.c)]
    call = [*rows[:2], x.a, *rows[2:], x.d, x.z, x.bias, *exact.Numbers()]
    want, got = reference.selective_step(x.state, *call), on_cuda.step(x.state, *call)
    assert [t.dtype for t in got] == [torch.bfloat16, torch.float64]
    torch.testing.assert_close(got, want)
    with pytest.raises(RuntimeError, match="rows are contiguous, in float64 if state is"):
        driver().run("selective_step", *x._replace(u=x.u.float()), *exact.Numbers(), x.state)
