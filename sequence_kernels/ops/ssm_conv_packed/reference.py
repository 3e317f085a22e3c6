"""The convolution of packed sequences and its adjoint in plain torch.

As ``ssm_conv``, whose names these are, with chunks that are counted from the beginning of each sequence: the state
before its first chunk is its initial one, and its final state is that before its last chunk, of r elements, times A^r,
and what these add. All states are found by doubling over the chunks of a sequence: the state before chunk m is the sum
of what came in before it, times A^T as often as there are chunks between, and after i passes this has all that came in
at most 2^i chunks ago. The number of torch calls grows with log2(L / T). The adjoint goes the same way backwards.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch import implement
from ..doubling import squared
from ..packing import Chunks, ascend, check_bounds
from ..ssm_conv.reference import (
    Matrices,
    adjoint_of,
    applied,
    by_channel,
    diagonal_sums,
    has_end,
    outer,
    shifted,
    tail_adjoint,
    tail_states,
)


def _sums(inputs: Tensor, steps: Tensor, a: Tensor) -> Tensor:
    """``x_m = inputs_m + x_{m-1} a`` for (H, M, S), where ``steps`` (M,) says how many chunks before m count."""
    sums, reach = inputs, 1
    while reach < inputs.shape[1]:
        before = F.pad(sums, (0, 0, reach, 0))[:, : inputs.shape[1]]
        sums = torch.where((steps >= reach).unsqueeze(-1), sums + applied(a, before), sums)
        a, reach = squared(a), 2 * reach
    return sums


def _rows(sequence: Tensor, chunks: Chunks, dtype: torch.dtype) -> Tensor:
    """(.., L) to (.., M, T)."""
    return F.pad(sequence.to(dtype), (0, 1))[..., chunks.token]


def _states(
    flat: Tensor, chunks: Chunks, e_in: Tensor, a_chunk: Tensor, initial_state: Tensor | None
) -> Tensor:
    """The state before each chunk."""
    starts = torch.zeros_like(e_in[:, :1]) if initial_state is None else initial_state.transpose(0, 1)
    starts = starts.expand(-1, len(chunks.first), -1)[:, chunks.sequence]
    came = F.pad(flat @ e_in, (0, 0, 1, 0))[:, :-1]
    inputs = torch.where((chunks.place == 0).unsqueeze(-1), starts, came)
    return _sums(inputs, chunks.place, a_chunk)


def _checked(cu_seqlens: Tensor, length: int) -> Tensor:
    """A number to add to results: 0, or NaN where the bounds are wrong on a device that is not waited for."""
    if cu_seqlens.device.type == "cpu":
        check_bounds(cu_seqlens, length)
    return torch.where(ascend(cu_seqlens, length), 0.0, torch.nan)


@implement("ssm_conv_packed", "torch")
def ssm_conv_packed(
    u: Tensor,
    taps: Tensor,
    e_out: Tensor,
    e_in: Tensor,
    a_powers: Tensor,
    d: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor,
) -> tuple[Tensor, Tensor]:
    length, chunk = u.shape[-1], taps.shape[-1]
    fault = _checked(cu_seqlens, length)
    chunks, matrices = Chunks.of(cu_seqlens, length, chunk), Matrices.of(taps, e_out, d)
    flat = _rows(u, chunks, taps.dtype)
    before = _states(flat, chunks, e_in, a_powers[:, -1], initial_state)
    y = torch.baddbmm(flat @ matrices.direct, before, matrices.e_out)
    y = y.unflatten(-1, (-1, chunk)).permute(2, 0, 1, 3).flatten(-2)[..., chunks.home]
    _, tail = shifted(flat[:, chunks.last], chunks.rest)
    final = tail_states(before[:, chunks.last], chunks.rest, a_powers)[-1] + tail @ e_in
    known = has_end(chunks.rest, a_powers, chunk)
    final = torch.where(known, final, torch.nan)
    return (y + fault.to(y.dtype)).to(u.dtype).contiguous(), (final + fault.to(final.dtype)).transpose(
        0, 1
    ).contiguous()


@implement("ssm_conv_packed_backward", "torch")
def ssm_conv_packed_backward(
    g: Tensor,
    g_final: Tensor,
    u: Tensor,
    taps: Tensor,
    e_out: Tensor,
    e_in: Tensor,
    a_powers: Tensor,
    d: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    length, chunk, channels = u.shape[-1], taps.shape[-1], len(taps)
    fault = _checked(cu_seqlens, length).to(taps.dtype)
    chunks, matrices, a_chunk = (
        Chunks.of(cu_seqlens, length, chunk),
        Matrices.of(taps, e_out, d),
        a_powers[:, -1],
    )
    flat = _rows(u, chunks, taps.dtype)
    g_flat = _rows(g, chunks, taps.dtype).permute(1, 2, 0, 3).flatten(2)
    before = _states(flat, chunks, e_in, a_chunk, initial_state)

    # Back through the last chunk of each sequence, from its final state to the state before.
    g_end = torch.where(has_end(chunks.rest, a_powers, chunk), g_final.transpose(0, 1), 0)
    shift, tail = shifted(flat[:, chunks.last], chunks.rest)
    met = tail_states(before[:, chunks.last], chunks.rest, a_powers)
    p_tail, da = tail_adjoint(met, g_end, chunks.rest, a_powers)
    g_tail = torch.where(shift >= 0, g_end @ e_in.mT, 0)

    # Back through the others.
    inputs = (g_flat @ matrices.e_out.mT).index_add(1, chunks.last, p_tail)
    p = _sums(inputs.flip(1), chunks.left.flip(0), adjoint_of(a_chunk)).flip(1)
    after = torch.where((chunks.left > 0).unsqueeze(-1), F.pad(p, (0, 0, 0, 1))[:, 1:], 0)

    du = torch.baddbmm(g_flat @ matrices.direct.mT, after, e_in.mT).flatten(1)
    at = (chunks.last.unsqueeze(-1) * chunk + shift.clamp(min=0)).flatten()
    du = du.index_add(1, at, g_tail.flatten(1))[:, chunks.home]
    da.append(outer(before, after, a_chunk))
    d_taps = diagonal_sums(by_channel(flat.mT @ g_flat, channels, chunk)) + fault
    return (
        (du + fault).to(u.dtype).contiguous(),
        d_taps.contiguous(),
        by_channel(before.mT @ g_flat, channels, chunk) + fault,
        flat.mT @ after + tail.mT @ g_end + fault,
        torch.stack(da, 1) + fault,
        d_taps[..., 0].clone(),
        (p[:, chunks.first] + fault).transpose(0, 1).contiguous(),
    )
