"""The recurrent steps of every backend against dense matrices of conjugate pairs written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops

from ..devices import backends, device_of, gpu_backends
from ..sample import Sample, complexes, real

C128 = torch.complex128


SAMPLES = {
    "ssm_step": Sample(
        "ssm_step",
        ops.ssm_step,
        (
            complexes(2, 3, 4),
            real(2, 3),
            complexes(3, 4, seed=1),
            complexes(3, 4, seed=2),
            complexes(2, 3, 4, seed=3),
            real(2, 3, seed=4),
        ),
    ),
    "ssm_step-low-rank": Sample(
        "ssm_step",
        ops.ssm_step,
        (
            complexes(2, 3, 4),
            real(2, 3),
            complexes(3, 4, seed=1),
            complexes(3, 4, seed=4),
            complexes(1, 3, 4, seed=5),
            real(1, 3),
            complexes(2, 3, 4, seed=2),
            complexes(2, 3, 4, seed=3),
        ),
    ),
}


def whole(x: Tensor) -> Tensor:
    """Both of each conjugate pair."""
    return torch.cat((x, x.conj()), -1)


def parts(batch: tuple[int, ...], device: str = "cpu") -> tuple[Tensor, ...]:
    with torch.device(device):
        state, u = torch.randn(*batch, 3, 4, dtype=C128), torch.randn(*batch, 3, dtype=torch.float64)
        a, b = torch.randn(3, 4, dtype=C128), torch.randn(3, 4, dtype=C128)
        return state, u, a, b, torch.randn(2, 3, 4, dtype=C128), torch.randn(2, 3, dtype=torch.float64)


@pytest.mark.checks("oracle")
@pytest.mark.parametrize("backend", backends("ssm_step") + gpu_backends("ssm_step"))
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
def test_diagonal(backend: str, batch: tuple[int, ...]) -> None:
    state, u, a_minus_one, b, c, d = parts(batch, device_of(backend))
    y, new_state = ops.ssm_step(state, u, a_minus_one, b, c, d, backend=backend)
    matrix = torch.diag_embed(1 + whole(a_minus_one))
    moved = torch.einsum("hmn,...hn->...hm", matrix, whole(state)) + whole(b) * u.unsqueeze(-1)
    torch.testing.assert_close(whole(new_state), moved)
    torch.testing.assert_close(
        y, torch.einsum("chn,...hn->...ch", whole(c), moved).real + d * u.unsqueeze(-2)
    )


@pytest.mark.checks("oracle")
@pytest.mark.parametrize("backend", backends("ssm_step") + gpu_backends("ssm_step"))
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_diagonal_plus_low_rank(backend: str, batch: tuple[int, ...], rank: int) -> None:
    state, u, a_minus_one, b, c, d = parts(batch, device_of(backend))
    p, q = torch.randn(2, rank, 3, 4, dtype=C128, device=state.device)
    y, new_state = ops.ssm_step(state, u, a_minus_one, b, c, d, p, q, backend=backend)
    matrix = torch.diag_embed(1 + whole(a_minus_one)) + torch.einsum("rhm,rhn->hmn", whole(p), whole(q))
    moved = torch.einsum("hmn,...hn->...hm", matrix, whole(state)) + whole(b) * u.unsqueeze(-1)
    torch.testing.assert_close(whole(new_state), moved)
    torch.testing.assert_close(
        y, torch.einsum("chn,...hn->...ch", whole(c), moved).real + d * u.unsqueeze(-2)
    )


def test_half_precision_input_keeps_a_float32_state() -> None:
    state, u, a_minus_one, b, c, d = (
        t.to(torch.complex64 if t.is_complex() else torch.float32) for t in parts((5,))
    )
    y, new_state = ops.ssm_step(state, u.bfloat16(), a_minus_one, b, c, d)
    want, want_state = ops.ssm_step(state, u.bfloat16().float(), a_minus_one, b, c, d)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, want.bfloat16())
    torch.testing.assert_close(new_state, want_state)


@pytest.mark.parametrize("backend", backends("ssm_step") + gpu_backends("ssm_step"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrower_input_keeps_a_float64_state(backend: str, dtype: torch.dtype) -> None:
    state, u, *parameters = parts((5,), device_of(backend))
    u = u.to(dtype)
    y, new_state = ops.ssm_step(state, u, *parameters, backend=backend)
    want, want_state = ops.ssm_step(state, u.double(), *parameters, backend=backend)
    assert y.dtype == dtype
    assert torch.equal(y, want.to(dtype))
    assert torch.equal(torch.view_as_real(new_state), torch.view_as_real(want_state))
    assert torch.equal(ops.ssm_step_(state, u, *parameters, backend=backend), y)


def test_bad_arguments() -> None:
    state, u, a_minus_one, b, c, d = parts((5,))
    with pytest.raises(ValueError, match=r"u must have shape \(..., H\) = \(5, 3\), got \(4, 3\)"):
        ops.ssm_step(state, u[:4], a_minus_one, b, c, d)
    with pytest.raises(TypeError, match=r"state must be one of complex64, complex128, got torch.float64"):
        ops.ssm_step(state.real, u, a_minus_one, b, c, d)
    with pytest.raises(TypeError, match=r"a_minus_one must be one of complex128, got torch.complex64"):
        ops.ssm_step(state, u, a_minus_one.to(torch.complex64), b, c, d)
    with pytest.raises(ValueError, match=r"p and q must have the same rank R"):
        ops.ssm_step(state, u, a_minus_one, b, c, d, c, c[:1])
    with pytest.raises(ValueError, match=r"p and q must have the same rank R, got \(2, 3, 4\) and None"):
        ops.ssm_step(state, u, a_minus_one, b, c, d, c)
    with pytest.raises(ValueError, match=r"p must have shape \(R, H=3, N=4\), got \(2, 3, 3\)"):
        ops.ssm_step(state, u, a_minus_one, b, c, d, c[..., :3], c)
