"""S4's generating function in plain torch: the products as written, over blocks of nodes so that memory stays bounded.

With the half step in ``w``, ``b`` and ``p``, and ``t = sin / cos``, nothing is infinite:

    M_jk = sum_n left_jn right_kn / (i sin - cos w_n) + its conjugate pair,   left = (c, q), right = (b, p)
    out_c = (cos + i sin) (M_cb - cos M_cp (I + cos M_qp)^-1 M_qb)
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import implement
from ..layouts import conjugated

#: Node-pole pairs (over all heads) that are held at a time.
_BLOCK = 1 << 20


def stacked(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat((first, second)).resolve_conj()


def on_circle(t: Tensor) -> tuple[Tensor, Tensor]:
    """``1 / sqrt(1 + t^2)`` and ``t / sqrt(1 + t^2)``; an infinite t gives exactly 0 and its sign, without slope."""
    infinite = t.isinf()
    finite = t.masked_fill(infinite, 0)
    cos = torch.hypot(torch.ones_like(t), finite).reciprocal()
    return cos.masked_fill(infinite, 0), torch.where(infinite, t.sign(), finite * cos)


def inverse_small(low: Tensor) -> Tensor:
    """``(I + low)^-1`` for (R, R, H, L), in the same layout."""
    if low.shape[0] == 1:
        return (1 + low).reciprocal()
    identity = torch.eye(low.shape[0], dtype=low.dtype, device=low.device)
    return torch.linalg.inv(identity + low.permute(2, 3, 0, 1)).permute(2, 3, 0, 1)


def small_product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product of (I, R, H, L) and (R, J, H, L), to (I, J, H, L)."""
    if right.shape[0] == 1:
        return left * right
    return (left.unsqueeze(2) * right).sum(1)


@implement("dplr_generating", "torch")
def dplr_generating(c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor) -> Tensor:
    channels, (heads, pairs) = c.shape[0], w.shape
    v = stacked(c, q).unsqueeze(1) * stacked(b.unsqueeze(0), p)
    cos, sin = on_circle(t)
    step = max(1, _BLOCK // max(1, heads * pairs))
    out = [c.new_zeros((channels, heads, 0))]
    for start in range(0, t.shape[0], step):
        y, s = cos[start : start + step], sin[start : start + step]
        below = (1j * s - w.unsqueeze(-1) * y).reciprocal()  # (H, N, l)
        above = (1j * s - conjugated(w).unsqueeze(-1) * y).reciprocal()
        m = torch.einsum("jkhn,hnl->jkhl", v, below) + torch.einsum("jkhn,hnl->jkhl", v.conj(), above)
        solved = small_product(inverse_small(y * m[channels:, 1:]), m[channels:, :1])
        correction = small_product(m[:channels, 1:], solved).squeeze(1)
        out.append(torch.complex(y, s) * (m[:channels, 0] - y * correction))
    return torch.cat(out, -1)
