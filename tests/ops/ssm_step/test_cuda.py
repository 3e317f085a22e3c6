"""The step on the stand-in driver, host code and CUDA kernels, against the step as written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.cuda_driver import ORDERS, driver, skip_reason
from tests.cuda_emulator import Kernels

from . import exact

pytestmark = [
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
    pytest.mark.checks("oracle", "emulator", of="ssm_step/cuda"),
]

SHAPES: list[tuple[int, int, int, int, int | None]] = [
    (1, 3, 1, 1, None),
    (1, 5, 32, 3, 1),
    (1, 2, 5, 0, 1),
    (1, 2, 3, 7, 6),
    (2, 3, 4, 2, 0),
    (9, 9, 33, 1, 2),
    (17, 2, 70, 2, 1),
    (3, 130, 2, 1, 3),
    (1, 129, 1, 1, 1),  # a head more than a block has
    (2, 3, 0, 1, 1),
    (1, 3, 0, 2, 1),
]


def run(x: exact.Step, in_place: bool, **options: Any) -> torch.Tensor:
    """Step, compare, and return y."""
    given = x._replace(state=x.state.clone())
    after = given.state if in_place else torch.full_like(x.state, complex("nan"))
    y = driver().run("ssm_step", *given, after, **options)
    exact.check(x, y, after)
    return y


def calls() -> Iterator[tuple[str, list[Any]]]:
    """Native ops and arguments, so that each launch occurs."""
    x = exact.sample(9, 2, 5, 1, 2, slots=9)
    yield "ssm_step", [x.state.clone(), *x[1:], torch.empty_like(x.state)]


@pytest.mark.parametrize("dtype", exact.TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step(shape: Any, dtype: torch.dtype) -> None:
    run(exact.sample(*shape, dtype=dtype), in_place=False)
    run(exact.sample(*shape, dtype=dtype, skip=False), in_place=True)


@pytest.mark.parametrize("dtype", exact.TOLERANCE, ids=str)
@pytest.mark.parametrize("rank", [None, 1])
def test_state_indices(rank: int | None, dtype: torch.dtype) -> None:
    """Idle rows give 0, slots that do not exist NaN; the states of others keep their bits."""
    mixed = [4, -1, 0, 5, 2, -1, 1, 99, -2, 8]  # of 9 slots
    apart = [[(-1, 9)[row >> bit & 1] for row in range(8)] for bit in range(3)]  # every two rows of a block
    for state_indices in (mixed, *apart):
        rows = len(state_indices)
        of = {"state_indices": state_indices, "slots": 9, "dtype": dtype}
        run(exact.sample(rows, 3, 5, 2, rank, **of), in_place=True)
    for slot in (1, -1, 2):
        for pairs, channels in ((5, 2), (70, 0), (70, 2)):
            some = {"state_indices": [slot], "slots": 2, "dtype": dtype}
            run(exact.sample(1, 3, pairs, channels, rank and 2, **some), in_place=True)


def test_results_do_not_depend_on_the_order_of_threads() -> None:
    x = exact.sample(9, 5, 33, 2, 2)
    results = [run(x, in_place=True, order=order, seed=5) for order in ORDERS]
    assert all(torch.equal(results[0], other) for other in results)


def check(dtype: torch.dtype, **options: Any) -> None:
    for in_place in (False, True):
        run(exact.sample(3, 9, 5, 2, 2, dtype=dtype), in_place, check=True, **options)
        run(exact.sample(1, 2, 33, 1, 1, dtype=dtype), in_place, check=True, **options)
    some = exact.sample(4, 2, 3, 1, 1, state_indices=[2, -1, 0, 9], slots=3, dtype=dtype)
    run(some, in_place=True, check=True, **options)
    for pairs in (1, 3, 40):  # of a lane, a lane each, and several
        none = exact.sample(1, 2, pairs, 1, 2, state_indices=[-1], slots=1, dtype=dtype)
        run(none, in_place=True, check=True, **options)


@pytest.mark.checks("sanitizers", of="ssm_step/cuda")
@pytest.mark.parametrize("dtype", exact.TOLERANCE, ids=str)
@pytest.mark.parametrize("order", ["forward", "random"])
def test_every_access_is_in_bounds_and_ordered(dtype: torch.dtype, order: str) -> None:
    check(dtype, order=order, seed=1)


@pytest.mark.checks("sanitizers", of="ssm_step/cuda")
@pytest.mark.parametrize("dtype", exact.TOLERANCE, ids=str)
def test_no_row_is_read_beyond_the_last(dtype: torch.dtype) -> None:
    """However many there are of the eight that a block has together."""
    for rows in range(2, 9):
        for indices in (list(range(rows)), list(range(rows))[::-1]):
            some = {"state_indices": indices, "slots": 9, "dtype": dtype}
            run(exact.sample(rows, 1, 2, 1, 1, **some), in_place=True, check=True)


@pytest.mark.launches_nothing
@pytest.mark.parametrize("turns", [2, 4])
def test_rows_for_which_a_block_reads_the_parameters_once(turns: int) -> None:
    """By eights, one after the other; the last block has fewer. The op does it from 4096 blocks on."""
    x = exact.sample(27, 3, 33, 1, 1)
    y, after = torch.full((27, 1, 3), float("nan")), torch.full_like(x.state, complex("nan"))
    sizes = {"rows": 27, "slots": 27, "heads": 3, "pairs": 33, "channels": 1, "rank": 1}
    kernel = {"rows_together": 8, "turns": turns, "bytes": 4}
    Kernels("csrc/ssm_step/cuda.cu").run(
        "ssm_step_many_f32", {**x._asdict(), "next": after, "y": y, **sizes, **kernel}
    )
    exact.check(x, y, after)


@pytest.mark.thorough
def test_many_rows_are_taken_one_after_the_other() -> None:
    run(exact.sample(8 * 4096 + 3, 1, 1, 1, 1), in_place=False)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", exact.TOLERANCE, ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(8))
def test_every_access_is_in_bounds_and_ordered_for_many_schedules(
    dtype: torch.dtype, order: str, seed: int
) -> None:
    check(dtype, order=order, seed=seed)


@pytest.mark.launches_nothing
def test_launch_rules() -> None:
    """A block has 128 pairs at a time, of one row or of eight, and room for s_r of each head and row."""
    kernels = Kernels("csrc/ssm_step/cuda.cu")

    def rule(
        rows: int, heads: int, pairs: int, rank: int = 0, dtype: torch.dtype = torch.complex64, turns: int = 1
    ) -> tuple[int, ...]:
        pointers = dict.fromkeys(
            ("state", "state_indices", "u", "a_minus_one", "b", "c", "d", "p", "q", "next", "y")
        )
        sizes = {"rows": rows, "slots": rows, "heads": heads, "pairs": pairs, "channels": 1, "rank": rank}
        together = 1 if rows == 1 else 8
        kernel = {"rows_together": together, "turns": turns, "bytes": exact.REAL[dtype].itemsize}
        name = f"ssm_step_{'one' if rows == 1 else 'many'}_f{8 * kernel['bytes']}"
        return kernels.launch_rule(name, {**pointers, **sizes, **kernel})

    assert rule(1, 256, 32) == (64, 128, 4 * 4)
    assert rule(17, 6, 32, rank=2) == (2 * 3, 128, 4 * 8 * 2 * 4)
    assert rule(2, 256, 3, rank=1, dtype=torch.complex128) == (8, 128, 32 * 8 * 8)
    assert rule(2, 5, 1000) == (2, 128, 4 * 8 * 4)
    assert [rule(65, 8, 32, turns=turns)[0] for turns in (1, 2, 4)] == [9 * 2, 5 * 2, 3 * 2]
    assert rule(0, 5, 3)[0] == rule(3, 0, 3)[0] == 0


@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("rows", [1, 3])
def test_what_moves_a_state_is_added_at_once(rows: int, rank: int | None) -> None:
    x = exact.nearly_still(rows, rank)
    after = torch.full_like(x.state, complex("nan"))
    driver().run("ssm_step", *x, after)
    exact.rounded_up(after)
