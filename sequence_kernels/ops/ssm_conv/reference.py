"""The chunked state-space convolution and its adjoint in plain torch.

With row vectors u_m of T inputs and X_m of S state entries (X_m is the state before chunk m):

    y_m     = u_m Toep(taps) + X_m E_out + d u_m
    X_{m+1} = X_m a_chunk + u_m E_in

All X_m are found by doubling (doubling.py), so that the number of torch calls grows with log2(L / T).

The state after n = m T + r elements is X_m A^r + [0 .. 0, u_{m,0} .. u_{m,r-1}] E_in, where A^r is a product of the
binary powers of A; where a_chunk, the T-th, is given alone and r > 0, or n is not one of 0 .. L, it is NaN. The
adjoint, with P_m the gradient of X_m and G_m that of y_m:

    P_m  = P_{m+1} a_chunk^* + G_m E_out^T  (+ the gradient of the state after n, times A^{r*}, where it was read)
    dU_m = G_m (Toep(taps) + d)^T + P_{m+1} E_in^T
    dE_out = sum X_m^T G_m, dE_in = sum U_m^T P_{m+1}, da_chunk = sum X_m^* P_{m+1}, dToep = sum U_m^T G_m

Arrays are held with the head first and the chunks of all rows next to each other, (H, B, M, S), so that whatever a
head does to all chunks is one matrix product; (H, B M, S) is written "flat".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checks
from ..dispatch import implement
from ..doubling import states
from ..layouts import as_complex, conjugated


def applied(a: Tensor, x: Tensor) -> Tensor:
    """States x (H, B, S) times one power of A, diagonal complex (H, S/2) or dense (H, S, S), in the precision of A."""
    wide = x.to(a.real.dtype)
    if a.is_complex():
        return _reals(_pairs(wide) * a.unsqueeze(-2)).to(x.dtype)
    return (wide @ a).to(x.dtype)


def adjoint_of(a: Tensor) -> Tensor:
    return conjugated(a) if a.is_complex() else a.mT


def _pairs(x: Tensor) -> Tensor:
    return as_complex(x.unflatten(-1, (-1, 2)))


def _reals(x: Tensor) -> Tensor:
    return torch.view_as_real(x).flatten(-2)


def outer(x: Tensor, p: Tensor, a: Tensor) -> Tensor:
    """The gradient of a from x, the states it was applied to, and p, the gradients of the results (H, .., S)."""
    x, p = x.flatten(1, -2), p.flatten(1, -2)
    if a.is_complex():
        return (conjugated(_pairs(x)) * _pairs(p)).sum(1).to(a.dtype)
    return (x.mT @ p).to(a.dtype)


def _toeplitz(taps: Tensor) -> Tensor:
    """(C, H, T, T) with entry [s, t] = taps[t - s] on and above the diagonal, else 0."""
    chunk = taps.shape[-1]
    position = torch.arange(chunk, device=taps.device)
    lag = position.unsqueeze(0) - position.unsqueeze(1)
    return torch.where(lag >= 0, taps[..., lag.clamp(min=0)], 0)


def diagonal_sums(square: Tensor) -> Tensor:
    """The transpose of ``_toeplitz``: (C, H, T) sums over the diagonals on and above the main one."""
    chunk = square.shape[-1]
    rows = F.pad(square, (0, chunk)).flatten(-2)
    sheared = F.pad(rows, (0, chunk)).unflatten(-1, (chunk, 2 * chunk + 1))
    return sheared.sum(-2)[..., :chunk]


def _flat(x: Tensor) -> Tensor:
    """(H, B, M, ..) to (H, B M, ..)."""
    return x.flatten(1, 2)


def _chunks(sequence: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
    """(B, .., H, L) to (H, B, M, .. T), padded with zeros at the end."""
    missing = -sequence.shape[-1] % chunk
    cut = F.pad(sequence.to(dtype), (0, missing)).unflatten(-1, (-1, chunk))
    return cut.movedim((-3, -2), (0, 2))


class Matrices(NamedTuple):
    """What a head multiplies a chunk with, the channels next to each other."""

    direct: Tensor  # (H, T, C T)
    e_out: Tensor  # (H, S, C T)

    @staticmethod
    def of(taps: Tensor, e_out: Tensor, d: Tensor | None) -> Matrices:
        if d is not None:
            taps = taps + F.pad(d.unsqueeze(-1), (0, taps.shape[-1] - 1))
        return Matrices(*(m.movedim(0, 2).flatten(2) for m in (_toeplitz(taps), e_out)))


def by_channel(flat: Tensor, channels: int, chunk: int) -> Tensor:
    """The adjoint of what ``Matrices`` does: (H, K, C T) to (C, H, K, T)."""
    return flat.unflatten(2, (channels, chunk)).movedim(2, 0).contiguous()


class _End(NamedTuple):
    """Where each row ends: its chunk m, the r elements it takes of that chunk, and these, shifted to the right."""

    exists: Tensor  # (B,): its length is one of 0 .. L; else it counts as ending before the first element
    chunk: Tensor  # (B,)
    rest: Tensor  # (B,)
    shift: Tensor  # (B, T): position in the chunk that comes to each position; negative means zero
    tail: Tensor  # (H, B, T)

    def rows(self) -> Tensor:
        return torch.arange(len(self.chunk), device=self.chunk.device)


def _check_lengths(lengths: Tensor | None, most: int) -> None:
    """Once more, as nobody looks at them while torch.compile traces."""
    if lengths is not None:
        checks.lengths("lengths", lengths, most)


def _ends(u: Tensor, lengths: Tensor | None, length: int) -> _End:
    _, batch, chunks, chunk = u.shape
    if lengths is None:
        lengths = torch.full((batch,), length, device=u.device)
    exists = (lengths >= 0) & (lengths <= length)
    lengths = torch.where(exists, lengths.to(torch.int64), 0)
    m, rest = lengths // chunk, lengths % chunk
    last = u[:, torch.arange(batch, device=u.device), m.clamp(max=max(chunks - 1, 0))] if chunks else u.sum(2)
    return _End(exists, m, rest, *shifted(last, rest))


def shifted(last: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """The first r elements of chunks (H, B, T), moved to the right end with zeros in front, and from where each came.

    The latter is (B, T), negative where there is a zero.
    """
    heads, _, chunk = last.shape
    shift = torch.arange(chunk, device=last.device) - (chunk - rest).unsqueeze(-1)
    return shift, torch.where(shift >= 0, last.gather(-1, shift.clamp(min=0).expand(heads, -1, -1)), 0)


def _states(
    inputs: Tensor, a_chunk: Tensor, initial: Tensor, *, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """``doubling.states`` of the inputs u_m E_in (H, B, M, S), and the state after all."""
    if not a_chunk.is_complex():
        return states(inputs, a_chunk, initial, reverse=reverse)
    before, last = states(_pairs(inputs), a_chunk, _pairs(initial), reverse=reverse)
    return _reals(before), _reals(last)


def _taken(rest: Tensor, bit: int) -> Tensor:
    return (rest >> bit & 1).bool().view(1, -1, 1)


def tail_states(start: Tensor, rest: Tensor, a_powers: Tensor) -> list[Tensor]:
    """The states met on the way from X to X A^r, one for each binary digit of r."""
    met = [start]
    for bit, a in enumerate(a_powers.unbind(1)[:-1]):
        met.append(torch.where(_taken(rest, bit), applied(a, met[-1]), met[-1]))
    return met


def tail_adjoint(met: list[Tensor], p: Tensor, rest: Tensor, a_powers: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The gradients of the state that ``tail_states`` starts from and of the powers, from that of its last one."""
    gradients: list[Tensor] = []
    for bit in reversed(range(len(met) - 1)):
        a, taken = a_powers[:, bit], _taken(rest, bit)
        gradients.insert(0, outer(met[bit], torch.where(taken, p, 0), a))
        p = torch.where(taken, applied(adjoint_of(a), p), p)
    return p, gradients


def has_end(rest: Tensor, a_powers: Tensor, chunk: int) -> Tensor:
    """(B, 1): which rows end where their state can be told: not inside a chunk, without the powers for that."""
    return ((rest == 0) | (a_powers.shape[1] == chunk.bit_length())).unsqueeze(-1)


def _initial(u: Tensor, e_in: Tensor, initial_state: Tensor | None) -> Tensor:
    if initial_state is None:
        return e_in.new_zeros(u.shape[1], u.shape[0], e_in.shape[-1])
    return initial_state.transpose(0, 1)


def _at_end(before: Tensor, last: Tensor, end: _End) -> Tensor:
    """The state (H, B, S) before the chunk in which each row ends, of those before each chunk and after all."""
    chunks = before.shape[2]
    if chunks == 0:
        return last
    inside = before[:, end.rows(), end.chunk.clamp(max=chunks - 1)]
    return torch.where((end.chunk == chunks).unsqueeze(-1), last, inside)


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
    flat, matrices = _flat(blocks), Matrices.of(taps, e_out, d)
    inputs = (flat @ e_in).unflatten(1, blocks.shape[1:3])
    before, last = _states(inputs, a_powers[:, -1], _initial(u, e_in, initial_state))
    y = torch.baddbmm(flat @ matrices.direct, _flat(before), matrices.e_out)
    y = y.unflatten(1, blocks.shape[1:3]).unflatten(-1, (-1, chunk)).permute(1, 3, 0, 2, 4).flatten(-2)
    end = _ends(blocks, lengths, length)
    final = tail_states(_at_end(before, last, end), end.rest, a_powers)[-1] + end.tail @ e_in
    final = torch.where(end.exists.unsqueeze(-1) & has_end(end.rest, a_powers, chunk), final, torch.nan)
    return y[..., :length].to(u.dtype).contiguous(), final.transpose(0, 1).contiguous()


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
    length, chunk, channels = u.shape[-1], taps.shape[-1], len(taps)
    _check_lengths(lengths, length)
    blocks = _chunks(u, chunk, taps.dtype)
    flat, g_flat = _flat(blocks), _flat(_chunks(g, chunk, taps.dtype)).flatten(2)
    matrices, a_chunk = Matrices.of(taps, e_out, d), a_powers[:, -1]
    inputs = (flat @ e_in).unflatten(1, blocks.shape[1:3])
    before, last = _states(inputs, a_chunk, _initial(u, e_in, initial_state))
    end = _ends(blocks, lengths, length)

    # Back through the tail of each row, from its final state to the state before its last chunk.
    g_end = torch.where(
        end.exists.unsqueeze(-1) & has_end(end.rest, a_powers, chunk), g_final.transpose(0, 1), 0
    )
    met = tail_states(_at_end(before, last, end), end.rest, a_powers)
    p_tail, da = tail_adjoint(met, g_end, end.rest, a_powers)
    g_tail = g_end @ e_in.mT

    # Back through the chunks; the tail's gradient joins where its row ended.
    chunks = blocks.shape[2]
    last_chunk = (end.chunk == chunks).unsqueeze(-1)
    inputs = (g_flat @ matrices.e_out.mT).unflatten(1, blocks.shape[1:3])
    if chunks:
        joins = end.chunk.clamp(max=chunks - 1).view(1, -1, 1, 1).expand(len(p_tail), -1, 1, p_tail.shape[-1])
        inputs = inputs.scatter_add(2, joins, torch.where(last_chunk, 0, p_tail).unsqueeze(2))
    start = torch.where(last_chunk, p_tail, 0)
    after, first = _states(inputs, adjoint_of(a_chunk), start, reverse=True)
    before, p_flat = _flat(before), _flat(after)

    du = torch.baddbmm(g_flat @ matrices.direct.mT, p_flat, e_in.mT)
    du = du.unflatten(1, blocks.shape[1:3]).transpose(0, 1).flatten(-2)
    if chunks:
        position = (end.shift + end.chunk.unsqueeze(-1) * chunk).clamp(min=0).unsqueeze(1)
        kept = torch.where(end.shift >= 0, g_tail, 0).transpose(0, 1)
        du = du.scatter_add(-1, position.expand_as(kept), kept)[..., :length]

    da.append(outer(before, p_flat, a_chunk))
    d_taps = diagonal_sums(by_channel(flat.mT @ g_flat, channels, chunk))
    return (
        du.to(u.dtype).contiguous(),
        d_taps.contiguous(),
        by_channel(before.mT @ g_flat, channels, chunk),
        flat.mT @ p_flat + end.tail.mT @ g_end,
        torch.stack(da, 1),
        d_taps[..., 0].clone(),
        first.transpose(0, 1).contiguous(),
    )
