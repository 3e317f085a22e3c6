"""Krylov sequences of every backend against dense matrices of conjugate pairs, multiplied out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops

from ..test_contract import backends

C128 = torch.complex128


def whole(x: Tensor) -> Tensor:
    """Both of each conjugate pair."""
    return torch.cat((x, x.conj()), -1)


@pytest.mark.checks("oracle")
@pytest.mark.parametrize("backend", backends("dplr_krylov"))
@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_against_dense_powers(backend: str, rank: int, count: int) -> None:
    x, a = torch.randn(2, 3, 4, dtype=C128), torch.randn(3, 4, dtype=C128)
    p, q = torch.randn(2, rank, 3, 4, dtype=C128) / 3
    got = ops.dplr_krylov(x, a, p, q, count, backend=backend)
    matrix = torch.diag_embed(whole(a)) + torch.einsum("rhm,rhn->hmn", whole(p), whole(q))
    for j in range(count):
        want = torch.einsum("hmn,khn->khm", torch.linalg.matrix_power(matrix, j), whole(x))
        torch.testing.assert_close(whole(got[:, :, j]), want)


@pytest.mark.parametrize("backend", backends("dplr_krylov"))
def test_exchanged_factors_give_functionals(backend: str) -> None:
    """2 Re(f A^j x) is the same from either side."""
    x, f, a = (
        torch.randn(1, 3, 4, dtype=C128),
        torch.randn(1, 3, 4, dtype=C128),
        torch.randn(3, 4, dtype=C128),
    )
    p, q = torch.randn(2, 1, 3, 4, dtype=C128) / 3
    right = ops.dplr_krylov(x, a, p, q, 6, backend=backend)
    left = ops.dplr_krylov(f, a, q, p, 6, backend=backend)
    for j in range(6):
        torch.testing.assert_close((f * right[:, :, j]).sum(-1).real, (left[:, :, j] * x).sum(-1).real)


@pytest.mark.parametrize("backend", backends("dplr_krylov"))
def test_no_vectors(backend: str) -> None:
    x = torch.ones(2, 3, 4, dtype=C128, requires_grad=True)
    none = ops.dplr_krylov(x, x[0], x, x, 0, backend=backend)
    assert none.shape == (2, 3, 0, 4)
    none.abs().sum().backward()
    assert (x.grad == 0).all()  # type: ignore[union-attr]


def test_bad_arguments() -> None:
    x = torch.ones(2, 3, 4, dtype=C128)
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        ops.dplr_krylov(x, x[0], x, x, -1)
    with pytest.raises(ValueError, match=r"q must have shape \(R=2, H=3, N=4\), got \(1, 3, 4\)"):
        ops.dplr_krylov(x, x[0], x, x[:1], 2)
