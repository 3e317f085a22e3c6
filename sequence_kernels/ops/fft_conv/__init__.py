"""Convolution of sequences with explicit taps, by FFT: for kernels that have no finite state."""

from __future__ import annotations

from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations
from ..registration import register_with_adjoint

find_implementations(__name__, "fft_conv", "fft_conv_backward")


def fft_conv(
    u: Tensor, k: Tensor, d: Tensor | None = None, *, bidirectional: bool = False, backend: str | None = None
) -> Tensor:
    """Causal convolution ``y[t] = sum_{j <= t} k[j] u[t - j] + d u[t]``, or a two-sided one.

    Args:
        u: input ``(B, H, L)``, float16, bfloat16, float32 or float64; any L >= 0.
        k: taps ``(C, H, K)``, of any of these dtypes, any K >= 1; taps past L do not matter. If ``bidirectional``,
            ``(2 C, H, K)``: the second half is strictly anticausal, its tap j multiplies ``u[t + 1 + j]``.
        d: skip ``(C, H)``.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``(B, C, H, L)`` in the dtype of ``u``, computed in float64 if any argument has it, otherwise in float32.

    Differentiable in ``u``, ``k`` and ``d``, any number of times.
    """
    checks.tensors(u=u, k=k, **({} if d is None else {"d": d}))
    checks.shape("u", u, (("B", None), ("H", None), ("L", None)))
    checks.shape("k", k, (("2C" if bidirectional else "C", None), ("H", u.shape[1]), ("K", None)))
    if bidirectional and k.shape[0] % 2:
        raise ValueError(f"k must have shape (2C, H, K) when bidirectional, got {tuple(k.shape)}")
    if k.shape[2] == 0:
        raise ValueError(f"k must have at least one tap, got shape {tuple(k.shape)}")
    channels = k.shape[0] // (2 if bidirectional else 1)
    if d is not None:
        checks.shape("d", d, (("C", channels), ("H", u.shape[1])))
    for name, value in (("u", u), ("k", k), ("d", d)):
        if value is not None:
            checks.dtype(name, value, (*checks.HALF, *checks.REAL))
    return _fft_conv(u, k, d, bidirectional, choose("fft_conv", backend, u))


def _fake(u: Tensor, k: Tensor, d: Tensor | None, bidirectional: bool, backend: str) -> Tensor:
    batch, heads, length = u.shape
    return u.new_empty((batch, k.shape[0] // (2 if bidirectional else 1), heads, length))


_fft_conv, _ = register_with_adjoint(
    "fft_conv",
    "u: BHL, k: WHT, d?: CH, bidirectional: bool",
    "y: BCHL",
    fake=_fake,
    missing="k",
    follows_autocast=(0,),
)
