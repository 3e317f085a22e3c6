"""What the compiled modules of mamba_ssm, VMamba and causal_conv1d hold, whose callers run forward and backward.

Arguments are by position, and their number tells the version. What a forward keeps for its backward is not read here:
a backward computes the forward again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..layers.selective import wide
from .selective import causal_conv1d_update as update
from .selective import convolve, scan

#: Lengths of the chunks whose states ``x`` holds, by which callers find the last one.
_CHUNK = 2048


def _gradients(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    outputs: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Of the inputs, None where there is none, given those of the outputs."""
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
        found = function(*leaves)
        used = [(y, g.to(y.dtype)) for y, g in zip(found, outputs, strict=False) if g is not None]
        there = [t for t in leaves if t is not None]
        ys, gs = zip(*used, strict=True)
        made = iter(torch.autograd.grad(ys, there, gs, allow_unused=True, materialize_grads=True))
    return [None if t is None else next(made) for t in leaves]


def _states(last: Tensor, length: int) -> Tensor:
    """``x`` of a forward: (B, D, chunks, 2 N), of which the last chunk's states, at the odd places, are filled."""
    batch, channels, size = last.shape
    x = last.new_zeros(batch, channels, max(-(-length // _CHUNK), 1), 2 * size)
    x[:, :, -1, 1::2] = last
    return x


def scan_fwd(*arguments: Any) -> list[Tensor]:
    """``selective_scan_cuda.fwd`` of mamba_ssm, with z and without nrows, or of VMamba's forks, the other way round."""
    if isinstance(arguments[7], bool):
        return core_fwd(*arguments)
    u, delta, a, b, c, d, z, bias, softplus = arguments
    with torch.no_grad():
        y, last = scan(u, delta, a, b, c, d, None, bias, softplus)
        gated = [] if z is None else [(y * torch.nn.functional.silu(wide(z))).to(u.dtype)]
    return [y, _states(last, u.shape[-1]), *gated]


def scan_bwd(*arguments: Any) -> list[Tensor | None]:
    """``selective_scan_cuda.bwd``: the gradients of u, delta, A, B, C, D, delta_bias, then of z, then the output."""
    if len(arguments) == 11:
        return core_bwd(*arguments)
    u, delta, a, b, c, d, z, bias, g, _x, _out, dz, softplus, recompute = arguments
    found = []

    def run(*inputs: Any) -> Sequence[Tensor]:
        arguments = (*inputs, softplus)
        found.append(scan(*arguments)[0])
        return found

    *gradients, of_z, of_bias = _gradients(run, (u, delta, a, b, c, d, z, bias), (g,))
    if z is not None and dz is not None:
        of_z = dz.copy_(of_z)
    rest = [] if z is None else [of_z, *([found[0].detach()] if recompute else [])]
    return [*gradients, of_bias, *rest]


def core_fwd(u: Tensor, delta: Tensor, *rest: Any) -> list[Tensor]:
    """``selective_scan_cuda_core.fwd``; with ``out_float`` behind ``nrows`` that of ``selective_scan_cuda_oflex``."""
    a, b, c, d, bias, softplus, _nrows, *out_float = rest
    with torch.no_grad():
        y, last = _grouped(u.float() if any(out_float) else u, delta, a, b, c, d, bias, softplus)
    return [y, _states(last, u.shape[-1])]


def core_bwd(*arguments: Any) -> list[Tensor | None]:
    """Their backward: the gradients of u, delta, A, B, C, D and delta_bias."""
    *inputs, g, _x, softplus, _nrows = arguments

    def run(*tensors: Any) -> Sequence[Tensor]:
        arguments = (*tensors, softplus)
        return _grouped(*arguments)[:1]

    return _gradients(run, inputs, (g,))


def _grouped(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Neighbouring channels may share a row of delta, and of its bias."""
    shared = u.shape[1] // delta.shape[1]
    if shared > 1:
        delta = delta.repeat_interleave(shared, 1)
    if bias is not None and bias.shape[0] < u.shape[1]:
        bias = bias.repeat_interleave(u.shape[1] // bias.shape[0])
    return scan(u, delta, a, b, c, d, None, bias, softplus)


def conv_fwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu_activation: bool,
) -> Tensor:
    """``causal_conv1d.cpp_functions.causal_conv1d_fwd_function``."""
    with torch.no_grad():
        y, final = convolve(x, weight, bias, seq_idx, initial_states, silu_activation)
        if final_states_out is not None:
            final_states_out.copy_(final)
    return y


def conv_bwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor | None,
    return_dinitial_states: bool,
    silu_activation: bool,
) -> tuple[Tensor | None, ...]:
    """``causal_conv1d.cpp_functions.causal_conv1d_bwd_function``: of x, weight, bias and the initial states."""

    def run(x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None) -> Sequence[Tensor]:
        return convolve(x, weight, bias, seq_idx, initial, silu_activation)

    found = _gradients(run, (x, weight, bias, initial_states), (dout, dfinal_states))
    if dx is not None and found[0] is not None:
        found[0] = dx.copy_(found[0])
    return (*found[:3], found[3] if return_dinitial_states else None)


def conv_update_function(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu_activation: bool,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """``causal_conv1d.cpp_functions.causal_conv1d_update_function``."""
    activation = "silu" if silu_activation else None
    return update(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)


def conv_fwd(*arguments: Any) -> Tensor | None:
    """``causal_conv1d_cuda.causal_conv1d_fwd`` of 1.0 (4 arguments), 1.1 (5), 1.2 (7), and 1.5.1 (8, in place)."""
    x, weight, bias, *between, silu = arguments
    out = between.pop(2) if len(between) == 4 else None
    numbers, initial, final = (*between, None, None, None)[:3]
    y = conv_fwd_function(x, weight, bias, numbers, initial, final, silu)
    return y if out is None else _into(out, y)


def conv_bwd(*arguments: Any) -> tuple[Tensor | None, ...] | None:
    """``causal_conv1d_cuda.causal_conv1d_bwd`` of 1.0 (6 arguments), 1.1 (7), 1.2 (10), and 1.5.1 (12, in place)."""
    x, weight, bias, g, *rest, silu = arguments
    if len(arguments) < 10:
        *seq_idx, dx = rest
        numbers = seq_idx[0] if seq_idx else None
        return conv_bwd_function(x, weight, bias, g, numbers, None, None, dx, False, silu)[:3]
    if len(arguments) == 10:
        return conv_bwd_function(*arguments)
    numbers, initial, of_final, *places = rest
    found = conv_bwd_function(x, weight, bias, g, numbers, initial, of_final, None, True, silu)
    for place, value in zip(places, found, strict=True):
        if place is not None and value is not None:
            place.copy_(value)
    return None


def conv_update(*arguments: Any) -> Tensor | None:
    """``causal_conv1d_cuda.causal_conv1d_update`` of 1.0 (5 arguments) to 1.5.0 (7), and of 1.5.1 (8, in place)."""
    if len(arguments) < 8:
        return conv_update_function(*arguments)
    x, state, weight, bias, out, *rest = arguments
    return _into(out, conv_update_function(x, state, weight, bias, *rest))


def _into(place: Tensor, value: Tensor) -> Tensor | None:
    """Where the caller has a place for the result there is no other."""
    place.copy_(value)
    return None
