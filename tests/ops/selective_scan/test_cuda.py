"""The selective scan on the stand-in driver, host code and CUDA kernels, against the recurrence in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels.ops.selective_scan import cuda as on_cuda
from sequence_kernels.ops.selective_scan import reference
from tests.cuda_driver import ORDERS, driver, skip_reason

from ..sample import C128, F64, complexes, real
from .test_selective_scan import Given, by_elements, draw, error, with_gradients

pytestmark = [
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
    pytest.mark.checks("oracle", "emulator", of="selective_scan/cuda"),
]

#: Batch, channels, length, size and groups. A lane a channel and several; segments; blocks that share b and c, or not.
SIZES = [
    (1, 3, 5, 4, None),
    (2, 5, 70, 3, 1),
    (1, 20, 67, 20, 2),
    (1, 34, 6, 2, None),
    (2, 6, 130, 3, 0),
    (1, 6, 5, 3, 6),
    (2, 3, 0, 2, 0),
    (1, 3, 2, 60, None),
]
F32 = torch.float32


def laid_out(given: Given, softplus: bool, limit: tuple[float, float], last: bool) -> list[Any]:
    """The op's arguments, with the channels or the time side by side."""
    u, delta, a, b, c, d, z, bias, state = given

    def sequence(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.mT.contiguous() if last else t.mT

    def matrix(t: Tensor) -> Tensor:
        if t.dim() == 2:
            return t.expand(len(u), 1, *t.shape)
        t = t.movedim(-1, 1)
        return (t if t.dim() == 4 else t.unsqueeze(2)).contiguous()

    tensors = (sequence(u), sequence(delta), a, matrix(b), matrix(c), d, sequence(z), bias, state)
    return [*(None if t is None else t.detach() for t in tensors), softplus, *limit]


def gradients(given: Given) -> list[Tensor]:
    """Of the results, as ``with_gradients`` weighs them; that of y as (B, L, D)."""
    like = given.u, torch.empty(len(given.u), *given.a.shape, dtype=given.a.dtype)
    found = [torch.cos(torch.arange(t.numel(), dtype=F64)).view(t.shape).to(t.dtype) for t in like]
    return [found[0].mT, found[1]]


def narrowed(call: list[Any], dtype: torch.dtype) -> list[Any]:
    wide = {F64: dtype, C128: dtype.to_complex()}
    return [t.to(wide[t.dtype]) if isinstance(t, Tensor) else t for t in call]


def calls() -> Iterator[tuple[str, list[Any]]]:
    """Native ops and arguments, so that each launch occurs."""
    for sizes, dtype in (((1, 20, 67, 20, 1), F64), ((1, 3, 66, 2, 0), C128)):
        given = draw(*sizes, dtype=dtype)
        call = laid_out(given, True, (-math.inf, math.inf), True)
        yield "selective_scan", call
        *_, states = reference.selective_scan(*call)
        yield "selective_scan_backward", [*gradients(given), *call, states]


def check(given: Given, dtype: torch.dtype, softplus: bool, last: bool, **options: Any) -> None:
    limit = (-math.inf, math.inf) if softplus else (0.05, 1.0)
    leaves = [t.requires_grad_() for t in given.leaves()]
    want = with_gradients(by_elements(given, softplus, limit), leaves)
    call = narrowed(laid_out(given, softplus, limit, last), dtype)
    y, final_state, states = driver().run("selective_scan", *call, **options)
    g = narrowed(gradients(given), dtype)
    found = driver().run("selective_scan_backward", *g, *call, states, **options)
    du, d_delta, da, db, dc, dd, dz, d_bias, d_initial = found

    def as_given(gradient: Tensor, matrix: Tensor) -> Tensor:
        if matrix.dim() == 2:
            return gradient.sum((0, 1))
        gradient = gradient.movedim(1, -1)
        return gradient if matrix.dim() == 4 else gradient.squeeze(1)

    db, dc = as_given(db, given.b), as_given(dc, given.c)
    got = [y.mT, final_state, du.mT, d_delta.mT, da, db, dc]
    got += [t for t, of in ((dd, given.d), (dz.mT, given.z), (d_bias, given.delta_bias)) if of is not None]
    got += [d_initial] if given.initial_state is not None else []
    # Of complex states angles of some 30 are rounded, in float32, as in C++ and in plain torch.
    bound = 1e-11 if dtype == F64 else 1e-5 if given.a.is_complex() else 2e-6
    assert all(e < bound for e in map(error, (t.to(w.dtype) for t, w in zip(got, want, strict=True)), want))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", [F64, C128])
def test_results_and_gradients(sizes: tuple[Any, ...], kind: torch.dtype) -> None:
    dtype = F32 if sizes[1] in (20, 34, 6) else F64
    check(draw(*sizes, dtype=kind), dtype, True, last=kind == F64)


def test_time_steps_that_are_limited() -> None:
    for kind in (F64, C128):
        check(draw(1, 3, 9, 2, dtype=kind), F64, False, last=True)


def test_little_is_given() -> None:
    """No skip, gate, bias or state, which are null."""
    given = draw(1, 5, 67, 3, all_options=False)
    check(given, F64, False, last=False)


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("kind", [F64, C128], ids=["real", "complex"])
def test_half_precision_is_computed_in_float32(kind: torch.dtype, size: int) -> None:
    given = draw(1, 5, 67, size, 1, dtype=kind)
    call = narrowed(laid_out(given, True, (-math.inf, math.inf), True), F32)
    for dtype in (torch.bfloat16, torch.float16):
        halves = [t.to(dtype) if i in (0, 1, 6) else t for i, t in enumerate(call)]
        single = [t.float() if i in (0, 1, 6) else t for i, t in enumerate(halves)]
        results, want = driver().run("selective_scan", *halves), driver().run("selective_scan", *single)
        assert results[0].dtype == dtype
        assert torch.equal(results[0], want[0].to(dtype))
        assert torch.equal(results[1], want[1])
        g, g_final = narrowed(gradients(given), F32)
        found = driver().run("selective_scan_backward", g.to(dtype), g_final, *halves, results[2])
        exact = driver().run("selective_scan_backward", g.to(dtype).float(), g_final, *single, want[2])
        assert all(torch.equal(one, other.to(one.dtype)) for one, other in zip(found, exact, strict=True))


@pytest.mark.parametrize("dtype", [F32, F64, torch.complex64, C128], ids=str)
def test_decays_have_their_last_digits(dtype: torch.dtype) -> None:
    """Whatever the rests of exponents and of angles are, each by itself, in both passes; in float64 of decays below
    the normal numbers, by states that are so large that it shows."""
    for first, large in ((-4, 1.0), *([(-1438, 2.0**1000)] if dtype.to_real() == F64 else [])):
        rates = torch.linspace(first, first + 4, 64, dtype=F64).unsqueeze(1)
        for at in (0, 1):
            last_digits(dtype, rates, large, at)


def last_digits(dtype: torch.dtype, rates: Tensor, large: float, at: int) -> None:
    """Of half a time step, at the first or the second element of two."""
    size = 32 // dtype.itemsize
    if dtype.is_complex:
        rates = torch.complex(rates / 64 if large == 1 else rates, rates.flip(0) - rates.flip(0).min())
    a, one = rates.to(dtype).expand(64, size).contiguous(), torch.ones(1, 64, size, dtype=dtype)
    state, matrix = large * one, one[:, :1].unsqueeze(2).expand(1, 2, 1, size).contiguous()
    u, delta = torch.zeros(2, 1, 2, 64, dtype=one.real.dtype)
    delta[:, at] = 0.5
    call = [
        u,
        delta,
        a,
        matrix,
        matrix,
        None,
        None,
        None,
        state,
        False,
        0.0,
        9.0,
    ]
    _, final_state, states = driver().run("selective_scan", *call)
    *_, d_initial = driver().run("selective_scan_backward", u, state, *call, states)
    want = large * torch.exp(a.to(rates.dtype) / 2)
    bound, least = 3 * torch.finfo(dtype).eps, 2.0**-1073 * large * (large > 1)
    for got in (final_state[0], d_initial[0].conj()):
        assert ((got.to(want.dtype) - want).abs() <= bound * want.abs() + least).all()


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_softplus_has_its_last_digits(dtype: torch.dtype) -> None:
    """In the first of two segments, after which no time passes."""
    spread = torch.linspace(-4, 4, 64, dtype=dtype)
    delta = torch.full((1, 65, 64), -1e3, dtype=dtype)
    delta[0, 0] = spread
    u, one = torch.zeros_like(delta), torch.ones(1, 64, 1, dtype=dtype)
    b = torch.ones(1, 1, 1, 1, dtype=dtype)
    call = [u, delta, -one[0], b, b, None, None, None, one, True, 0.0, 9.0]
    _, final_state, _ = driver().run("selective_scan", *call)
    want = torch.sigmoid(-spread.double())
    assert ((final_state[0, :, 0].double() - want).abs() <= 8 * torch.finfo(dtype).eps * want).all()


@pytest.mark.checks("sanitizers", of="selective_scan/cuda")
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_no_number_is_read_beyond_the_last(dtype: torch.dtype) -> None:
    """However many there are of those that a lane has together."""
    for size in range(1, 32 // dtype.itemsize + 1):
        for kind in (F64, C128)[: 1 + (size % 2 == 0)]:
            given = draw(1, 1, 2, size // 2 if kind == C128 else size, dtype=kind)
            call = narrowed(laid_out(given, True, (-math.inf, math.inf), True), dtype)
            *_, states = driver().run("selective_scan", *call, check=True)
            g = narrowed(gradients(given), dtype)
            driver().run("selective_scan_backward", *g, *call, states, check=True)


@pytest.mark.checks("sanitizers", of="selective_scan/cuda")
@pytest.mark.parametrize("order", ["forward", "random"])
def test_every_access_is_in_bounds_and_ordered(order: str) -> None:
    for sizes, kind in (((1, 9, 67, 20, 1), F64), ((1, 3, 5, 2, 0), C128), ((1, 1, 130, 12, None), F64)):
        check(draw(*sizes, dtype=kind), F64, True, last=True, check=True, order=order, seed=1)


@pytest.mark.thorough
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_access_is_in_bounds_and_ordered_for_many_schedules(sizes: tuple[Any, ...], order: str) -> None:
    for kind in (F64, C128):
        check(draw(*sizes, dtype=kind), F64, True, last=False, check=True, order=order, seed=2)


def test_time_is_cut_where_channels_are_few() -> None:
    """Into as many segments as there are chunks, but no more than fill a GPU."""
    for batch, length, segments in ((1, 130, 3), (1, 64, 1), (200, 65, 2), (512, 65, 1)):
        call = narrowed(laid_out(draw(batch, 1, length, 1, all_options=False), False, (0, 9), True), F32)
        driver().record()
        driver().run("selective_scan", *call)
        found = [line.split()[0] for line in driver().launches()]
        kernels = ["forward"] if segments == 1 else ["ends", "carry", "forward"]
        assert found == [f"selective_scan_{kernel}_real_f32" for kernel in kernels]


@pytest.mark.launches_nothing
def test_a_state_that_no_warp_holds_is_refused() -> None:
    call = laid_out(draw(1, 2, 3, 129), True, (0, 9), True)
    with pytest.raises(RuntimeError, match="a channel has too many states for a warp"):
        driver().run("selective_scan", *call)


@pytest.mark.launches_nothing
def test_what_kernels_do_not_take_is_prepared_or_left_to_torch() -> None:
    """b and c of half precision or with their entries apart; a state that no warp holds. On CPU tensors, whose native
    op takes the same."""
    call = narrowed(laid_out(draw(1, 5, 7, 4, 1), True, (-math.inf, math.inf), True), F32)
    call[3] = call[3].bfloat16()
    call[4] = call[4].transpose(1, 3).contiguous().transpose(1, 3)
    large = laid_out(draw(1, 2, 3, 129), True, (0, 9), True)
    assert on_cuda.fits(call[2])
    assert not on_cuda.fits(large[2])
    for given, bound in ((call, 2e-6), (large, 1e-12)):
        want = reference.selective_scan(*given)
        got = on_cuda.selective_scan(*given)
        g = torch.ones_like(want[0]), torch.ones_like(want[1])
        got += on_cuda.selective_scan_backward(*g, *given[:9], got[2], *given[9:])
        want += reference.selective_scan_backward(*g, *given[:9], want[2], *given[9:])
        assert [r.dtype for r in got] == [w.dtype for w in want]
        # A gradient in bfloat16 is rounded to 2^-9.
        assert all(
            error(r, w) < (4e-3 if w.dtype == torch.bfloat16 else bound)
            for r, w in zip(got, want, strict=True)
        )


@pytest.mark.parametrize(
    ("sizes", "b_size", "c_size", "kind"),
    [
        ((2, 130, 20, 20), (1, 1), (130, 2), F64),
        ((1, 70, 24, 40), (70, 3), (1, 2), F64),
        ((1, 66, 24, 10), (66, 3), (1, 2), C128),
        ((2, 66, 5, 3), (1, 5), (66, 1), F64),
        ((2, 5, 7, 0), (5, 1), (5, 1), F64),
        ((0, 5, 7, 2), (5, 1), (5, 1), F64),
    ],
)
def test_b_and_c_of_other_times_and_groups(sizes: Any, b_size: Any, c_size: Any, kind: torch.dtype) -> None:
    """Constant ones that a block shares; groups of b across those of c; no state, and no sequences."""
    agree(sizes, b_size, c_size, kind)


@pytest.mark.parametrize("dtype", [F32, F64, torch.complex64, C128], ids=str)
def test_groups_that_fill_blocks(dtype: torch.dtype) -> None:
    """Of as many lanes a channel as there can be: both matrices shared, constant or not, or one of them each's own."""
    for bits in range(6):
        numbers = (32 // dtype.to_real().itemsize << bits) - 1
        channels = (64 >> bits) + 1
        size = -(-numbers // 2) if dtype.is_complex else numbers
        one, each = 1, channels
        for length, b_size, c_size in (
            (9, (9, one), (9, one)),
            (8, (1, one), (1, one)),
            (7, (7, one), (1, each)),
            (3, (3, each), (3, one)),
            (2, (1, one), (2, each)),
        ):
            agree((1, length, channels, size), b_size, c_size, dtype)


@pytest.mark.parametrize("groups", [1, 17])
@pytest.mark.parametrize("dtype", [F32, F64, torch.complex64, C128], ids=str)
def test_times_and_gates_at_the_ends_of_their_range(dtype: torch.dtype, groups: int) -> None:
    """Each number of a thread: softplus of what has no exponential, or is itself; gates that are shut or open wide; and
    decays whose exponents are no normal numbers', of segments too."""
    kind, time = C128 if dtype.is_complex else F64, torch.arange(134).view(1, -1, 1) // 8
    size = 4 if dtype.is_complex else 8
    call, g = drawn((1, 134, 17, size), (134, groups), (134, groups), kind)
    for place, ends, of in ((1, (-720.0, 25.0), time % 3), (6, (720.0, -720.0), time // 3 % 3)):
        for which, end in enumerate(ends):
            call[place] = torch.where(of == which, end, call[place])
    call[7] = torch.zeros(17, dtype=F64)
    of_segment = torch.log1p(torch.exp(call[1][0, :64, 3])).sum().item()
    rates = torch.tensor([[-30.0], [-28.7], [-1e-3], [-720 / of_segment]] * 5, dtype=F64)[:17].expand(
        17, size
    )
    # Angles whose rounding does not show: 25 times them.
    call[2] = torch.complex(rates, call[2].imag / 10) if dtype.is_complex else rates.contiguous()
    compare(call, g, dtype)


def agree(sizes: Any, b_size: Any, c_size: Any, dtype: torch.dtype) -> None:
    compare(*drawn(sizes, b_size, c_size, C128 if dtype.is_complex else F64), dtype)


def compare(call: list[Any], g: list[Tensor], dtype: torch.dtype) -> None:
    """A call in float64, computed so that it has the dtype's digits."""
    real_dtype = dtype.to_real()
    call, g = narrowed(call, real_dtype), narrowed(g, real_dtype)
    wide = {real_dtype: F64, real_dtype.to_complex(): C128}
    exact = [t.to(wide[t.dtype]) if isinstance(t, Tensor) else t for t in (*g, *call)]
    want, got = reference.selective_scan(*exact[2:]), driver().run("selective_scan", *call)
    want += reference.selective_scan_backward(*exact[:11], want[2], *exact[11:])
    got = [*got, *driver().run("selective_scan_backward", *g, *call, got[2])]
    bound = 1e-11 if real_dtype == F64 else 1e-5 if dtype.is_complex else 2e-6
    assert all(error(a.to(w.dtype), w) < bound for a, w in zip(got, want, strict=True))


def drawn(sizes: Any, b_size: Any, c_size: Any, kind: torch.dtype) -> tuple[list[Any], list[Tensor]]:
    """A native call and the gradients of its results; b and c by times and groups."""
    batch, length, channels, size = sizes
    of_states = complexes if kind == C128 else real
    u, delta, z, g = (real(batch, length, channels, seed=i) for i in range(4))
    b, c = (of_states(batch, *of, size, seed=4) for of in (b_size, c_size))
    rates, d = -real(channels, size, seed=5).abs(), real(channels, seed=6)
    rates = torch.complex(rates, real(channels, size, seed=9)) if kind == C128 else rates
    state, g_final = (of_states(batch, channels, size, seed=i) for i in (7, 8))
    return [u, delta, rates, b, c, d, z, d, state, True, -math.inf, math.inf], [g, g_final]
