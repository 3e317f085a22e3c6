"""The chunked convolution for exporters: real numbers and two scans, whatever the length.

Whole chunks come first, the rest as chunks of one element, whose matrices are in those of T: ``taps[0]``,
``e_out[:, 0]``, ``e_in[T - 1]`` and A. All but ``X_{m+1} = X_m a_chunk + v_m`` is outside the scan. Its first element
is the initial state, ``v_0 = X_0`` after ``X = 0``: there are runtimes whose scans fail on none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import internals
from .reference import _toeplitz


def ssm_conv(
    u: Tensor,
    taps: Tensor,
    e_out: Tensor,
    e_in: Tensor,
    a_powers: Tensor,
    d: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``ops.ssm_conv`` with all its powers, those of a diagonal A as real ``(H, log2(T) + 1, S / 2, 2)``."""
    length, chunk = u.shape[-1], taps.shape[-1]
    x = u.to(taps.dtype)
    if d is not None:
        taps = torch.cat((taps[..., :1] + d.unsqueeze(-1), taps[..., 1:]), -1)
    state = x.new_zeros(*x.shape[:2], e_in.shape[-1]) if initial_state is None else initial_state
    count = length // chunk
    whole = count * chunk
    outputs = []
    if not (isinstance(whole, int) and whole == 0):
        y, state = _chunks(x[..., :whole], count, taps, e_out, e_in, a_powers[:, -1], state)
        outputs.append(y)
    if not (isinstance(whole, int) and whole == length):
        one = taps[..., :1], e_out[..., :1], e_in[:, -1:], a_powers[:, 0]
        y, state = _chunks(x[..., whole:], length - whole, *one, state)
        outputs.append(y)
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
    return y.view(*y.shape[:-1], length).to(u.dtype), state  # exporters carry the sum of the two lengths on


def _chunks(
    u: Tensor, count: int, taps: Tensor, e_out: Tensor, e_in: Tensor, a_chunk: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    chunk = taps.shape[-1]
    blocks = u.unflatten(-1, (count, chunk)).permute(2, 1, 0, 3)  # (M, H, B, T)
    inputs = (blocks @ e_in).to(a_chunk.dtype)
    states = _states(torch.cat((state.transpose(0, 1).to(a_chunk.dtype).unsqueeze(0), inputs)), a_chunk)
    states = states.to(u.dtype)
    # (M, 1, H, B, .) times (C, H, ., T)
    y = blocks.unsqueeze(1) @ _toeplitz(taps) + states[:-1].unsqueeze(1) @ e_out
    return y.permute(3, 1, 2, 0, 4).flatten(-2), states[-1].transpose(0, 1)


def _states(inputs: Tensor, a_chunk: Tensor) -> Tensor:
    """``X_m = X_{m-1} a_chunk + inputs_m`` with X before the first zero, all (M, H, B, S)."""
    if isinstance(inputs.shape[0], int) and inputs.shape[0] == 2:  # one element: a step
        return torch.cat((inputs[:1], (_times(inputs[0], a_chunk) + inputs[1]).unsqueeze(0)))

    def advance(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        following = _times(x, a_chunk) + v
        return following, following.clone()

    return internals.scan(advance, torch.zeros_like(inputs[0]).contiguous(), inputs)[1]


def _times(x: Tensor, a_chunk: Tensor) -> Tensor:
    """States (H, B, S) times a power of A: pairs (H, S / 2, 2), or dense (H, S, S)."""
    if a_chunk.shape[-2] == x.shape[-1]:
        return x @ a_chunk
    re, im = x.unflatten(-1, (-1, 2)).unbind(-1)
    a_re, a_im = a_chunk.unsqueeze(1).unbind(-1)
    return torch.stack((a_re * re - a_im * im, a_re * im + a_im * re), -1).flatten(-2)
