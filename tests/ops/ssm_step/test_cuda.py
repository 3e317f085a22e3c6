"""The CUDA kernels of the steps, in the emulator, against the step as written."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cuda_emulator import Kernels, skip_reason

from . import exact

pytestmark = [
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
    pytest.mark.checks("oracle", "emulator", of="ssm_step/cuda"),
]

KIND = {torch.complex64: "f32", torch.complex128: "f64"}
SHAPES: list[tuple[int, int, int, int, int | None]] = [
    (1, 3, 1, 1, None),
    (1, 5, 32, 3, 1),
    (1, 2, 5, 0, 1),
    (2, 3, 4, 2, 0),
    (9, 9, 33, 1, 2),
    (17, 2, 70, 2, 1),
    (3, 130, 2, 1, 3),
    (2, 3, 0, 1, 1),
]
ORDERS = ("forward", "reverse", "random", "skewed")


def fields(x: exact.Step) -> dict[str, Any]:
    rows, heads = x.u.shape
    sizes = {
        "rows": rows,
        "places": len(x.state),
        "heads": heads,
        "pairs": x.b.shape[1],
        "channels": len(x.c),
    }
    kernel = {"rows_together": 1 if rows == 1 else 8, "bytes": x.u.element_size()}
    return {**x._asdict(), **sizes, **kernel, "rank": 0 if x.p is None else len(x.p)}


def name(x: exact.Step) -> str:
    return f"ssm_step_{'one' if len(x.u) == 1 else 'many'}_{KIND[x.state.dtype]}"


def run(kernels: Kernels, x: exact.Step, in_place: bool, **options: Any) -> torch.Tensor:
    """Step, compare, and return y."""
    y = torch.full((len(x.u), *x.c.shape[:2]), float("nan"), dtype=x.u.dtype)
    given = x._replace(state=x.state.clone())
    after = given.state if in_place else torch.full_like(x.state, complex("nan"))
    kernels.run(name(x), {**fields(given), "next": after, "y": y}, **options)
    exact.check(x, y, after)
    return y


@pytest.fixture(scope="module")
def plain() -> Kernels:
    return Kernels("csrc/ssm_step/cuda.cu")


@pytest.fixture(scope="module")
def checked() -> Kernels:
    return Kernels("csrc/ssm_step/cuda.cu", check=True)


@pytest.mark.parametrize("dtype", exact.TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step(plain: Kernels, shape: Any, dtype: torch.dtype) -> None:
    run(plain, exact.sample(*shape, dtype=dtype), in_place=False)
    run(plain, exact.sample(*shape, dtype=dtype, skip=False), in_place=True)


@pytest.mark.parametrize("rank", [None, 1])
def test_slots(plain: Kernels, rank: int | None) -> None:
    """Idle rows give 0, slots that do not exist NaN; the states of others keep their bits."""
    slots = [4, -1, 0, 5, 2, -1, 1, 99, -2, 8]  # of 9 places
    run(plain, exact.sample(10, 3, 5, 2, rank, slots=slots, places=9), in_place=True)
    for slot in (1, -1, 2):
        run(plain, exact.sample(1, 3, 5, 2, rank, slots=[slot], places=2), in_place=True)


def test_results_do_not_depend_on_the_order_of_threads(plain: Kernels) -> None:
    x = exact.sample(9, 5, 33, 2, 2)
    results = [run(plain, x, in_place=True, order=order, seed=5) for order in ORDERS]
    assert all(torch.equal(results[0], other) for other in results)


def check(kernels: Kernels, dtype: torch.dtype, order: str, seed: int) -> None:
    for in_place in (False, True):
        run(kernels, exact.sample(3, 9, 5, 2, 2, dtype=dtype), in_place, order=order, seed=seed)
        run(kernels, exact.sample(1, 2, 33, 1, 1, dtype=dtype), in_place, order=order, seed=seed)
    slots = exact.sample(4, 2, 3, 1, 1, slots=[2, -1, 0, 9], places=3, dtype=dtype)
    run(kernels, slots, in_place=True, order=order, seed=seed)


@pytest.mark.checks("sanitizers", of="ssm_step/cuda")
@pytest.mark.parametrize("dtype", exact.TOLERANCE, ids=str)
@pytest.mark.parametrize("order", ["forward", "random"])
def test_every_access_is_in_bounds_and_ordered(checked: Kernels, dtype: torch.dtype, order: str) -> None:
    check(checked, dtype, order, seed=1)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", exact.TOLERANCE, ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(8))
def test_every_access_is_in_bounds_and_ordered_for_many_schedules(
    checked: Kernels, dtype: torch.dtype, order: str, seed: int
) -> None:
    check(checked, dtype, order, seed)


def test_launch_rules(plain: Kernels) -> None:
    """A block has 128 pairs at a time, of one row or of eight, and room for s_r of each head and row."""

    def rule(*shape: int, rank: int | None = None, dtype: torch.dtype = torch.complex64) -> tuple[int, ...]:
        x = exact.sample(*shape, 1, rank, dtype=dtype)
        return plain.launch_rule(name(x), {**fields(x), "next": None, "y": None})

    assert rule(1, 256, 32) == (64, 128, 4 * 4)
    assert rule(17, 6, 32, rank=2) == (2 * 3, 128, 4 * 8 * 2 * 4)
    assert rule(2, 256, 3, rank=1, dtype=torch.complex128) == (8, 128, 32 * 8 * 8)
    assert rule(2, 5, 1000) == (2, 128, 4 * 8 * 4)
    assert rule(0, 5, 3)[0] == rule(3, 0, 3)[0] == 0


@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("rows", [1, 3])
def test_what_moves_a_state_is_added_at_once(plain: Kernels, rows: int, rank: int | None) -> None:
    x = exact.nearly_still(rows, rank)
    after, y = torch.full_like(x.state, complex("nan")), torch.zeros(rows, 1, 2)
    plain.run(name(x), {**fields(x), "next": after, "y": y})
    exact.rounded_up(after)
