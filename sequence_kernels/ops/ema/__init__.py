"""Exponential moving sums."""

from __future__ import annotations

from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations, implement_natively
from ..registration import register_with_adjoint

find_implementations(__name__, "ema", "ema_backward")
implement_natively("ema", "cpu", "cuda")
implement_natively("ema_backward", "cpu", "cuda")


def ema(u: Tensor, a: Tensor, *, backend: str | None = None) -> Tensor:
    """Exponential moving sums ``y_t = a_h y_{t-1} + u_t``, from zero.

    Args:
        u: input ``(B, H, L)``, float32 or float64.
        a: decays ``(H)``, of these dtypes.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``(B, H, L)``, in the promoted dtype of ``u`` and ``a``. Differentiable any number of times.
    """
    checks.tensors(u=u, a=a)
    checks.dtype("u", u, checks.REAL)
    checks.dtype("a", a, checks.REAL)
    checks.shape("u", u, (("B", None), ("H", None), ("L", None)))
    checks.shape("a", a, (("H", u.shape[1]),))
    u, a = checks.promoted(u, a)
    return _ema(u, a, choose("ema", backend, u))


def _fake(u: Tensor, a: Tensor, backend: str) -> Tensor:
    return u.new_empty(u.shape)


_ema, _ = register_with_adjoint("ema", "u: BHL, a: H", "y: BHL", fake=_fake, missing="a")
