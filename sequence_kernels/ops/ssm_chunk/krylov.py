"""Krylov sequences of diagonal-plus-low-rank matrices, and their adjoint, in plain torch.

    y_0 = x,  y_{j+1} = A y_j = a y_j + sum_r p_r s_rj,  s_rj = 2 Re(sum_n q_rn y_jn)

With l_j the whole gradient of y_j: l_j = g_j + A^* l_{j+1}, A^* l = a* l + 2 sum_r q_r* t_r, t_r = Re(sum_n p_rn* l_n);
dx = l_0, da = sum_j y_j* l_{j+1}, dp_r = sum_j s_rj l_{j+1}, dq_r = 2 sum_j t_r,j+1 y_j*, sums over the vectors too.
Shapes: K vectors x (K, H, N); a (H, N); p and q (R, H, N); y (K, H, count, N). With p and q exchanged the y_j are the
functionals x A^j.

Without a low rank the y_j are found by doubling; with one, element by element, of which there are few: A squared is
dense, and for every head (2 N)^3 multiplications would take longer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..doubling import powers, states
from ..layouts import conjugated


def _sums(x: Tensor, q: Tensor) -> Tensor:
    """``Re(sum_n q_rn x_n)``: (..., H, N) and (R, H, N) to (..., H, R), in the complex dtype of x."""
    return torch.einsum("...hn,rhn->...hr", x, q).real.to(x.dtype)


def _spread(sums: Tensor, p: Tensor) -> Tensor:
    return torch.einsum("...hr,rhn->...hn", sums, p)


def krylov(x: Tensor, a: Tensor, p: Tensor, q: Tensor, count: int) -> Tensor:
    if len(p) == 0:
        return x.unsqueeze(-2) * powers(a, count)
    vectors = [x]
    for _ in range(count - 1):
        last = vectors[-1]
        vectors.append(a * last + _spread(2 * _sums(last, q), p))
    return torch.stack(vectors, -2)


def krylov_backward(
    g: Tensor, y: Tensor, a: Tensor, p: Tensor, q: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ac, pc, qc = conjugated(a), conjugated(p), conjugated(q)
    if len(p) == 0:
        after, first = states(
            g.transpose(0, 1), ac, torch.zeros_like(g[..., 0, :]).transpose(0, 1), reverse=True
        )
        da = (conjugated(y) * after.transpose(0, 1)).sum((0, 2))
        return first.transpose(0, 1).contiguous(), da, torch.zeros_like(p), torch.zeros_like(q)
    wholes = [g[..., -1, :]]
    for j in reversed(range(g.shape[-2] - 1)):
        later = wholes[-1]
        wholes.append(g[..., j, :] + ac * later + _spread(2 * _sums(later, pc), qc))
    whole = torch.stack(wholes[::-1])  # (J, K, H, N)
    before, after = y.movedim(-2, 0)[:-1], whole[1:]
    conjugate = conjugated(before)
    return (
        whole[0].contiguous(),
        (conjugate * after).sum((0, 1)),
        torch.einsum("jkhr,jkhn->rhn", 2 * _sums(before, q), after),
        torch.einsum("jkhr,jkhn->rhn", 2 * _sums(after, pc), conjugate),
    )
