"""Systems, and what their chunk matrices are: dense matrices of conjugate pairs, multiplied out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sequence_kernels.ops.dispatch import implementation

C128 = torch.complex128


def system(rank: int, heads: int = 3, pairs: int = 5, channels: int = 2) -> list[Tensor]:
    """a, p, q, b and c, in complex128; the powers of A stay near 1 whatever their number."""
    generator = torch.Generator().manual_seed(rank)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, heads, pairs, dtype=C128, generator=generator)

    scale = 4 * max(1, pairs / 5) ** 0.5
    return [random() / 2, random(rank) / scale, random(rank) / scale, random(), random(channels)]


def whole(x: Tensor) -> Tensor:
    """Both of each conjugate pair."""
    return torch.cat((x, x.conj()), -1)


def states_of(rows: Tensor) -> Tensor:
    """Interleaved real states as both of each conjugate pair."""
    return whole(torch.view_as_complex(rows.unflatten(-1, (-1, 2)).contiguous()))


def error(got: Tensor, want: Tensor) -> float:
    """Of the norm."""
    return float((got - want).norm() / want.norm()) if want.numel() else 0.0


def assert_matrices(
    results: Sequence[Tensor], inputs: Sequence[Tensor], chunk: int, tail: bool, tolerance: float
) -> None:
    """taps, reads (C, H, T, S), e_in and the powers, against dense powers."""
    a, p, q, b, c = (t.to(C128) for t in inputs)
    taps, reads, e_in, a_powers = (t.to(C128 if t.is_complex() else torch.float64) for t in results)
    heads, pairs = a.shape
    matrix = torch.diag_embed(whole(a)) + torch.einsum("rhm,rhn->hmn", whole(p), whole(q))
    powers = [torch.linalg.matrix_power(matrix, j) for j in range(chunk + 1)]
    x = torch.randn(heads, 4, 2 * pairs, dtype=torch.float64)  # some real states of each head
    pushed = torch.stack([torch.einsum("hmn,hn->hm", power, whole(b)) for power in powers[:-1]], 1)
    assert error(states_of(e_in.flip(1)), pushed) < tolerance
    assert error(taps, torch.einsum("chm,hlm->chl", whole(c), pushed).real) < tolerance
    read = torch.stack([torch.einsum("chm,hmn->chn", whole(c), power) for power in powers[1:]], 2)
    later = torch.einsum("chtn,hkn->chtk", read, states_of(x)).real
    assert error(torch.einsum("chts,hks->chtk", reads, x), later) < tolerance
    sizes = [1 << i for i in range(chunk.bit_length())] if tail else [chunk]
    rank = len(p)
    assert a_powers.shape == (heads, len(sizes), *((2 * pairs, 2 * pairs) if rank else (pairs,)))
    for i, size in enumerate(sizes):
        moved = torch.einsum("hmn,hkn->hkm", powers[size], states_of(x))
        turned = states_of(x @ a_powers[:, i]) if rank else states_of(x) * whole(a_powers[:, i]).unsqueeze(1)
        assert error(turned, moved) < tolerance


def gradients_by_torch(
    gradients: Sequence[Tensor], inputs: Sequence[Tensor], *sizes: int | bool
) -> list[Tensor]:
    """The adjoint in plain torch and double precision, which gradcheck holds against differences."""
    wide = [t.to(C128 if t.is_complex() else torch.float64) for t in (*gradients, *inputs)]
    return list(implementation("ssm_chunk_backward", "torch")(*wide, *sizes))


def gradients_for(results: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the results, different in each element; those of reads as a transpose, as ssm_conv gives them."""
    weights = [
        torch.cos(torch.arange(t.numel(), dtype=torch.float64)).view(t.shape).to(t.dtype) for t in results
    ]
    weights[1] = weights[1].mT.contiguous().mT
    return weights
