"""The parts of SSD that ``mamba_ssm`` has as functions of their own, and its forms that are there to be compared with.

Letters: B batch, L length, H heads of P channels, G groups of heads that share b and c, N numbers of a state, M chunks
of Q elements; element t of chunk m is number m Q + t, and what lies behind the last one is 0. ``dt`` and ``dA_cumsum``
are (B, H, M, Q): the time steps, and in each chunk the sums of dt A up to and with each element. With l for these sums,

    chunk_state:    sum_s exp(l_last - l_s) dt_s x_s b_s^T                             of each chunk
    state_passing:  S_{m+1} = exp(l_last of m) S_m + states_m                          from chunk to chunk
    chunk_scan:     y_t = sum_{s<=t} exp(l_t - l_s) (c_t . b_s) dt_s x_s + exp(l_t) S_m c_t + D x_t

Plain torch, differentiable, for teaching and for tests; ``mamba_chunk_scan_combined`` is what computes fast.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from .selective import (
    causal_conv1d_fn,
    mamba_chunk_scan_combined,
    mamba_split_conv1d_scan_combined,
    selective_scan_fn,
)


def _chunks(t: Tensor, like: Tensor, heads: int) -> Tensor:
    """(B, L, G or H, ...) to (B, M, H, Q, ...), in the dtype that is computed in."""
    _, _, count, size = like.shape
    if not (count - 1) * size < t.shape[1] <= count * size:
        raise ValueError(f"dt has {count} chunks of {size} elements, which do not hold {t.shape[1]}")
    t = F.pad(t, (*(0, 0) * (t.dim() - 2), 0, count * size - t.shape[1]))
    t = t.repeat_interleave(heads // t.shape[2], 2).unflatten(1, (count, size)).transpose(2, 3)
    return t.to(torch.promote_types(t.dtype, torch.float32))


def chunk_state(B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor, states_in_fp32: bool = True) -> Tensor:
    """What each chunk adds to the state: (B, M, H, P, N), from ``B`` (B, L, G, N) and ``x`` (B, L, H, P).

    In float32, float64 of float64; without ``states_in_fp32`` in the dtype of ``B``.
    """
    heads = x.shape[2]
    kept = (dA_cumsum[..., -1:] - dA_cumsum).exp() * dt
    states = (_chunks(x, dt, heads) * kept.transpose(1, 2).unsqueeze(-1)).mT @ _chunks(B, dt, heads)
    return states if states_in_fp32 else states.to(B.dtype)


def state_passing(
    states: Tensor, dA_chunk_cumsum: Tensor, initial_states: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The states before each chunk, as ``states`` (B, M, H, any), and the last (B, H, any), in float32 or float64.

    ``dA_chunk_cumsum`` (B, H, M): the sums of whole chunks. ``initial_states`` (B, H, any), else zeros.
    """
    wide = torch.promote_types(states.dtype, torch.float32)
    state = states.new_zeros(states[:, 0].shape) if initial_states is None else initial_states
    state, before = state.to(wide), []
    for added, kept in zip(states.unbind(1), dA_chunk_cumsum.exp().unbind(-1), strict=True):
        before.append(state)
        state = kept.unsqueeze(-1) * state + added
    return torch.stack(before, 1).to(states.dtype), state


def chunk_scan(
    B: Tensor,
    C: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    prev_states: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """The outputs (B, L, H, P) of all chunks, from the states (B, M, H, P, N) before each.

    ``B`` and ``C`` (B, L, G, N); ``D`` (H,) or (H, P); ``z``, as ``x``, gates by its SiLU.
    """
    heads, length = x.shape[2], x.shape[1]
    b, c, inputs = (_chunks(t, dt, heads) for t in (B, C, x))
    sums = dA_cumsum.transpose(1, 2)
    before = torch.ones(sums.shape[-1], sums.shape[-1], dtype=torch.bool, device=sums.device).tril()
    decay = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).masked_fill(~before, -torch.inf).exp()
    y = decay * (c @ b.mT) @ (inputs * dt.transpose(1, 2).unsqueeze(-1))
    y = y + sums.exp().unsqueeze(-1) * (c @ prev_states.to(c.dtype).mT)
    if D is not None:
        y = y + (D if D.dim() == 2 else D.unsqueeze(-1)).unsqueeze(-2) * inputs
    y = y.transpose(2, 3).flatten(1, 2)[:, :length]
    return (y if z is None else y * F.silu(z.to(y.dtype))).to(x.dtype)


def ssd_minimal_discrete(
    X: Tensor, A: Tensor, B: Tensor, C: Tensor, block_len: int, initial_states: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y (B, L, H, P) and the last state (B, H, P, N) by chunks of ``block_len``, of discrete inputs.

    ``X`` (B, L, H, P) is dt x, ``A`` (B, L, H) dt a; ``B`` and ``C`` (B, L, H, N). ``initial_states`` (B, 1, H, P, N).

    Raises:
        ValueError: ``block_len`` does not divide the length.
    """
    if X.shape[1] % block_len:
        raise ValueError(f"block_len must divide the length {X.shape[1]}, got {block_len}")
    sums = A.unflatten(1, (-1, block_len)).movedim(3, 1).cumsum(-1)
    ones = torch.ones_like(sums)
    states = chunk_state(B, X, ones, sums)
    initial = None if initial_states is None else initial_states.squeeze(1).flatten(2)
    before, last = state_passing(states.flatten(3), sums[..., -1], initial)
    y = chunk_scan(B, C, X, ones, sums, before.view(states.shape))
    return y, last.view(states[:, 0].shape).to(X.dtype)


def mamba_chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """``mamba_chunk_scan_combined`` without states."""
    y = mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus=dt_softplus)
    return cast(Tensor, y)


def ssd_selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
) -> Tensor:
    """SSD (B, L, H, P) as a selective scan of H P channels.

    ``dt`` (B, L, H) or (B, L, H, P) and ``dt_bias`` without (B, L); ``A`` (H,) or (H P, N).
    """
    heads, width = x.shape[2:]

    def channels(t: Tensor) -> Tensor:
        """(B, L, H or H P numbers) to (B, H P, L)."""
        return t.expand(*t.shape[:2], heads, width).flatten(2).mT

    def parameter(t: Tensor | None) -> Tensor | None:
        return None if t is None else (t if t.dim() == 2 else t.unsqueeze(1)).expand(heads, width).flatten()

    steps = dt if dt.dim() == 4 else dt.unsqueeze(-1)
    bias = parameter(dt_bias)
    if tuple(dt_limit) != (0.0, math.inf):
        steps = channels(steps).mT
        steps = steps if bias is None else steps + bias
        steps = (F.softplus(steps) if dt_softplus else steps).clamp(*dt_limit)
        steps, bias, dt_softplus = steps.unflatten(2, (heads, width)), None, False
    y = selective_scan_fn(
        channels(x),
        channels(steps),
        A if A.dim() == 2 else A.repeat_interleave(width).unsqueeze(1).expand(-1, B.shape[-1]),
        B.movedim(1, -1),
        C.movedim(1, -1),
        parameter(D),
        None if z is None else channels(z),
        bias,
        dt_softplus,
    )
    return cast(Tensor, y).mT.unflatten(2, (heads, width))


def mamba_conv1d_scan_ref(
    xBC: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt: Tensor,
    A: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    activation: str | None = "silu",
    headdim: int | None = None,
    ngroups: int = 1,
) -> Tensor:
    """The convolution of x, B and C side by side (B, L, H P + 2 G N), and SSD of it: (B, L, H P).

    P is told by ``z`` (B, L, H P), by ``D`` (H, P), or by ``headdim``.
    """
    heads = dt.shape[2]
    if z is not None:
        headdim = z.shape[-1] // heads
    elif D is not None and D.dim() == 2:
        headdim = D.shape[1]
    if headdim is None:
        raise ValueError("headdim must be given where neither z nor a D of (heads, headdim) is, got None")
    mixed = causal_conv1d_fn(xBC.mT, conv1d_weight, conv1d_bias, activation=activation).mT
    shared = (xBC.shape[-1] - heads * headdim) // 2
    x, b, c = mixed.split([heads * headdim, shared, shared], -1)
    gate = None if z is None else z.unflatten(-1, (heads, headdim))
    b, c = (t.unflatten(-1, (ngroups, -1)) for t in (b, c))
    x = x.unflatten(-1, (heads, headdim))
    return ssd_selective_scan(x, dt, A, b, c, D, gate, dt_bias, dt_softplus, dt_limit).flatten(2)


def mamba_split_conv1d_scan_ref(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor:
    """``mamba_split_conv1d_scan_combined`` without states; its norm is of groups, as the other's."""
    y = mamba_split_conv1d_scan_combined(
        zxbcdt,
        conv1d_weight,
        conv1d_bias,
        dt_bias,
        A,
        D,
        chunk_size,
        dt_limit=dt_limit,
        activation=activation,
        rmsnorm_weight=rmsnorm_weight,
        rmsnorm_eps=rmsnorm_eps,
        outproj_weight=outproj_weight,
        outproj_bias=outproj_bias,
        headdim=headdim,
        ngroups=ngroups,
        norm_before_gate=norm_before_gate,
    )
    return cast(Tensor, y)
