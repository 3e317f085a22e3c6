"""The functions that S4 code calls in its CUDA extensions and in their wrappers and fallbacks, on this library's ops.

Any N, any L, float32 and float64, on every device; differentiable any number of times, where they are called inside an
autograd function too. ``v``, ``w`` and ``x`` hold one of each conjugate pair where a function is symmetric.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops


def cauchy_mult_fwd(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """``out[b, l] = sum_n v[b, n] / (z[l] - w[b, n])``: v, w (B, N), z (L) to (B, L)."""
    return ops.cauchy(v, z, w, conjugate=False)


def cauchy_mult_bwd(v: Tensor, z: Tensor, w: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients dv and dw of ``cauchy_mult_fwd``."""
    return _cauchy_gradients(v, z.conj(), w, dout)


def cauchy_mult_sym_fwd(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """``cauchy_mult_fwd`` over conjugate pairs: ``sum_n v / (z - w) + conj(v) / (z - conj(w))``."""
    return ops.cauchy(v, z, w)


def cauchy_mult_sym_bwd(v: Tensor, z: Tensor, w: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients dv and dw of ``cauchy_mult_sym_fwd``: the conjugate terms are nodes and weights of their own."""
    return _cauchy_gradients(v, torch.cat((z.conj(), z), -1), w, torch.cat((dout, dout.conj()), -1))


def _cauchy_gradients(v: Tensor, nodes: Tensor, w: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    poles = w.conj()
    dv = ops.cauchy_transpose(weights, nodes, poles)
    return dv, v.conj() * ops.cauchy_transpose(weights, nodes, poles, order=2)


def vand_log_mult_sym_fwd(v: Tensor, x: Tensor, L: int) -> Tensor:
    """``out[b, l] = 2 Re(sum_n v[b, n] exp(x[b, n] l))`` for l < L: v, x (B, N) to real (B, L)."""
    return ops.vandermonde(v, x, L)


def vand_log_mult_sym_bwd(v: Tensor, x: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients dv and dx of ``vand_log_mult_sym_fwd``."""
    decays = x.conj()
    dv = 2 * ops.vandermonde_transpose(dout, decays)
    return dv, 2 * v.conj() * ops.vandermonde_transpose(dout, decays, power=1)


def cauchy(v: Tensor, z: Tensor, w: Tensor, conj: bool = True) -> Tensor:
    """The fallback of nplr mode, with the conjugate half that ESPnet's forgets: v, w (..., N), z (..., L)."""
    return ops.cauchy(v, z, w, conjugate=conj)


def cauchy_mult(v: Tensor, z: Tensor, w: Tensor, symmetric: bool = True) -> Tensor:
    """The wrapper of the Cauchy extension: v, w (..., N) broadcast together, z has one dimension that is not 1."""
    return ops.cauchy(v, z.flatten(), w, conjugate=symmetric)


def log_vandermonde(v: Tensor, x: Tensor, L: int, conj: bool = True) -> Tensor:
    """The kernel of diag mode, 2 Re(sum_n v exp(x l)), or the plain sum: v, x (..., N) to (..., L)."""
    return ops.vandermonde(v, x, L, conjugate=conj)


def log_vandermonde_transpose(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
    """What an input adds to the state, ``v sum_l u[l] exp(x l)``: u (..., L), v, x (..., N) to (..., N)."""
    return v * ops.vandermonde_transpose(u, x)
