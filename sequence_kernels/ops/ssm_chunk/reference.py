"""The chunk matrices of a diagonal-plus-low-rank model, and their adjoint, in plain torch.

With ``D = diag(a)``: ``A^k = D^k + sum_{r, j<k} (D^{k-1-j} p_r) (q_r A^j)``. So all are made from the Krylov sequences
``A^j b``, ``c A^j`` and ``q A^j``, and from ``D^j p``. A state is (re, im, re, im, ..), a functional f the real row
(2 Re f, -2 Im f, ..) whose product with it is ``2 Re(sum_n f_n x_n)``, and A^k acts on states that are rows; where
R = 0 it is given by its eigenvalues.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import implement
from ..layouts import as_complex, conjugated
from .krylov import krylov, krylov_backward


def _state(x: Tensor) -> Tensor:
    return torch.view_as_real(x).flatten(-2)


def _state_gradient(g: Tensor) -> Tensor:
    return as_complex(g.unflatten(-1, (-1, 2)))


def _row(f: Tensor) -> Tensor:
    return _state(2 * conjugated(f))


def _row_gradient(g: Tensor) -> Tensor:
    return 2 * conjugated(_state_gradient(g))


def _sizes(chunk: int, tail: bool) -> list[int]:
    return [1 << i for i in range(chunk.bit_length())] if tail else [chunk]


def _sequences(
    a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``A^j b`` (1, H, T, N), ``c A^j`` and below them ``q A^j`` (C + R, H, T + 1, N), and ``a^j`` (H, T + 1, N)."""
    states = krylov(b.unsqueeze(0), a, p, q, chunk)
    functionals = krylov(torch.cat((c.to(a.dtype), q)), a, q, p, chunk + 1)
    powers = krylov(torch.ones_like(b).unsqueeze(0), a, p[:0], q[:0], chunk + 1).squeeze(0)
    return states, functionals, powers


def _lifts(p: Tensor, powers: Tensor, size: int) -> Tensor:
    return p.unsqueeze(-2) * powers[:, :size].flip(-2)  # (R, H, size, N)


@implement("ssm_chunk", "torch")
def ssm_chunk(
    a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, chunk: int, tail: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    states, functionals, powers = _sequences(a, p, q, b, c, chunk)
    reads, pulls = functionals[: len(c)], functionals[len(c) :]
    a_powers = []
    for size in _sizes(chunk, tail):
        if len(p) == 0:
            a_powers.append(powers[:, size])
            continue
        turned = powers[:, size]
        blocks = (
            torch.stack((_state(turned), _state(1j * turned)), -1).unflatten(1, (-1, 2)).mT
        )  # (H, N, 2, 2)
        low_rank = torch.einsum("rhji,rhjk->hik", _row(pulls[:, :, :size]), _state(_lifts(p, powers, size)))
        a_powers.append(low_rank + _block_diagonal(blocks))
    out = c.real.dtype
    return (
        torch.einsum("hts,chs->cht", _state(states[0]), _row(reads[..., 0, :])).to(out),
        _row(reads[..., 1:, :]).to(out),
        _state(states[0]).flip(-2).to(out),
        torch.stack(a_powers, 1),
    )


def _block_diagonal(blocks: Tensor) -> Tensor:
    """(H, N, 2, 2) to (H, 2 N, 2 N)."""
    heads, pairs = blocks.shape[:2]
    square = blocks.new_zeros(heads, pairs, 2, pairs, 2)
    square = square.diagonal_scatter(blocks.permute(0, 2, 3, 1), dim1=1, dim2=3)
    return square.reshape(heads, 2 * pairs, 2 * pairs)


@implement("ssm_chunk_backward", "torch")
def ssm_chunk_backward(
    g_taps: Tensor,
    g_reads: Tensor,
    g_e_in: Tensor,
    g_powers: Tensor,
    a: Tensor,
    p: Tensor,
    q: Tensor,
    b: Tensor,
    c: Tensor,
    chunk: int,
    tail: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g_taps, g_reads, g_e_in = (g.to(torch.float64) for g in (g_taps, g_reads, g_e_in))
    states, functionals, powers = _sequences(a, p, q, b, c, chunk)
    pulls, rank = functionals[len(c) :], len(p)
    g_states = g_e_in.flip(-2) + torch.einsum("cht,chs->hts", g_taps, _row(functionals[: len(c), :, 0]))
    g_first = torch.einsum("cht,hts->chs", g_taps, _state(states[0])).unsqueeze(-2)
    g_pulls = a.new_zeros(rank, *a.shape[:1], chunk + 1, *a.shape[1:])
    g_p, g_turns = torch.zeros_like(p), torch.zeros_like(powers)
    for i, size in enumerate(_sizes(chunk, tail)):
        g, missing = g_powers[:, i], chunk + 1 - size
        if rank == 0:
            g_turns = g_turns + torch.nn.functional.pad(g.unsqueeze(1), (0, 0, size, missing - 1))
            continue
        pull = _row_gradient(torch.einsum("hik,rhjk->rhji", g, _state(_lifts(p, powers, size))))
        lift = _state_gradient(torch.einsum("hik,rhji->rhjk", g, _row(pulls[:, :, :size]))).flip(-2)
        turned = torch.einsum("rhn,rhjn->hjn", conjugated(p), lift)
        blocks = g.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).diagonal(dim1=1, dim2=3)  # (H, 2, 2, N)
        whole = torch.complex(blocks[:, 0, 0] + blocks[:, 1, 1], blocks[:, 0, 1] - blocks[:, 1, 0])
        g_p = g_p + torch.einsum("rhjn,hjn->rhn", lift, conjugated(powers[:, :size]))
        g_pulls = g_pulls + torch.nn.functional.pad(pull, (0, 0, 0, missing))
        g_turns = g_turns + torch.nn.functional.pad(turned, (0, 0, 0, missing))
        g_turns = g_turns + torch.nn.functional.pad(whole.unsqueeze(1), (0, 0, size, missing - 1))
    g_c = _row_gradient(torch.cat((g_first, g_reads), -2))
    _, a_turns, _, _ = krylov_backward(g_turns.unsqueeze(0), powers.unsqueeze(0), a, p[:0], q[:0])
    g_b, a_states, p_states, q_states = krylov_backward(
        _state_gradient(g_states).unsqueeze(0), states, a, p, q
    )
    g_cq, a_reads, q_reads, p_reads = krylov_backward(torch.cat((g_c, g_pulls)), functionals, a, q, p)
    return (
        a_turns + a_states + a_reads,
        g_p + p_states + p_reads,
        q_states + q_reads + g_cq[len(c) :],
        g_b.squeeze(0),
        g_cq[: len(c)].to(c.dtype),
    )
