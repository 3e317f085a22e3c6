"""The adjoint of S4's generating function by products of the Cauchy family, which can be differentiated again.

With the products M at i t, ``X = (I + M_qp)^-1``, ``a = X M_qb`` and ``l = M_cp X``, the change of ``out_c`` is
``(1 + i t) (1, -l_c) dM (1, -a)^T``. An infinite node has products and gradients of 0 here, and adds those of its
limit, ``2 Re(sum_n c_n b_n)``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..cauchy import _cauchy, _cauchy_transpose
from ..dispatch import implement
from ..layouts import conjugated
from .reference import inverse_small, small_product, stacked


class Products(NamedTuple):
    """The products M of a gradient's call, and the gradient with respect to them."""

    left: Tensor  # (C + R, H, N)
    right: Tensor  # (1 + R, H, N)
    v: Tensor  # (C + R, 1 + R, H, N)
    z: Tensor  # (L)
    bracket: Tensor  # (C, H, L): out / (1 + i t)
    gm: Tensor  # (C + R, 1 + R, H, L)


def _products(
    g: Tensor, c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor, backend: str
) -> Products:
    channels, infinite = c.shape[0], t.isinf()
    left, right = stacked(c, q), stacked(b.unsqueeze(0), p)
    v = left.unsqueeze(1) * right
    z = torch.complex(torch.zeros_like(t), t)
    m = _cauchy(v, z, w, True, 1, backend)
    x = inverse_small(m[channels:, 1:])
    a, lows = small_product(x, m[channels:, :1]), small_product(m[:channels, 1:], x)
    factor = (1 + z.masked_fill(infinite, 0)).masked_fill(infinite, 0)
    gu = g * factor.conj()
    rows = torch.cat((gu, -(gu.unsqueeze(1) * lows.conj()).sum(0))).unsqueeze(1)
    gm = torch.cat((rows, -rows * a.squeeze(1).conj()), 1)
    bracket = m[:channels, 0] - small_product(m[:channels, 1:], a).squeeze(1)
    return Products(left, right, v, z, bracket, gm)


def gradients(
    g: Tensor, c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor, backend: str
) -> tuple[Tensor, ...]:
    """With respect to c, p, q, b and w."""
    channels = c.shape[0]
    left, right, v, z, _, gm = _products(g, c, p, q, b, w, t, backend)
    dv, squares = (_cauchy_transpose(gm, -z, conjugated(w), True, order, backend) for order in (1, 2))
    limit = 2 * torch.where(t.isinf(), g.real, 0).sum(-1, keepdim=True)
    dleft = (dv * right.conj()).sum(1)
    dright = (dv * left.unsqueeze(1).conj()).sum(0)
    dc, db = dleft[:channels] + limit * b.conj(), dright[0] + (limit * c.conj()).sum(0)
    return dc, dright[1:], dleft[channels:], db, (v.conj() * squares).sum((0, 1))


def gradient_of_nodes(
    g: Tensor, c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor, backend: str
) -> Tensor:
    """With respect to t, which is a constant in every model: no kernel computes it beside the others."""
    _, _, v, z, bracket, gm = _products(g, c, p, q, b, w, t, backend)
    slopes = _cauchy(v, z, w, True, 2, backend)
    return (gm.conj() * slopes).imag.sum((0, 1, 2)) - (g.conj() * bracket).imag.sum((0, 1))


@implement("dplr_generating_backward", "torch")
def dplr_generating_backward(
    g: Tensor, c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor
) -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in gradients(g, c, p, q, b, w, t, "torch"))
