"""The short causal convolution of each channel by taps of its own, with the last inputs in and out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks, packing
from ..causal_conv1d_packed import causal_conv1d_packed
from ..dispatch import choose, find_implementations
from ..registration import register_with_adjoint

_OPS = ("causal_conv1d", "causal_conv1d_channels_last")
find_implementations(__name__, *_OPS, *(f"{op}_backward" for op in _OPS))


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``y_t = activation(bias + sum_k weight[k] x_{t - W + 1 + k})`` in each channel, carrying the last W - 1 inputs.

    Args:
        x: input ``(B, D, L)``, float16, bfloat16, float32 or float64; any L >= 0. Channels may be next to each other,
            as in ``x.transpose(1, 2)`` of a contiguous ``(B, L, D)``: it is read where it lies, and y lies like it.
        weight: ``(D, W)``; ``weight[:, -1]`` is the tap of the element itself. float64 if ``x`` is, else float32 or
            the dtype of ``x``.
        bias: ``(D,)``, in a dtype that ``weight`` may have.
        activation: None, or "silu": ``x sigmoid(x)``.
        initial_state: ``(B, D, W - 1)``, the inputs before the first one, oldest first, in the dtype of ``x``; zeros
            if None.
        cu_seqlens: ``(Q + 1,)`` integers, ascending from 0 to L: B is 1, and there Q sequences begin and end, none of
            which reaches another. States are then ``(Q, D, W - 1)``.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``y`` ``(B, D, L)`` and the final state ``(B, D, W - 1)``, the last W - 1 inputs, both in the dtype of ``x``.

    Sums are accumulated in float32, or in float64 if ``x`` is. Differentiable in every tensor, also through the final
    state; second derivatives recompute the first in plain torch. One step is a call of length 1.
    """
    given = {"x": x, "weight": weight}
    given |= {"bias": bias} if bias is not None else {}
    given |= {"initial_state": initial_state} if initial_state is not None else {}
    checks.tensors(**given)
    checks.dtype("x", x, (*checks.HALF, *checks.REAL))
    checks.shape("x", x, (("B", None), ("D", None), ("L", None)))
    _, channels, length = x.shape
    sequences = packing.sequences(cu_seqlens, "x", x, length)
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    parameters = dict.fromkeys((real, x.dtype))
    checks.dtype("weight", weight, tuple(parameters))
    checks.shape("weight", weight, (("D", channels), ("W", None)))
    if weight.shape[1] == 0:
        raise ValueError(f"weight must have shape (D, W) with W at least 1, got {tuple(weight.shape)}")
    if bias is not None:
        checks.dtype("bias", bias, tuple(parameters))
        checks.shape("bias", bias, (("D", channels),))
        bias = bias.to(real)
    if initial_state is not None:
        checks.dtype("initial_state", initial_state, (x.dtype,))
        before = (("B", sequences), ("D", channels), ("W-1", weight.shape[1] - 1))
        checks.shape("initial_state", initial_state, before)
    if activation not in (None, "silu"):
        raise ValueError(f'activation must be None or "silu", got {activation!r}')
    silu, weight = activation == "silu", weight.to(real)
    if cu_seqlens is None:
        return _by_layout(x, weight, bias, initial_state, silu, backend)
    if x.device.type != "cpu":
        return _mended(x, weight, bias, initial_state, cu_seqlens.to(torch.int64), silu, backend)
    served = choose("causal_conv1d_packed", backend, x)
    y, final_state = causal_conv1d_packed(x.mT, weight, bias, initial_state, cu_seqlens, silu, served)
    return y.mT, final_state


def _by_layout(
    x: Tensor, weight: Tensor, bias: Tensor | None, start: Tensor | None, silu: bool, backend: str | None
) -> tuple[Tensor, Tensor]:
    """Where channels lie next to each other, by the op for that."""
    last = x.stride(1) == 1 and (x.stride(2) != 1 or x.shape[2] == 1)
    rest = (weight, bias, start, silu, choose(_OPS[last], backend, x))
    if last:
        y, final_state = _channels_last(x.mT, *rest)
        return y.mT, final_state
    return _causal_conv1d(x, *rest)


def _mended(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    start: Tensor | None,
    bounds: Tensor,
    silu: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Packed sequences in one run, of which the first W - 1 outputs each are made once more, from its own state."""
    y, _ = _by_layout(x, weight, bias, None, silu, backend)
    (channels, width), count, length = weight.shape, len(bounds) - 1, x.shape[-1]
    kept = width - 1
    start = x.new_zeros(count, channels, kept) if start is None else start
    if kept == 0:
        return y, start
    place = torch.arange(kept, device=x.device)
    at = torch.where(place < bounds.diff().unsqueeze(-1), bounds[:-1].unsqueeze(-1) + place, length)
    first = torch.cat((x, x.new_zeros(1, channels, 1)), -1)[0, :, at].movedim(0, 1)
    began, _ = _by_layout(first, weight, bias, start, silu, backend)
    spare = torch.arange(count * kept, device=x.device).view_as(at)  # for the places that are no elements
    homes = torch.where(at < length, at, length + spare)
    y = torch.cat((y, y.new_zeros(1, channels, count * kept)), -1)
    y = y.index_copy(-1, homes.flatten(), began.movedim(0, 1).flatten(1).unsqueeze(0))[..., :length]
    # The last W - 1 elements of each sequence, or of its state where it has fewer.
    back = bounds[1:].unsqueeze(-1) - kept + place
    own = back >= bounds[:-1].unsqueeze(-1)
    ended = x[0, :, back.clamp(min=0)].movedim(0, 1) if length else torch.zeros_like(start)
    older = (bounds.diff().unsqueeze(-1) + place).clamp(max=kept - 1)
    return y, torch.where(own.unsqueeze(1), ended, start.gather(-1, older.unsqueeze(1).expand_as(start)))


def _fake(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((x.shape[0], weight.shape[0], weight.shape[1] - 1))


_REST = "weight: HW, bias?: H, initial_state?: BHS, silu: bool"
_causal_conv1d, _ = register_with_adjoint(
    "causal_conv1d",
    f"x: BHL, {_REST}",
    "y: BHL, final_state: BHS",
    fake=_fake,
    missing="weight",
    follows_autocast=(0, 3),
)
_channels_last, _ = register_with_adjoint(
    "causal_conv1d_channels_last",
    f"x: BLH, {_REST}",
    "y: BLH, final_state: BHS",
    fake=_fake,
    missing="weight",
    follows_autocast=(0, 3),
)
