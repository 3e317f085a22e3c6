"""The convolution of a linear time-invariant state-space model, in chunks, with the state in and out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations
from ..padding import inside
from ..registration import register_with_adjoint

find_implementations(__name__, "ssm_conv", "ssm_conv_backward")


def ssm_conv(
    u: Tensor,
    taps: Tensor,
    e_out: Tensor,
    e_in: Tensor,
    a_powers: Tensor,
    d: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve sequences with a state-space model given by its chunk matrices, carrying the state.

    For chunks of T elements, as row vectors: ``y_m = u_m Toep(taps) + X_m e_out + d u_m`` and
    ``X_{m+1} = X_m a_chunk + u_m e_in``. For a model ``x_t = A x_{t-1} + B u_t, y_t = C x_t + d u_t`` the matrices are
    ``taps[l] = C A^l B``, ``e_out[:, t] = C A^{t+1}``, ``e_in[s] = A^{T-1-s} B`` and ``a_chunk = A^T``, the power.

    Args:
        u: input ``(B, H, L)``, float16, bfloat16, float32 or float64; any L >= 0.
        taps: ``(C, H, T)``, the first T taps of the kernel; T is a power of two. float32 or float64, as all
            parameters; float64 if and only if ``u`` is.
        e_out: ``(C, H, S, T)``.
        e_in: ``(H, T, S)``.
        a_powers: A^(2^i) for i = 0 .. log2(T): complex ``(H, log2(T) + 1, S / 2)`` if A is diagonal, the state being
            held as interleaved real and imaginary parts; or real ``(H, log2(T) + 1, S, S)``, applied as ``X @ A``.
            a_chunk alone, instead of log2(T) + 1 powers, will do where no row ends inside a chunk, or its final state
            is not wanted: it is then NaN. float64 or complex128 is best for any ``u``: a rounding of a_chunk compounds
            over the chunks, so its digits are what a long sequence keeps, and they cost next to nothing.
        d: skip ``(C, H)``.
        initial_state: ``(B, H, S)``, the state before the first element; zero if None.
        lengths: ``(B,)`` integers in 0 .. L: how many elements of each row are real. The final state is the one after
            them. The rest is taken as zero, whatever it holds, and its gradient is zero.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``y`` of shape ``(B, C, H, L)`` in the dtype of ``u``, and the final state ``(B, H, S)`` in that of ``taps``.
        The C++ kernels write y and the gradient of u as u lies in memory: in time order, or the heads side by side.

    Everything is accumulated, and states are held, in the dtype of ``taps``. Differentiable in every floating-point
    argument; second derivatives recompute the first in plain torch.
    """
    checks.tensors(u=u)
    checks.shape("u", u, (("B", None), ("H", None), ("L", None)))
    check_matrices(u, taps, e_out, e_in, a_powers, d)
    if initial_state is not None:
        check_states("initial_state", initial_state, u, ("B", u.shape[0]), e_in)
    if lengths is not None:
        checks.tensors(u=u, lengths=lengths)
        checks.shape("lengths", lengths, (("B", u.shape[0]),))
        checks.lengths("lengths", lengths, u.shape[2])
        u = torch.where(inside(lengths, u.shape[2]).unsqueeze(1), u, 0)
    return _ssm_conv(
        u, taps, e_out, e_in, a_powers, d, initial_state, lengths, choose("ssm_conv", backend, u)
    )


def check_matrices(
    u: Tensor, taps: Tensor, e_out: Tensor, e_in: Tensor, a_powers: Tensor, d: Tensor | None
) -> None:
    """The parameters of ``ssm_conv`` fit each other and the sequences ``(..., H, L)``."""
    parameters = {"taps": taps, "e_out": e_out, "e_in": e_in}
    if d is not None:
        parameters["d"] = d
    checks.tensors(u=u, **parameters, a_powers=a_powers)
    checks.dtype("u", u, (*checks.HALF, *checks.REAL))
    expected = torch.float64 if u.dtype == torch.float64 else torch.float32
    for name, value in parameters.items():
        checks.dtype(name, value, (expected,))
    powers = dict.fromkeys((expected, checks.COMPLEX_OF[expected], torch.float64, torch.complex128))
    checks.dtype("a_powers", a_powers, tuple(powers))
    checks.shape("taps", taps, (("C", None), ("H", u.shape[-2]), ("T", None)))
    checks.shape("e_in", e_in, (("H", u.shape[-2]), ("T", taps.shape[2]), ("S", None)))
    heads, chunk, size = e_in.shape
    channels = taps.shape[0]
    checks.shape("e_out", e_out, (("C", channels), ("H", heads), ("S", size), ("T", chunk)))
    _check_powers(a_powers, heads, chunk, size)
    if d is not None:
        checks.shape("d", d, (("C", channels), ("H", heads)))


def check_states(name: str, states: Tensor, u: Tensor, sequences: tuple[str, int], e_in: Tensor) -> None:
    """The states of the sequences, of which there are so many, ``(sequences, H, S)``."""
    checks.tensors(u=u, **{name: states})
    checks.dtype(name, states, (e_in.dtype,))
    checks.shape(name, states, (sequences, ("H", e_in.shape[0]), ("S", e_in.shape[2])))


def _check_powers(a_powers: Tensor, heads: int, chunk: int, size: int) -> None:
    if chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"taps must have shape (C, H, T) with T a power of two, got T={chunk}")
    count = 1 if a_powers.dim() > 1 and a_powers.shape[1] == 1 else chunk.bit_length()
    if a_powers.is_complex():
        if size % 2:
            raise ValueError(f"a complex a_powers needs an even state size S, got e_in with S={size}")
        checks.shape("a_powers", a_powers, (("H", heads), ("log2(T)+1", count), ("S/2", size // 2)))
    else:
        checks.shape("a_powers", a_powers, (("H", heads), ("log2(T)+1", count), ("S", size), ("S", size)))


def empty_like(u: Tensor, backend: str, *channels: int) -> Tensor:
    """A result ``(.., *channels, H, L)`` of u ``(.., H, L)``.

    The C++ kernels write the heads of an element side by side where u has them so, as a ``(B, L, H)`` that is seen as
    ``(B, H, L)``; all others write contiguous results.
    """
    *batch, heads, length = u.shape
    if backend != "cpu" or u.stride(-2) != 1 or u.stride(-1) <= 1:
        return u.new_empty((*batch, *channels, heads, length))
    return u.new_empty((*batch, length, *channels, heads)).movedim(len(batch), -1)


def _fake(u: Tensor, taps: Tensor, e_out: Tensor, e_in: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return (
        empty_like(u, rest[-1], taps.shape[0]),
        taps.new_empty((u.shape[0], u.shape[1], e_in.shape[-1])),
    )


_ssm_conv, _ = register_with_adjoint(
    "ssm_conv",
    "u: BHL, taps: CHT, e_out: CHST, e_in: HTS, a_powers: H..., d?: CH, initial_state?: BHS, lengths?: B int",
    "y: BCHL, final_state: BHS",
    fake=_fake,
    missing="taps",
    like_first=empty_like,
    follows_autocast=(0,),
)
