"""State-space duality on the stand-in driver, host code and CUDA kernels, against plain torch in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sequence_kernels.ops.ssd import reference
from tests.cuda_driver import ORDERS, driver, skip_reason

from .test_ssd import close, drawn

pytestmark = [
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
    pytest.mark.checks("oracle", "emulator", of="ssd/cuda"),
]

F32, F64 = torch.float32, torch.float64
CUDA_CORES, KEEPS_FLOAT32, FAST = 0, 1, 2
TOLERANCE = {F64: 1e-11, F32: 2e-5, torch.bfloat16: 2**-5, torch.float16: 2**-8}
#: Batch, length, heads, channels, groups and states: tiles that are filled, ragged, several, and none; what computes.
SIZES = [
    ((1, 35, 2, 3, 2, 4), F32, KEEPS_FLOAT32),
    ((1, 66, 1, 33, 1, 40), F64, CUDA_CORES),
    ((1, 70, 2, 65, 2, 66), F32, CUDA_CORES),
    ((1, 70, 1, 65, 1, 66), F32, KEEPS_FLOAT32),
    ((2, 40, 2, 34, 2, 36), torch.bfloat16, KEEPS_FLOAT32),
    ((1, 20, 2, 5, 2, 6), torch.float16, KEEPS_FLOAT32),
    ((2, 0, 2, 3, 1, 4), F64, CUDA_CORES),
    ((1, 5, 2, 3, 1, 0), F64, CUDA_CORES),
]


def on_tensor_cores(*case: Any) -> Any:
    """A case of a test, its precision last, marked if it asks for them."""
    return pytest.param(*case, marks=[] if case[-1] == CUDA_CORES else pytest.mark.tensor_cores)


CASES = [on_tensor_cores(*case) for case in SIZES]


def given(sizes: Any, dtype: torch.dtype, whole: bool) -> tuple[list[Any], list[Any]]:
    """A call, and the gradients of its results."""
    t = drawn(*sizes)
    real = F64 if dtype == F64 else F32
    x, b, c = (t[name].to(dtype) for name in "xbc")
    call = [x, t["dt"].abs().to(real), t["a"].to(real), b, c]
    call += [t["d"].to(real), t["initial_state"].to(real)] if whole else [None, None]
    return call, [torch.cos(t["x"]).to(dtype), torch.sin(t["initial_state"]).to(real)]


def calls() -> Iterator[tuple[str, list[Any]]]:
    """Native ops and arguments, so that each launch occurs; on tensor cores it is the same."""
    for dtype in (F64, F32):
        call, gradients = given((1, 3, 2, 3, 1, 4), dtype, True)
        yield "ssd_cuda", [*call, CUDA_CORES]
        yield "ssd_backward_cuda", [*gradients, *call, CUDA_CORES]


def check(sizes: Any, dtype: torch.dtype, precision: int, whole: bool, **options: Any) -> None:
    call, gradients = given(sizes, dtype, whole)
    for name, arguments in (("ssd", call), ("ssd_backward", [*gradients, *call])):
        want = getattr(reference, name)(*(None if t is None else t.double() for t in arguments))
        got = driver().run(f"{name}_cuda", *arguments, precision, **options)
        assert got[0].dtype == dtype
        if precision < FAST:
            close(got, want, TOLERANCE[dtype])
        else:  # numbers of 11 digits: an element near 0 is the difference of larger ones
            bound = 2**-7 if dtype == torch.bfloat16 else 2**-10
            assert all((a.double() - b).norm() <= bound * b.norm() for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("whole", [True, False], ids=["all", "bare"])
@pytest.mark.parametrize(("sizes", "dtype", "precision"), CASES, ids=str)
def test_results_and_gradients(sizes: Any, dtype: torch.dtype, precision: int, whole: bool) -> None:
    check(sizes, dtype, precision, whole)


@pytest.mark.tensor_cores
def test_float32_in_fewer_digits_where_torch_may() -> None:
    check((1, 66, 2, 64, 2, 66), F32, FAST, True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("precision", [CUDA_CORES, on_tensor_cores(FAST)])
def test_half_precision_in_tiles_of_each_kind(dtype: torch.dtype, precision: int) -> None:
    check((1, 66, 1, 65, 1, 66), dtype, precision, True)


def test_more_chunks_than_a_thread_has_on_their_way() -> None:
    for dtype in (F32, F64):
        check((1, 64 * 9 + 3, 1, 1, 1, 2), dtype, CUDA_CORES, True)


def test_decays_beyond_the_exponents_of_normal_numbers() -> None:
    """Over one step that is large, or several of them, in both directions."""
    call, gradients = given((1, 66, 1, 33, 1, 34), F64, True)
    call[1] = torch.full((1, 66, 1), 1e-6, dtype=F64)
    call[1][0, [10, 30, 50, 62]] = 1
    call[2] = torch.tensor([-715.0], dtype=F64)
    for name, arguments in (("ssd", call), ("ssd_backward", [*gradients, *call])):
        close(
            driver().run(f"{name}_cuda", *arguments, CUDA_CORES), getattr(reference, name)(*arguments), 1e-11
        )


def test_decays_and_growth_at_the_ends_of_the_exponents() -> None:
    """Between any two elements: by e^709 and its reciprocal, which are scaled in two steps."""
    call, gradients = given((1, 66, 1, 33, 1, 34), F64, True)
    level = torch.randint(0, 2, (66,), generator=torch.Generator().manual_seed(0)).double()
    call[1] = level.diff(prepend=torch.zeros(1, dtype=F64)).reshape(1, 66, 1)
    call[2] = torch.tensor([709.0], dtype=F64)
    for of in (call, gradients):
        of[:] = [t if i in (1, 2) and of is call else t * 2.0**-256 for i, t in enumerate(of)]
    for name, arguments in (("ssd", call), ("ssd_backward", [*gradients, *call])):
        got = driver().run(f"{name}_cuda", *arguments, CUDA_CORES)
        for a, b in zip(got, getattr(reference, name)(*arguments), strict=True):
            assert (a - b).abs().max() <= 1e-11 * b.abs().max()


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_sums_of_any_number_of_parts(dtype: torch.dtype) -> None:
    """Sixteen of which are added up together."""
    for batch in range(1, 18):
        check((batch, 1, 1, 1, 1, 1), dtype, CUDA_CORES, True)
        check((batch, 1, 1, 0, 1, 0), dtype, CUDA_CORES, True, check=True)  # which parts are read, alone


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_one_element_again_and_again(dtype: torch.dtype) -> None:
    """Sequences whose elements all lie in one place, the first of memory."""
    call, gradients = given((1, 66, 1, 33, 1, 34), dtype, True)
    call = [t[:, :1].expand(-1, 66, -1, -1) if i in (0, 3, 4) else t for i, t in enumerate(call)]
    gradients[0] = gradients[0][:, :1].expand(-1, 66, -1, -1)
    for name, arguments in (("ssd", call), ("ssd_backward", [*gradients, *call])):
        want = getattr(reference, name)(*(t.double() for t in arguments))
        close(driver().run(f"{name}_cuda", *arguments, CUDA_CORES), want, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("dtype", "rate", "digits"), [(F32, -2.5, 10), (F64, -1.0, 4), (F64, -20.0, 4), (F64, -160.0, 4)], ids=str
)
def test_decays_have_their_last_digits(dtype: torch.dtype, rate: float, digits: int) -> None:
    """Each by itself, by unit vectors, with exact exponents; gradients of steps and rates are differences."""
    one, unit = torch.ones(1, 64, 1, 1, dtype=dtype), torch.eye(64, dtype=dtype)[None, :, None]
    dt, a = (1 + torch.arange(64, dtype=dtype) % 7).reshape(1, 64, 1) / 8, torch.tensor([rate], dtype=dtype)
    many = torch.ones_like(unit)
    for x, b, c in ((unit, one, one), (one, unit, many), (one, many, unit)):
        call = [x, dt, a, b, c, None, torch.ones(1, 1, x.shape[3], b.shape[3], dtype=dtype)]
        gradients = [x, torch.zeros_like(call[-1])]
        for name, arguments in (("ssd", call), ("ssd_backward", [*gradients, *call])):
            want = getattr(reference, name)(*(None if t is None else t.double() for t in arguments))
            got = driver().run(f"{name}_cuda", *arguments, CUDA_CORES)
            for i, (p, q) in enumerate(zip(got, want, strict=True)):
                if name == "ssd_backward" and i in (1, 2):
                    continue
                assert ((p.double() - q).abs() <= digits * torch.finfo(dtype).eps * q.abs() + 1e-307).all()


@pytest.mark.parametrize(("dtype", "bound"), [(F32, 1e-5), (F64, 1e-13)], ids=str)
def test_gradients_of_rates_where_little_is_left_of_a_step(dtype: torch.dtype, bound: float) -> None:
    """They come from pairs of different elements, beside whose products that of an element with itself is large."""
    call, gradients = given((1, 64, 1, 3, 1, 4), dtype, False)
    call[1], call[2] = torch.ones_like(call[1]), torch.full_like(call[2], -40)
    gradients[1] = torch.zeros_like(gradients[1])
    want = reference.ssd_backward(*(None if t is None else t.double() for t in (*gradients, *call)))[2]
    got = driver().run("ssd_backward_cuda", *gradients, *call, CUDA_CORES)[2]
    assert ((got.double() - want).abs() <= bound * want.abs()).all()


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(F64, CUDA_CORES), *(on_tensor_cores(F32, of) for of in (CUDA_CORES, KEEPS_FLOAT32, FAST))],
    ids=str,
)
def test_what_is_infinite_stays_in_its_channel_or_state(dtype: torch.dtype, precision: int) -> None:
    """The first of memory, which is not read in the place of what lies outside of a sequence."""

    def results() -> list[Any]:
        y, final_state = driver().run("ssd_cuda", *call, precision)
        backward = driver().run("ssd_backward_cuda", *gradients, *call, precision)
        dx, _, _, db, dc, _, d_initial = backward
        return [y, final_state.mT, final_state, dx, db, dc, d_initial.mT, d_initial]

    for length in range(4, 64, 8):
        call, gradients = given((1, length, 1, 33, 1, 34), dtype, True)
        finite = results()
        for tensor, those in (
            (call[0], (0, 1)),
            (call[3], (2, 5)),
            (call[4], (4, 7)),
            (gradients[0], (3, 6)),
        ):
            before = tensor[0, 0, 0, 0].item()
            tensor[0, 0, 0, 0] = torch.inf
            got = results()
            tensor[0, 0, 0, 0] = before
            for i in those:
                assert not got[i][..., 0].isfinite().all()
                assert torch.equal(got[i][..., 1:], finite[i][..., 1:])


def test_growth_beyond_the_exponents_is_infinite() -> None:
    call, gradients = given((1, 64, 1, 33, 1, 34), F64, True)
    level = torch.randint(0, 2, (64,), generator=torch.Generator().manual_seed(0)).double()
    steps = level.diff(prepend=torch.zeros(1, dtype=F64)) + 2.0**-20
    call = [t.abs() for t in call]
    call[0], call[1] = call[0] * steps[:, None, None].sign(), steps.reshape(1, 64, 1)
    call[2] = torch.tensor([800.0], dtype=F64)
    close(driver().run("ssd_cuda", *call, CUDA_CORES), reference.ssd(*call))
    arguments = [*(t.abs() for t in gradients), *call]
    close(
        driver().run("ssd_backward_cuda", *arguments, CUDA_CORES)[:1], reference.ssd_backward(*arguments)[:1]
    )


@pytest.mark.parametrize(
    ("dtype", "bounds", "precision"),
    [
        on_tensor_cores(F32, (2e-6, 1e-5), CUDA_CORES),
        on_tensor_cores(F32, (2e-6, 1e-5), KEEPS_FLOAT32),
        on_tensor_cores(F64, (1e-12, 1e-12), CUDA_CORES),
    ],
    ids=str,
)
def test_fast_decays_lose_no_digits(dtype: torch.dtype, bounds: tuple[float, float], precision: int) -> None:
    """Exponents are differences of sums of up to 1e3, whose rounding in float32 would show."""
    call, gradients = given((1, 64, 1, 3, 1, 4), dtype, False)
    call[2] = 60 * call[2]
    gradients[1] = torch.zeros_like(gradients[1])
    calls = ("ssd", call), ("ssd_backward", [*gradients, *call])
    for (name, arguments), bound in zip(calls, bounds, strict=True):
        want = getattr(reference, name)(*(None if t is None else t.double() for t in arguments))
        close(driver().run(f"{name}_cuda", *arguments, precision), want, bound)


def test_sequences_that_are_part_of_something_wider() -> None:
    call, _ = given((2, 9, 2, 3, 1, 4), F64, True)
    wide = torch.cat((call[0], call[0]), 3)[..., 2:5]
    want = reference.ssd(wide, *call[1:])
    close(driver().run("ssd_cuda", wide, *call[1:], CUDA_CORES), want)


@pytest.mark.checks("sanitizers", of="ssd/cuda")
@pytest.mark.parametrize("order", ["forward", "random"])
@pytest.mark.parametrize(
    ("sizes", "dtype", "whole", "precision"),
    [
        on_tensor_cores((1, 66, 1, 3, 1, 4), F64, True, CUDA_CORES),
        on_tensor_cores((1, 3, 2, 3, 1, 4), F32, False, KEEPS_FLOAT32),
    ],
    ids=str,
)
def test_every_access_is_in_bounds_and_ordered(
    sizes: Any, dtype: torch.dtype, whole: bool, precision: int, order: str
) -> None:
    check(sizes, dtype, precision, whole, check=True, order=order, seed=1)


@pytest.mark.thorough
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("sizes", "dtype", "precision"), CASES, ids=str)
def test_every_access_is_in_bounds_and_ordered_for_many_schedules(
    sizes: Any, dtype: torch.dtype, precision: int, order: str
) -> None:
    check(sizes, dtype, precision, True, check=True, order=order, seed=2)
