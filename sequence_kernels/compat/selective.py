"""The functions of ``mamba_ssm`` and ``causal_conv1d``, with their arguments, on this library's ops.

On every device, of any size, from float16 to float64; differentiable in all that the originals are, and through final
states. What one of them cannot be given there, such as ``D=None``, is taken here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ..layers.selective import wide

Outputs = Tensor | tuple[Tensor, ...]


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Outputs:
    """S6 over ``(B, D, L)``; a complex A stands for conjugate pairs, B and C then are of real pairs ``(..., 2 L)``."""
    y, last = scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return (y, last) if return_last_state else y


def scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``ops.selective_scan`` of tensors whose dtypes and complex pairs are as mamba_ssm takes them."""
    real = torch.float64 if u.dtype == torch.float64 else torch.float32

    def parameter(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(real)

    def free(t: Tensor) -> Tensor:
        return t if (t.dtype == torch.float64) == (real == torch.float64) else t.to(real)

    if a.is_complex():
        a = a.to(real.to_complex())
        b, c = (t.to(a.dtype) if t.dim() == 2 else _pairs(t.to(real)) for t in (b, c))
    else:
        a, b, c = a.to(real), free(b), free(c)
    return ops.selective_scan(
        u,
        free(delta),
        a,
        b,
        c,
        parameter(d),
        None if z is None else free(z),
        parameter(bias),
        delta_softplus=bool(softplus),
        initial_state=None if state is None else state.to(a.dtype),
    )


def _pairs(t: Tensor) -> Tensor:
    return torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous())


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Mamba's mixer between its two maps: ``xz`` (B, 2 D, L) to (B, D, L). ``checkpoint_lvl`` changes nothing."""
    made = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, B, C, B_proj_bias, C_proj_bias)
    norms = (b_rms_weight, c_rms_weight, dt_rms_weight, b_c_dt_rms_eps)
    x, delta, b, c, z = _inputs_of_scan(xz, A, *made, *norms)
    return scan(x, delta, A, b, c, D, z, delta_bias, delta_softplus)[0]


def _inputs_of_scan(
    xz: Tensor,
    a: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    B_proj_bias: Tensor | None,
    C_proj_bias: Tensor | None,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x behind the convolution, delta, b, c and z, time last, of both halves ``xz``."""
    x, z = xz.chunk(2, 1)
    x = causal_conv1d_fn(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")
    rank, size = delta_proj_weight.shape[1], a.shape[-1] * (2 if a.is_complex() else 1)
    low = F.linear(x.mT, x_proj_weight)  # (B, L, rank + what is not given)
    delta = F.linear(low[..., :rank], delta_proj_weight)

    def drawn(given: Tensor | None, columns: slice, bias: Tensor | None, weight: Tensor | None) -> Tensor:
        if given is None:
            given = low[..., columns] if bias is None else low[..., columns] + bias.to(low.dtype)
            given = given.unflatten(-1, (-1, 2)).movedim(1, -2).flatten(-2) if a.is_complex() else given.mT
        return given if weight is None else _rms(given.movedim(-2, -1), weight, eps).movedim(-1, -2)

    b = drawn(B, slice(rank, rank + size), B_proj_bias, b_rms_weight)
    c = drawn(C, slice(low.shape[-1] - size, None), C_proj_bias, c_rms_weight)
    if dt_rms_weight is not None:
        delta = _rms(delta, dt_rms_weight, eps)
    return x, delta.mT, b, c, z


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return ops.gated_rms_norm(x, weight, eps=eps)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Mamba's mixer behind its first map: ``xz`` (B, 2 D, L) to (B, L, M)."""
    y = mamba_inner_fn_no_out_proj(
        xz,
        conv1d_weight,
        conv1d_bias,
        x_proj_weight,
        delta_proj_weight,
        A,
        B,
        C,
        D,
        delta_bias,
        B_proj_bias,
        C_proj_bias,
        delta_softplus,
        checkpoint_lvl,
        b_rms_weight,
        c_rms_weight,
        dt_rms_weight,
        b_c_dt_rms_eps,
    )
    return F.linear(
        y.mT, out_proj_weight, None if out_proj_bias is None else out_proj_bias.to(out_proj_weight.dtype)
    )


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """``mamba_inner_fn`` of Vision Mamba's forks: the sum of a scan by ``A`` and one backwards in time by ``A_b``."""
    if A.is_complex():
        raise NotImplementedError("A must be real in a scan both ways, got a complex one")
    made = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, B, C, B_proj_bias, C_proj_bias)
    x, delta, b, c, z = _inputs_of_scan(xz, A, *made)
    y, _ = scan(x, delta, A, b, c, D, z, delta_bias, delta_softplus)
    x, delta, b, c, z = (t if t.dim() == 2 else t.flip(-1) for t in (x, delta, b, c, z))
    back, _ = scan(x, delta, A_b, b, c, D, z, delta_bias, delta_softplus)
    y = y + back.flip(-1)
    bias = None if out_proj_bias is None else out_proj_bias.to(out_proj_weight.dtype)
    return F.linear(y.mT, out_proj_weight, bias)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """One step, in place on ``state`` (B, D, N) or, with heads, (B, H, P, N); ``state_batch_indices``: of its rows.

    A negative index is an idle row: its output is 0, and no state changes.
    """
    with torch.no_grad():
        batch, size = x.shape[0], state.shape[-1]
        rows = state_batch_indices
        before = state if rows is None else state[rows.clamp(min=0)]
        real = torch.float64 if torch.float64 in (state.dtype, x.dtype) else torch.float32

        def channels(t: Tensor) -> Tensor:  # heads are groups of channels
            return t.expand(x.shape).flatten(1)

        def parameter(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(real).expand(x.shape[1:]).flatten()

        y, after = ops.selective_step(
            before.to(real).flatten(1, -2),
            channels(x),
            channels(dt),
            A.to(real).expand(*x.shape[1:], size).flatten(0, -2),
            B.reshape(batch, -1, size),
            C.reshape(batch, -1, size),
            parameter(D),
            None if z is None else channels(z),
            parameter(dt_bias),
            delta_softplus=bool(dt_softplus),
        )
        return _stored(state, rows, after.reshape(before.shape), y.reshape(x.shape))


def runs(seq_idx: Tensor) -> Iterator[tuple[int, int]]:
    """Where neighbours are the same: first and last + 1 of each run of one row."""
    _, counts = torch.unique_consecutive(seq_idx, return_counts=True)
    end = 0
    for count in counts.tolist():
        yield end, end + count
        end += count


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Outputs:
    """SSD over ``(B, L, H, P)``; ``chunk_size`` and ``state_dtype`` change nothing.

    The states of rows with ``seq_idx`` begin at ``initial_states`` and again, from zeros, wherever the number changes.
    """

    def part(row: slice, time: slice, before: Tensor | None) -> tuple[Tensor, Tensor]:
        return _duality(
            x[row, time],
            dt[row, time],
            A,
            B[row, time],
            C[row, time],
            D,
            None if z is None else z[row, time],
            dt_bias,
            dt_softplus,
            dt_limit,
            before,
        )

    every = slice(None)
    if seq_idx is None:
        y, final = part(every, every, initial_states)
    else:
        rows = []
        for i in range(len(x)):
            row = slice(i, i + 1)
            before, outputs = None if initial_states is None else initial_states[row], []
            for begin, end in runs(seq_idx[i]):
                output, last = part(row, slice(begin, end), before)
                before = None
                outputs.append(output)
            rows.append((torch.cat(outputs, 1), last))
        y, final = (torch.cat(parts) for parts in zip(*rows, strict=True))
    found = [y]
    if return_final_states:
        found.append(final)
    if return_varlen_states:
        if cu_seqlens is None or len(x) != 1:
            raise ValueError("return_varlen_states needs cu_seqlens and a batch of one")
        ends = cu_seqlens.tolist()
        times = (slice(begin, end) for begin, end in itertools.pairwise(ends))
        found.append(torch.cat([part(every, time, None)[1] for time in times]))
    return found[0] if len(found) == 1 else tuple(found)


def _duality(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    limit: tuple[float, float],
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``ops.ssd`` of tensors of any dtypes."""
    real = torch.float64 if x.dtype == torch.float64 else torch.float32

    def parameter(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(real)

    return ops.ssd(
        x,
        dt.to(real),
        a.to(real),
        b.to(x.dtype),
        c.to(x.dtype),
        parameter(d),
        None if z is None else z.to(x.dtype),
        parameter(bias),
        dt_softplus=bool(softplus),
        dt_limit=None if tuple(limit) == (0.0, math.inf) and softplus else (limit[0], limit[1]),
        initial_state=parameter(state),
    )


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: torch.dtype | None = None,
) -> Outputs:
    """Mamba-2's mixer behind its first map: ``[z0 x0 | z | x B C | dt]`` (B, L, ...) to the output of the second."""
    heads = A.shape[0]
    if headdim is None and D.dim() == 1:
        raise ValueError("headdim must be given where D is one number a head")
    inner = heads * (D.shape[1] if headdim is None else headdim)
    mixed = conv1d_weight.shape[0]
    aside = (zxbcdt.shape[-1] - inner - mixed - heads) // 2
    z0, x0, z, channels, dt = zxbcdt.split([aside, aside, inner, mixed, heads], -1)
    channels = causal_conv1d_fn(channels.mT, conv1d_weight, conv1d_bias, seq_idx, activation=activation).mT
    shared = (mixed - inner) // 2
    x, b, c = channels.split([inner, shared, shared], -1)
    found = mamba_chunk_scan_combined(
        x.unflatten(-1, (heads, -1)),
        dt,
        A,
        b.unflatten(-1, (ngroups, -1)),
        c.unflatten(-1, (ngroups, -1)),
        chunk_size,
        D,
        z.unflatten(-1, (heads, -1)) if rmsnorm_weight is None else None,
        dt_bias,
        initial_states,
        seq_idx,
        dt_softplus=True,
        dt_limit=dt_limit,
        return_final_states=True,
    )
    y, final = found[0].flatten(-2), found[1]
    if rmsnorm_weight is not None:
        first = not norm_before_gate
        y = ops.gated_rms_norm(y, rmsnorm_weight, z, groups=ngroups, gate_first=first, eps=rmsnorm_eps)
    y = torch.cat((F.silu(z0) * x0, y), -1) if aside else y
    if outproj_weight is not None:
        bias = None if outproj_bias is None else outproj_bias.to(outproj_weight.dtype)
        y = F.linear(y.to(outproj_weight.dtype), outproj_weight, bias)
    return (y, final) if return_final_states else y


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | str | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Any:
    """The short convolution of ``(B, D, L)``; in 1.0 the fourth argument was ``activation``."""
    if isinstance(seq_idx, str):
        seq_idx, activation = None, seq_idx
    y, final = convolve(x, weight, bias, seq_idx, initial_states, _is_silu(activation))
    if not (return_final_states or final_states_out is not None):
        return y
    if final_states_out is not None:
        final_states_out.detach().copy_(final)
    return y, final if final_states_out is None else final_states_out


def _is_silu(activation: str | None) -> bool:
    if activation not in (None, "silu", "swish"):
        raise NotImplementedError(f"activation must be None, 'silu' or 'swish', got {activation!r}")
    return activation is not None


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """The output and the last inputs; elements of other numbers in ``seq_idx`` are not seen."""
    real = torch.float64 if x.dtype == torch.float64 else torch.float32

    def parameter(t: Tensor) -> Tensor:
        return t if t.dtype in (real, x.dtype) else t.to(real)

    weight, bias = parameter(weight), None if bias is None else parameter(bias)
    if seq_idx is None:
        before = None if initial is None else initial.to(x.dtype)
        return ops.causal_conv1d(x, weight, bias, activation="silu" if silu else None, initial_state=before)
    y = wide(x) * wide(weight[:, -1:])
    width = weight.shape[1]
    changes = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
    run = changes.cumsum(-1).unsqueeze(1)  # numbers may come again, runs do not
    for back in range(1, min(width, x.shape[-1])):
        same = F.pad(run[..., back:] == run[..., :-back], (back, 0))
        y = y + torch.where(same, F.pad(x[..., :-back], (back, 0)), 0) * wide(weight[:, -1 - back, None])
    y = y if bias is None else y + wide(bias)[:, None]
    return (F.silu(y) if silu else y).to(x.dtype), F.pad(x, (width - 1, 0))[..., x.shape[-1] :]


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """A step ``(B, D)``, or some ``(B, D, S)``, in place on the last inputs ``(B, D, at least W - 1)``.

    ``cache_seqlens``: where in each row, a ring then, the next input belongs. ``conv_state_indices``: of its rows; a
    negative one is idle, its output 0.
    """
    with torch.no_grad():
        u = x.unsqueeze(-1) if x.dim() == 2 else x
        length, width = conv_state.shape[-1], weight.shape[1]
        rows = conv_state_indices
        old = conv_state if rows is None else conv_state[rows.clamp(min=0)]
        ring = torch.arange(length, device=x.device)
        if cache_seqlens is not None:  # the oldest first
            ring = (cache_seqlens[:, None] + ring) % length
            old = old.gather(-1, ring.unsqueeze(1).expand_as(old))
        y, _ = convolve(u, weight, bias, None, old[..., length - width + 1 :], _is_silu(activation))
        new = torch.cat((old, u.to(old.dtype)), -1)[..., u.shape[-1] :]
        if cache_seqlens is not None:  # by places, of which the next has moved on
            place = (ring + u.shape[-1]) % length
            new = torch.empty_like(new).scatter_(-1, place.unsqueeze(1).expand_as(new), new)
        return _stored(conv_state, rows, new, y.reshape(x.shape))


def _stored(states: Tensor, rows: Tensor | None, new: Tensor, y: Tensor) -> Tensor:
    """Write the new states where they belong; the outputs, 0 in rows whose index is negative."""
    if rows is None:
        states.copy_(new)
        return y
    served = rows >= 0
    states[rows[served]] = new[served].to(states.dtype)
    return torch.where(served.view(-1, *(1 for _ in y.shape[1:])), y, 0)


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last ``state_len`` inputs of each sequence of ``x`` (T, D), zeros before: (sequences, D, state_len)."""
    ends = cu_seqlens.tolist()
    found = []
    for begin, end in itertools.pairwise(ends):
        last = x[max(begin, end - state_len) : end]
        found.append(F.pad(last.mT, (state_len - len(last), 0)))
    return torch.stack(found)
