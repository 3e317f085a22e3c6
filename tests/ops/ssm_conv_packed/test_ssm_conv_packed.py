"""The convolution of packed sequences against that of each of them alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops
from sequence_kernels.ops.dispatch import implementation
from tests.instruction_sets import rounds_matrices

from ..devices import backends
from ..sample import Sample, complexes, real
from ..ssm_conv.test_ssm_conv import Model, relative

every_backend = pytest.mark.parametrize("backend", backends("ssm_conv_packed"))
every_kind = pytest.mark.parametrize("dense", [False, True])
F64 = torch.float64


def _packed(dense: bool) -> Sample:
    heads, channels, size, chunk, count = 5, 2, 4, 4, 3
    powers = 0.3 * real(heads, count, size, size) if dense else 0.6 * complexes(heads, count, size // 2)
    tensors = (
        real(heads, 11),
        real(channels, heads, chunk, seed=1),
        real(channels, heads, size, chunk, seed=2),
        real(heads, chunk, size, seed=3),
        powers,
        real(channels, heads, seed=4),
        real(3, heads, size, seed=5),
    )
    bounds = torch.tensor([0, 5, 5, 11])
    return Sample("ssm_conv_packed", lambda *t: ops.ssm_conv_packed(*t, cu_seqlens=bounds), tensors)


SAMPLES = {"ssm_conv_packed-diagonal": _packed(dense=False), "ssm_conv_packed-dense": _packed(dense=True)}


def bounds_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


#: On, before and after the edges of chunks of 8, empty, of one element; many chunks, and more than a block has rows.
LENGTHS = {
    "edges": [8, 0, 7, 9, 1, 16, 15, 0, 0, 17],
    "one": [21],
    "nothing": [0, 0],
    "long": [3, 700, 64, 1, 513, 1000, 800, 5],
    "tiny": [1] * 90,
}


@pytest.mark.checks("oracle")
@every_backend
@every_kind
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("with_states", [False, True])
def test_each_sequence_is_as_if_it_were_alone(
    backend: str, dense: bool, lengths: list[int], with_states: bool
) -> None:
    model = Model(3, 2, 6, 8, dense)
    u = torch.randn(3, sum(lengths), dtype=F64)
    states = torch.randn(len(lengths), 3, 6, dtype=F64) if with_states else None
    arguments = (*model.matrices(), model.d)
    y, final = ops.ssm_conv_packed(u, *arguments, states, cu_seqlens=bounds_of(lengths), backend=backend)
    assert final.shape == (len(lengths), 3, 6)
    for i, (mine, part) in enumerate(zip(u.split(lengths, -1), y.split(lengths, -1), strict=True)):
        state = None if states is None else states[i : i + 1]
        want, end = ops.ssm_conv(mine.unsqueeze(0), *arguments, state, backend="torch")
        assert relative(part, want[0]) < 1e-12
        assert (final[i] - end[0]).norm() <= 1e-12 * end.norm()


@pytest.mark.checks("gradcheck")
@every_backend
@every_kind
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_gradients_are_those_of_the_sequences_alone(backend: str, dense: bool, lengths: list[int]) -> None:
    model = Model(2, 2, 4, 8, dense)

    def gradients(packed: bool) -> list[Tensor]:
        inputs = [
            real(2, sum(lengths), seed=9),
            *(m.clone() for m in model.matrices()),
            model.d.clone(),
            real(len(lengths), 2, 4, seed=8),
        ]
        for each in inputs:
            each.requires_grad_()
        u, taps, e_out, e_in, powers, d, states = inputs
        system = taps, e_out, e_in, powers, d
        if packed:
            y, final = ops.ssm_conv_packed(u, *system, states, cu_seqlens=bounds_of(lengths), backend=backend)
        else:
            parts = [
                ops.ssm_conv(part.unsqueeze(0), *system, state.unsqueeze(0), backend="torch")
                for part, state in zip(u.split(lengths, -1), states, strict=True)
            ]
            y, final = torch.cat([y[0] for y, _ in parts], -1), torch.cat([final for _, final in parts])
        weights = real(*y.shape, seed=4), real(*final.shape, seed=5)
        return list(torch.autograd.grad((y * weights[0]).sum() + (final * weights[1]).sum(), inputs))

    for got, want in zip(gradients(True), gradients(False), strict=True):
        assert (got - want).norm() <= 1e-11 * want.norm()


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_bounds_in_lower_precision(backend: str, dtype: torch.dtype) -> None:
    chosen = random.Random(3)
    lengths = [chosen.choice([0, 1, 5, 31, 32, 33, 64, 200]) for _ in range(25)]
    model = Model(2, 1, 8, 32, dense=False)
    matrices = [m.float() for m in model.matrices()[:3]] + [model.a_powers]
    u = torch.randn(2, sum(lengths)).to(dtype)
    states = torch.randn(len(lengths), 2, 8)
    bounds = bounds_of(lengths).int()
    y, final = ops.ssm_conv_packed(u, *matrices, None, states, cu_seqlens=bounds, backend=backend)
    assert y.dtype == dtype
    want, end = ops.ssm_conv_packed(
        u.double(), *model.matrices(), None, states.double(), cu_seqlens=bounds, backend="torch"
    )
    rounded = rounds_matrices(backend, dtype)
    assert relative(y.double(), want) < (1e-6 if dtype == torch.float32 else 5e-3 if rounded else 3e-3)
    assert relative(final.double(), end) < (2e-3 if rounded else 1e-6)


@every_backend
@every_kind
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_sequence(backend: str, dense: bool, bad: float) -> None:
    model, lengths = Model(2, 1, 4, 8, dense), [5, 20, 16, 3]
    results = []
    for value in (0.0, bad):
        u = real(2, sum(lengths), seed=1)
        u[:, 7] = value
        u.requires_grad_()
        y, final = ops.ssm_conv_packed(u, *model.matrices(), cu_seqlens=bounds_of(lengths), backend=backend)
        g = torch.autograd.grad(y.sum() + final.sum(), u)[0]
        results.append((y, final, g))
    others = torch.tensor([*range(5), *range(25, 44)])
    (y, final, g), (y_bad, final_bad, g_bad) = results
    assert not y_bad.isfinite().all()
    assert torch.equal(y[..., others], y_bad[..., others])
    assert torch.equal(final[[0, 2, 3]], final_bad[[0, 2, 3]])
    assert torch.equal(g, g_bad)


@every_backend
def test_a_chunk_s_power_alone_serves_sequences_of_whole_chunks(backend: str) -> None:
    model = Model(2, 1, 4, 8, dense=True)
    *matrices, powers = model.matrices()
    u, bounds = torch.randn(2, 27, dtype=F64), torch.tensor([0, 16, 27])
    y, final = ops.ssm_conv_packed(u, *matrices, powers[:, -1:], cu_seqlens=bounds, backend=backend)
    want, end = ops.ssm_conv_packed(u, *matrices, powers, cu_seqlens=bounds, backend="torch")
    assert relative(y, want) < 1e-12
    assert relative(final[0], end[0]) < 1e-12
    assert final[1].isnan().all()


@every_kind
def test_any_number_of_threads_gives_the_same_bits(dense: bool) -> None:
    model, lengths = Model(5, 2, 6, 8, dense), LENGTHS["edges"]
    inputs = [t.requires_grad_() for t in (torch.randn(5, sum(lengths)), *model.single())]
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            outputs = ops.ssm_conv_packed(*inputs, cu_seqlens=bounds_of(lengths))
            results.append((*outputs, *torch.autograd.grad(outputs, inputs, [o.detach() for o in outputs])))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@every_backend
@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ([0, 5, 4, 9], "must ascend, got 5"),
        ([0, 12, 9], "must ascend, got 12|must be in 0 .. 9"),
        ([1, 9], "0"),
        ([0, 8], "9, got"),
        ([0, 10], "9, got"),
        ([0, -3, 9], "must ascend, got 0"),
    ],
)
def test_bounds_that_are_none(backend: str, bounds: list[int], said: str) -> None:
    model = Model(2, 1, 4, 8, dense=False)
    u, given = torch.randn(2, 9, dtype=F64), torch.tensor(bounds)
    with pytest.raises(ValueError, match=f"cu_seqlens.*({said})"):
        ops.ssm_conv_packed(u, *model.matrices(), cu_seqlens=given, backend=backend)
    with pytest.raises((ValueError, RuntimeError), match=f"cu_seqlens.*({said})"):
        implementation("ssm_conv_packed", backend)(u, *model.matrices(), None, None, given)


def test_bad_arguments() -> None:
    model, bounds = Model(2, 1, 4, 8, dense=False), torch.tensor([0, 9])
    u = torch.randn(2, 9, dtype=F64)

    def call(**changed: Any) -> Any:
        given = {"u": u, "initial_state": None, "cu_seqlens": bounds} | changed
        state, at = given["initial_state"], given["cu_seqlens"]
        return ops.ssm_conv_packed(given["u"], *model.matrices(), None, state, cu_seqlens=at)

    with pytest.raises(TypeError, match=r"cu_seqlens must be one of int32, int64, got torch.float32"):
        call(cu_seqlens=bounds.float())
    with pytest.raises(TypeError, match=r"cu_seqlens must be a torch.Tensor, got list"):
        call(cu_seqlens=[0, 9])
    with pytest.raises(ValueError, match=r"cu_seqlens must have shape \(sequences \+ 1,\), got \(1,\)"):
        call(cu_seqlens=bounds[:1])
    with pytest.raises(ValueError, match=r"initial_state must have shape \(Q=1, H=2, S=4\)"):
        call(initial_state=torch.zeros(2, 2, 4, dtype=F64))
    with pytest.raises(ValueError, match=r"u must have shape \(H, L\)"):
        call(u=u.unsqueeze(0))
    with pytest.raises(ops.BackendUnavailableError, match="does not run on 'cpu'"):
        ops.ssm_conv_packed(u, *model.matrices(), cu_seqlens=bounds, backend="cuda")
