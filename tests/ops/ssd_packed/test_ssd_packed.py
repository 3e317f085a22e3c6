"""State-space duality over packed sequences against that of each of them alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops
from sequence_kernels.ops.dispatch import implementation
from sequence_kernels.ops.ssd import _as_rows

from ..devices import backends
from ..packed import BAD_BOUNDS, LENGTHS, bounds_of, close
from ..sample import Sample, real
from ..ssd.test_ssd import drawn

every_backend = pytest.mark.parametrize("backend", backends("ssd_packed"))
SEQUENCES = ("x", "dt", "b", "c", "z")


def packed(
    lengths: list[int], heads: int = 4, width: int = 3, groups: int = 2, states: int = 5
) -> dict[str, Tensor]:
    given = drawn(1, sum(lengths), heads, width, groups, states)
    return given | {"initial_state": real(len(lengths), heads, width, states, seed=8)}


def call(given: dict[str, Tensor], backend: str | None, **options: Any) -> tuple[Tensor, Tensor]:
    return ops.ssd(**given, dt_softplus=True, backend=backend, **options)


def alone(given: dict[str, Tensor], lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Each sequence by plain torch."""
    results = []
    parts = {name: given[name].split(lengths, 1) for name in SEQUENCES}
    for q in range(len(lengths)):
        own = {name: parts[name][q] for name in SEQUENCES}
        results.append(call(given | own | {"initial_state": given["initial_state"][q : q + 1]}, "torch"))
    return torch.cat([y for y, _ in results], 1), torch.cat([final for _, final in results])


def _sample() -> Sample:
    given = packed([2, 0, 1], 2, 2, 1, 2)
    del given["z"]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return call(dict(zip(given, tensors, strict=True)), None, cu_seqlens=bounds_of([2, 0, 1]))

    return Sample("ssd_packed", function, tuple(given.values()))


SAMPLES = {"ssd_packed": _sample()}


@pytest.mark.checks("oracle", "gradcheck")
@every_backend
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("sizes", [(4, 3, 2, 5), (14, 17, 1, 4)])
def test_each_sequence_is_as_if_it_were_alone(
    backend: str, lengths: list[int], sizes: tuple[int, int, int, int]
) -> None:
    given = packed(lengths, *sizes)
    for t in given.values():
        t.requires_grad_()
    got = call(given, backend, cu_seqlens=bounds_of(lengths).int())
    want = alone(given, lengths)
    close(got, want)
    weights = [torch.randn_like(t) for t in want]
    close(*(torch.autograd.grad(outputs, list(given.values()), weights) for outputs in (got, want)))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_padded_rows_give_the_same(lengths: list[int]) -> None:
    """What GPUs take instead."""
    given = packed(lengths)
    x, dt, a, b, c, d, initial = (given[n] for n in ("x", "dt", "a", "b", "c", "d", "initial_state"))
    got = _as_rows(bounds_of(lengths), x, dt.abs(), a, b, c, d, initial, "torch")
    want = ops.ssd(
        x, dt.abs(), a, b, c, d, initial_state=initial, cu_seqlens=bounds_of(lengths), backend="torch"
    )
    close(got, want)


@every_backend
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_sequence(backend: str, bad: float) -> None:
    lengths, results = [5, 70, 16, 3], []
    given = packed(lengths)
    for value in (0.0, bad):
        x = given["x"].clone()
        x[:, 7] = value
        x.requires_grad_()
        y, final = call(given | {"x": x}, backend, cu_seqlens=bounds_of(lengths))
        (g,) = torch.autograd.grad(y.sum() + final.sum(), x)
        results.append((y, final, g))
    others = torch.tensor([*range(5), *range(75, 94)])
    (y, final, g), (y_bad, final_bad, g_bad) = results
    assert not y_bad.isfinite().all()
    assert torch.equal(y[:, others], y_bad[:, others])
    assert torch.equal(final[[0, 2, 3]], final_bad[[0, 2, 3]])
    assert torch.equal(g[:, others], g_bad[:, others])


def test_any_number_of_threads_gives_the_same_bits() -> None:
    lengths = [70, 0, 3, 130, 64]
    given = {name: t.float().requires_grad_() for name, t in packed(lengths, 14, 8).items()}
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            outputs = call(given, None, cu_seqlens=bounds_of(lengths))
            slopes = torch.autograd.grad(outputs, list(given.values()), [o.detach() for o in outputs])
            results.append((*outputs, *slopes))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@every_backend
@pytest.mark.parametrize(("bounds", "said"), BAD_BOUNDS)
def test_bounds_that_are_none(backend: str, bounds: list[int], said: str) -> None:
    given, at = packed([9], 2, 3, 1, 2), torch.tensor(bounds)
    del given["initial_state"]
    with pytest.raises(ValueError, match=f"cu_seqlens.*({said})"):
        call(given, backend, cu_seqlens=at)
    tensors = [given[name] for name in ("x", "dt", "a", "b", "c")]
    with pytest.raises((ValueError, RuntimeError), match=f"cu_seqlens.*({said})"):
        implementation("ssd_packed", backend)(*tensors, None, None, at)


def test_several_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x must be one row of all sequences with cu_seqlens, B=1"):
        call(drawn(2, 5, 4, 3, 2, 5), None, cu_seqlens=torch.tensor([0, 5]))
