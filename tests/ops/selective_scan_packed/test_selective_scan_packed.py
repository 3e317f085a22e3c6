"""The selective scan of packed sequences against that of each of them alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops
from sequence_kernels.ops.dispatch import implementation
from sequence_kernels.ops.selective_scan import _as_rows, _in_groups

from ..devices import backends
from ..packed import BAD_BOUNDS, LENGTHS, bounds_of, close
from ..sample import C128, F64, Sample, complexes, real
from ..selective_scan.test_selective_scan import Given, draw

every_backend = pytest.mark.parametrize("backend", backends("selective_scan_packed"))
#: Of b and c: none, two, or constant ones.
every_kind = pytest.mark.parametrize(("groups", "dtype"), [(None, F64), (2, F64), (0, F64), (2, C128)])


def packed(lengths: list[int], channels: int, size: int, groups: int | None, dtype: torch.dtype) -> Given:
    given = draw(1, channels, sum(lengths), size, groups, dtype=dtype)
    make = complexes if dtype.is_complex else real
    return given._replace(initial_state=make(len(lengths), channels, size, seed=9))


def call(given: Given, backend: str | None, **options: Any) -> tuple[Tensor, Tensor]:
    *tensors, initial = given
    return ops.selective_scan(
        *tensors,
        delta_softplus=True,
        delta_limit=(0.01, 3.0),
        initial_state=initial,
        backend=backend,
        **options,
    )


def alone(given: Given, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Each sequence by plain torch."""
    outputs, ends = [], []
    bounds = bounds_of(lengths).tolist()
    for q, (begin, end) in enumerate(pairwise(bounds)):
        own = given._replace(
            **{
                name: t[..., begin:end]
                for name, t in given._asdict().items()
                if name in ("u", "delta", "z", "b", "c") and t is not None and t.dim() > 2
            }
        )
        state = None if given.initial_state is None else given.initial_state[q : q + 1]
        y, final = call(own._replace(initial_state=state), "torch")
        outputs.append(y)
        ends.append(final)
    return torch.cat(outputs, -1), torch.cat(ends)


def _sample(given: Given, lengths: list[int]) -> Sample:
    names = [name for name, value in given._asdict().items() if value is not None]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(names, tensors, strict=True))
        return ops.selective_scan(**given, delta_softplus=True, cu_seqlens=bounds_of(lengths))

    return Sample("selective_scan_packed", function, tuple(given.leaves()))


SAMPLES = {
    "selective_scan_packed": _sample(packed([2, 0, 1], 2, 2, 2, F64), [2, 0, 1]),
    "selective_scan_packed-bare": _sample(draw(1, 2, 3, 2, all_options=False), [1, 2]),
    "selective_scan_packed-complex-constant": _sample(packed([1, 2], 4, 1, 0, C128), [1, 2]),
}


@pytest.mark.checks("oracle", "gradcheck")
@every_backend
@every_kind
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_each_sequence_is_as_if_it_were_alone(
    backend: str, groups: int | None, dtype: torch.dtype, lengths: list[int], channels_last: bool
) -> None:
    given = packed(lengths, 18, 3, groups, dtype)
    for t in given.leaves():
        t.requires_grad_()
    want = alone(given, lengths)
    asked = given
    if channels_last:
        moved = {"u", "delta", "z", *("bc" if groups != 0 else ())}
        asked = Given(**{k: t.movedim(-1, 1) if k in moved else t for k, t in given._asdict().items()})
    y, final = call(asked, backend, channels_last=channels_last, cu_seqlens=bounds_of(lengths).int())
    got = (y.mT if channels_last else y), final
    close(got, want)
    weights = [torch.randn_like(t) for t in want]
    slopes = [torch.autograd.grad(outputs, given.leaves(), weights) for outputs in (got, want)]
    close(*slopes)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("groups", [2, 0])
def test_padded_rows_give_the_same(lengths: list[int], groups: int) -> None:
    """What GPUs take instead."""
    given = packed(lengths, 4, 3, groups, F64)
    u, delta, a, b, c, d, z, bias, initial = given
    rows = [t.mT for t in (u, delta)], z.mT if z is not None else None
    count = (1, len(lengths)), (sum(lengths), 4, 3)
    b, c = (_in_groups("b", m, *count, channels_last=False) for m in (b, c))
    y, final = _as_rows(
        bounds_of(lengths), *rows[0], a, b, c, d, rows[1], bias, initial, True, 0.01, 3.0, "torch"
    )
    close((y.mT, final), call(given, "torch", cu_seqlens=bounds_of(lengths)))


@every_backend
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_sequence(backend: str, bad: float) -> None:
    lengths, results = [5, 70, 16, 3], []
    given = packed(lengths, 6, 4, None, F64)
    for value in (0.0, bad):
        u = given.u.clone()
        u[..., 7] = value
        u.requires_grad_()
        y, final = call(given._replace(u=u), backend, cu_seqlens=bounds_of(lengths))
        (g,) = torch.autograd.grad(y.sum() + final.sum(), u)
        results.append((y, final, g))
    others = torch.tensor([*range(5), *range(75, 94)])
    (y, final, g), (y_bad, final_bad, g_bad) = results
    assert not y_bad.isfinite().all()
    assert torch.equal(y[..., others], y_bad[..., others])
    assert torch.equal(final[[0, 2, 3]], final_bad[[0, 2, 3]])
    assert torch.equal(g[..., others], g_bad[..., others])


def test_any_number_of_threads_gives_the_same_bits() -> None:
    lengths = [70, 0, 3, 130, 64]
    given = Given(*(None if t is None else t.float() for t in packed(lengths, 40, 5, 2, F64)))
    leaves, results, before = given.leaves(), [], torch.get_num_threads()
    for t in leaves:
        t.requires_grad_()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            outputs = call(given, None, cu_seqlens=bounds_of(lengths))
            results.append((*outputs, *torch.autograd.grad(outputs, leaves, [o.detach() for o in outputs])))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@every_backend
@pytest.mark.parametrize(("bounds", "said"), BAD_BOUNDS)
def test_bounds_that_are_none(backend: str, bounds: list[int], said: str) -> None:
    given, at = draw(1, 2, 9, 2, all_options=False), torch.tensor(bounds)
    with pytest.raises(ValueError, match=f"cu_seqlens.*({said})"):
        call(given, backend, cu_seqlens=at)
    u, delta, a, b, c = (t.mT if i != 2 else t for i, t in enumerate(given[:5]))
    b, c = b.unsqueeze(2), c.unsqueeze(2)
    with pytest.raises((ValueError, RuntimeError), match=f"cu_seqlens.*({said})"):
        implementation("selective_scan_packed", backend)(
            u, delta, a, b, c, None, None, None, None, at, False, -1.0, 1.0
        )


def test_several_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"u must be one row of all sequences with cu_seqlens, B=1"):
        call(draw(2, 3, 5, 4), None, cu_seqlens=torch.tensor([0, 5]))
