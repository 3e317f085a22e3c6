"""What Hugging Face's Mamba mixers compute on a CPU, by this library's ops: see ``install``.

Written for the methods that transformers 4.57 calls where there is no GPU. Where a cache is given, a call may go on
from it with any number of tokens. ``attention_mask`` may have its padding at either end: no time passes there, and
nothing of it reaches the convolution or the cache, whatever biases there are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..layers import mamba2 as mamba2_layer
from ..layers import s6
from ..layers.selective import wide

Method = Callable[..., Tensor]


class _Call(NamedTuple):
    """What came before, ``None`` where nothing did, and where the real tokens are, ``None`` if everywhere."""

    window: Tensor | None  # (batch, channels, width): the convolution's last inputs
    state: Tensor | None
    real: Tensor | None  # (batch, length)


def mamba(original: Method) -> Method:
    """``MambaMixer.slow_forward``."""

    @functools.wraps(original)
    def slow_forward(
        mixer: Any,
        input_states: Tensor,
        cache_params: Any = None,
        cache_position: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        call = _call(mixer, input_states, cache_params, cache_position, attention_mask)
        if call is None:
            return original(mixer, input_states, cache_params, cache_position, attention_mask)
        u, z = mixer.in_proj(input_states).chunk(2, -1)
        u = _convolved(mixer, u, call, cache_params)
        y, after = s6.recurrence(mixer, u, z, call.state, call.real)
        _keep(cache_params, mixer.layer_idx, after)
        return mixer.out_proj(y)

    return slow_forward


def mamba2(original: Method) -> Method:
    """``Mamba2Mixer.torch_forward``."""

    @functools.wraps(original)
    def torch_forward(
        mixer: Any,
        hidden_states: Tensor,
        cache_params: Any = None,
        cache_position: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        call = _call(mixer, hidden_states, cache_params, cache_position, attention_mask)
        if call is None:
            return original(mixer, hidden_states, cache_params, cache_position, attention_mask)
        inner = mixer.intermediate_size
        projected = mixer.in_proj(hidden_states)
        aside = projected.shape[-1] - inner - mixer.conv_dim - mixer.num_heads  # nobody reads it
        _, z, mixed, dt = projected.split([aside, inner, mixer.conv_dim, mixer.num_heads], -1)
        mixed = _convolved(mixer, mixed, call, cache_params)
        limit, groups = mixer.time_step_limit, mixer.n_groups
        y, after = mamba2_layer.recurrence(mixer, mixed, dt, inner, groups, limit, call.state, call.real)
        _keep(cache_params, mixer.layer_idx, after)
        return mixer.out_proj(mixer.norm(y, z).to(hidden_states.dtype))

    return torch_forward


def _call(mixer: Any, x: Tensor, cache: Any, position: Tensor | None, mask: Tensor | None) -> _Call | None:
    """None where the mixer's own code has to serve: off the CPU, or with another activation."""
    served = x.device.type == "cpu" and mixer.activation in ("silu", "swish")
    if not served or (mask is not None and mask.dim() != 2):
        return None
    goes_on = cache is not None and position is not None and int(position[0]) > 0
    real = None if mask is None else mask[:, -x.shape[1] :].bool()
    if not goes_on:
        return _Call(None, None, real)
    return _Call(cache.conv_states[mixer.layer_idx], wide(cache.ssm_states[mixer.layer_idx]), real)


def _convolved(mixer: Any, u: Tensor, call: _Call, cache: Any) -> Tensor:
    """silu of the convolution of ``(batch, length, channels)``; the cache gets the last real inputs."""
    if call.real is not None:
        u = torch.where(call.real.unsqueeze(-1), u, 0)
    weight = mixer.conv1d.weight.squeeze(1)
    before = None if call.window is None else call.window[..., 1:].to(u.dtype)
    y, _ = ops.causal_conv1d(u.mT, weight, mixer.conv1d.bias, activation="silu", initial_state=before)
    if cache is not None:
        window = cache.conv_states[mixer.layer_idx]
        old = torch.zeros_like(window) if call.window is None else window
        known = torch.cat((old, u.detach().mT.to(old.dtype)), -1)
        if call.real is None:
            window.copy_(known[..., known.shape[-1] - window.shape[-1] :])
        else:
            places = torch.arange(1, u.shape[1] + 1, device=u.device)
            end = (call.real * places).amax(-1)  # behind the last real one; 0 if there is none
            index = end.view(-1, 1, 1) + torch.arange(window.shape[-1], device=u.device)
            window.copy_(known.gather(-1, index.expand(-1, window.shape[1], -1)))
    return y.mT


def _keep(cache: Any, layer: int, state: Tensor) -> None:
    if cache is not None:
        cache.ssm_states[layer].copy_(state.detach())


#: By the last part of a module's name: its classes, their methods, and what stands there instead.
METHODS: dict[str, dict[str, tuple[str, Callable[[Method], Method]]]] = {
    "modeling_mamba": {"MambaMixer": ("slow_forward", mamba)},
    "modeling_mamba2": {"Mamba2Mixer": ("torch_forward", mamba2)},
}
