"""The chunked state-space convolution and its adjoint in plain torch.

With row vectors u_m of T inputs and X_m of S state entries (X_m is the state before chunk m):

    y_m     = u_m Toep(taps) + X_m E_out + d u_m
    X_{m+1} = X_m a_chunk + u_m E_in

The state after n = m T + r elements is X_m A^r + [0 .. 0, u_{m,0} .. u_{m,r-1}] E_in, where A^r is a product of the
binary powers of A; where a_chunk, the T-th, is given alone and r > 0, or n is not one of 0 .. L, it is NaN. The
adjoint, with P_m the gradient of X_m and G_m that of y_m:

    P_m  = P_{m+1} a_chunk^* + G_m E_out^T  (+ the gradient of the state after n, times A^{r*}, where it was read)
    dU_m = G_m (Toep(taps) + d)^T + P_{m+1} E_in^T
    dE_out = sum X_m^T G_m, dE_in = sum U_m^T P_{m+1}, da_chunk = sum X_m^* P_{m+1}, dToep = sum U_m^T G_m

Arrays are held with the chunk first, (M, H, B, S), so that one step of the recurrence is one contiguous block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..dispatch import implement
from ..layouts import as_complex, conjugated


def _apply(a: Tensor, x: Tensor) -> Tensor:
    """States x (H, B, S) times one power of A, diagonal complex (H, S/2) or dense (H, S, S), in the precision of A."""
    wide = x.to(a.real.dtype)
    if a.is_complex():
        pairs = as_complex(wide.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * a.unsqueeze(-2)).flatten(-2).to(x.dtype)
    return (wide @ a).to(x.dtype)


def _adjoint(a: Tensor) -> Tensor:
    return conjugated(a) if a.is_complex() else a.mT


def _outer(x: Tensor, p: Tensor, a: Tensor) -> Tensor:
    """The gradient of a from x, the states it was applied to, and p, the gradients of the results (..., H, B, S)."""
    x, p = x.to(a.real.dtype), p.to(a.real.dtype)
    if a.is_complex():
        x, p = (as_complex(t.unflatten(-1, (-1, 2))) for t in (x, p))
        product = (x.conj() * p).sum(-2)
        return product.sum(0) if product.dim() > a.dim() else product
    return torch.einsum("...hbs,...hbt->hst", x, p)


def _toeplitz(taps: Tensor) -> Tensor:
    """(C, H, T, T) with entry [s, t] = taps[t - s] on and above the diagonal, else 0."""
    chunk = taps.shape[-1]
    position = torch.arange(chunk, device=taps.device)
    lag = position.unsqueeze(0) - position.unsqueeze(1)
    return torch.where(lag >= 0, taps[..., lag.clamp(min=0)], 0)


def _diagonal_sums(square: Tensor) -> Tensor:
    """The transpose of ``_toeplitz``: (C, H, T) sums over the diagonals on and above the main one."""
    chunk = square.shape[-1]
    rows = torch.nn.functional.pad(square, (0, chunk)).flatten(-2)
    sheared = torch.nn.functional.pad(rows, (0, chunk)).unflatten(-1, (chunk, 2 * chunk + 1))
    return sheared.sum(-2)[..., :chunk]


def _chunks(sequence: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
    """(..., L) to (..., M, T), padded with zeros at the end."""
    missing = -sequence.shape[-1] % chunk
    return torch.nn.functional.pad(sequence.to(dtype), (0, missing)).unflatten(-1, (-1, chunk))


class _End(NamedTuple):
    """Where each row ends: its chunk m, the r elements it takes of that chunk, and these, shifted to the right."""

    exists: Tensor  # (B,): its length is one of 0 .. L; else it counts as ending before the first element
    chunk: Tensor  # (B,)
    rest: Tensor  # (B,)
    shift: Tensor  # (B, T): position in the chunk that comes to each position; negative means zero
    tail: Tensor  # (H, B, T)


def _check_lengths(lengths: Tensor | None, most: int) -> None:
    """Once more, as nobody looks at them while torch.compile traces."""
    if lengths is not None:
        checks.lengths("lengths", lengths, most)


def _ends(u: Tensor, lengths: Tensor | None, length: int) -> _End:
    batch, _, chunks, chunk = u.shape
    if lengths is None:
        lengths = torch.full((batch,), length, device=u.device)
    exists = (lengths >= 0) & (lengths <= length)
    lengths = torch.where(exists, lengths.to(torch.int64), 0)
    m, rest = lengths // chunk, lengths % chunk
    shift = torch.arange(chunk, device=u.device) - (chunk - rest).unsqueeze(-1)
    last = (
        u[torch.arange(batch, device=u.device), :, m.clamp(max=max(chunks - 1, 0))] if chunks else u.sum(-2)
    )
    index = shift.clamp(min=0).unsqueeze(1).expand(-1, u.shape[1], -1)
    tail = torch.where(shift.unsqueeze(1) >= 0, last.gather(-1, index), 0)
    return _End(exists, m, rest, shift, tail.transpose(0, 1))


def _states(inputs: Tensor, a_chunk: Tensor, initial: Tensor) -> Tensor:
    """All states X_0 .. X_M (M + 1, H, B, S) from the inputs u_m E_in (M, H, B, S)."""
    states = [initial]
    for step in inputs:
        states.append(_apply(a_chunk, states[-1]) + step)
    return torch.stack(states)


def _tail_states(start: Tensor, rest: Tensor, a_powers: Tensor) -> list[Tensor]:
    """The states met on the way from X to X A^r, one for each binary digit of r."""
    states = [start]
    for bit, a in enumerate(a_powers.unbind(1)[:-1]):
        taken = (rest >> bit & 1).bool().view(1, -1, 1)
        states.append(torch.where(taken, _apply(a, states[-1]), states[-1]))
    return states


def _has_end(end: _End, a_powers: Tensor, chunk: int) -> Tensor:
    """(B, 1): which rows end where their state can be told: not inside a chunk, without the powers for that."""
    return (end.exists & ((end.rest == 0) | (a_powers.shape[1] == chunk.bit_length()))).unsqueeze(-1)


def _initial(u: Tensor, e_in: Tensor, initial_state: Tensor | None) -> Tensor:
    if initial_state is None:
        return e_in.new_zeros(u.shape[1], u.shape[0], e_in.shape[-1])
    return initial_state.transpose(0, 1)


def _rows(states: Tensor, chunk: Tensor) -> Tensor:
    """The state of each row b at its own chunk: (M + 1, H, B, S) to (H, B, S)."""
    return states[chunk, :, torch.arange(states.shape[2], device=states.device)].transpose(0, 1)


@implement("ssm_conv", "torch")
def ssm_conv(
    u: Tensor,
    taps: Tensor,
    e_out: Tensor,
    e_in: Tensor,
    a_powers: Tensor,
    d: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    length, chunk = u.shape[-1], taps.shape[-1]
    _check_lengths(lengths, length)
    blocks = _chunks(u, chunk, taps.dtype)
    states = _states(
        torch.einsum("bhmt,hts->mhbs", blocks, e_in), a_powers[:, -1], _initial(u, e_in, initial_state)
    )
    y = torch.einsum("bhms,chst->bchmt", blocks, _toeplitz(taps))
    y = y + torch.einsum("mhbs,chst->bchmt", states[:-1], e_out)
    if d is not None:
        y = y + d[..., None, None] * blocks.unsqueeze(1)
    end = _ends(blocks, lengths, length)
    final = _tail_states(_rows(states, end.chunk), end.rest, a_powers)[-1] + end.tail @ e_in
    final = torch.where(_has_end(end, a_powers, chunk), final, torch.nan)
    return y.flatten(-2)[..., :length].to(u.dtype).contiguous(), final.transpose(0, 1).contiguous()


@implement("ssm_conv_backward", "torch")
def ssm_conv_backward(
    g: Tensor,
    g_final: Tensor,
    u: Tensor,
    taps: Tensor,
    e_out: Tensor,
    e_in: Tensor,
    a_powers: Tensor,
    d: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    length, chunk = u.shape[-1], taps.shape[-1]
    _check_lengths(lengths, length)
    blocks, g_blocks = _chunks(u, chunk, taps.dtype), _chunks(g, chunk, taps.dtype)
    a_chunk = a_powers[:, -1]
    states = _states(torch.einsum("bhmt,hts->mhbs", blocks, e_in), a_chunk, _initial(u, e_in, initial_state))
    end = _ends(blocks, lengths, length)

    # Back through the tail of each row, from its final state to the state before its last chunk.
    g_end = torch.where(_has_end(end, a_powers, chunk), g_final.transpose(0, 1), 0)
    p_tail = g_end
    met = _tail_states(_rows(states, end.chunk), end.rest, a_powers)
    da = []
    for bit in reversed(range(a_powers.shape[1] - 1)):
        taken = (end.rest >> bit & 1).bool().view(1, -1, 1)
        a = a_powers[:, bit]
        da.append(_outer(met[bit], torch.where(taken, p_tail, 0), a))
        p_tail = torch.where(taken, _apply(_adjoint(a), p_tail), p_tail)
    g_tail = g_end @ e_in.mT

    # Back through the chunks; the tail's gradient joins where its row ended.
    from_outputs = torch.einsum("bchmt,chst->mhbs", g_blocks, e_out)
    p = torch.where(end.chunk.view(1, -1, 1) == len(from_outputs), p_tail, 0)
    gradients = [p]
    for m in reversed(range(len(from_outputs))):
        joins = torch.where(end.chunk.view(1, -1, 1) == m, p_tail, 0)
        p = _apply(_adjoint(a_chunk), p) + from_outputs[m] + joins
        gradients.append(p)
    p_all = torch.stack(gradients[::-1])
    p_after = p_all[1:]

    du = torch.einsum("bchmt,chst->bhms", g_blocks, _toeplitz(taps))
    du = du + torch.einsum("mhbs,hts->bhmt", p_after, e_in)
    if d is not None:
        du = du + torch.einsum("bchmt,ch->bhmt", g_blocks, d)
    du = du.flatten(-2)
    position = end.shift + (end.chunk + 1).unsqueeze(-1) * chunk - chunk
    kept = torch.where(end.shift.unsqueeze(1) >= 0, g_tail.transpose(0, 1), 0)
    room = torch.nn.functional.pad(du, (0, chunk))
    du = room.scatter_add(-1, position.clamp(min=0).unsqueeze(1).expand_as(kept), kept)[..., :length]

    da.insert(0, _outer(states[:-1], p_after, a_chunk))
    return (
        du.to(u.dtype).contiguous(),
        _diagonal_sums(torch.einsum("bhms,bchmt->chst", blocks, g_blocks)),
        torch.einsum("mhbs,bchmt->chst", states[:-1], g_blocks),
        torch.einsum("bhmt,mhbs->hts", blocks, p_after) + end.tail.mT @ g_end,
        torch.stack(da[::-1], 1),
        torch.einsum("bchmt,bhmt->ch", g_blocks, blocks),
        p_all[0].transpose(0, 1).contiguous(),
    )
