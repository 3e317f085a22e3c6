"""Hugging Face's Mamba mixers on this library's ops: see ``install`` and ``accelerate``.

One function serves every family whose mixer is Mamba's or Mamba-2's, in transformers 4.57 and 5, with the caches of
either. Where a cache is given, a call may go on from it with any number of tokens. ``attention_mask`` may have its
padding anywhere: no time passes there, and nothing of it reaches the convolution or the cache, whatever biases there
are.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..layers import mamba2, s6
from ..layers.selective import wide

Forward = Callable[..., Tensor]

#: The mixers that ``install`` serves, by the last part of the name of the module that each is in.
MIXERS = {
    "modeling_mamba": "MambaMixer",
    "modeling_falcon_mamba": "FalconMambaMixer",
    "modeling_jamba": "JambaMambaMixer",
    "modeling_mamba2": "Mamba2Mixer",
    "modeling_bamba": "BambaMixer",
    "modeling_falcon_h1": "FalconH1Mixer",
    "modeling_granitemoehybrid": "GraniteMoeHybridMambaLayer",
    "modeling_nemotron_h": "NemotronHMamba2Mixer",
    "modeling_zamba2": "Zamba2MambaMixer",
}

#: Arguments that say where the sequences of a packed row begin; the mixer's own code has to serve them.
_PACKED = ("seq_idx", "cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k")

#: What these mixers are recognised by.
PARTS = ("conv1d", "A_log", "D", "in_proj", "out_proj", "layer_idx", "intermediate_size")

#: How far two implementations of one mixer may be apart, relative to the size of the output.
_NEAR = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}


class _Call(NamedTuple):
    """What came before, ``None`` where nothing did, and where the real tokens are, ``None`` if everywhere."""

    window: Tensor | None  # (batch, channels, width): the convolution's last inputs
    state: Tensor | None
    real: Tensor | None  # (batch, length)


def forward(original: Forward) -> Forward:
    """The ``forward`` of a mixer's class by our ops, on a CPU; whatever they cannot serve goes to ``original``."""
    names = list(inspect.signature(original).parameters)[1:]

    @functools.wraps(original)
    def forward(mixer: Any, *args: Any, **kwargs: Any) -> Tensor:
        given = dict(zip(names, args, strict=False)) | kwargs
        served = given["hidden_states"].device.type == "cpu" and reason_against(mixer) is None
        y = mixed(mixer, given) if served else None
        return original(mixer, *args, **kwargs) if y is None else y

    forward.replaces = original  # type: ignore[attr-defined]
    return forward


class Mixer(nn.Module):
    """A mixer of Hugging Face's on our ops, on every device, in its place in a model.

    It has the other's parts, parameters and buffers, under their names: what is put into one is in both.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.__dict__["original"] = original  # no part of this one
        self._modules, self._parameters = original._modules, original._parameters
        self._buffers = original._buffers
        self.training = original.training
        self._names = list(inspect.signature(original.forward).parameters)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        y = mixed(self.original, dict(zip(self._names, args, strict=False)) | kwargs)
        return self.original(*args, **kwargs) if y is None else y

    def train(self, mode: bool = True) -> Mixer:
        self.original.training = mode
        return super().train(mode)

    def __getattr__(self, name: str) -> Any:  # the sizes that models read from their mixers
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["original"], name)


def reason_against(mixer: Any) -> str | None:
    """Why our ops do not compute what this mixer does; None if they do."""
    if hasattr(mixer, "x_proj_weight"):
        return "its channels are split into heads with projections of their own (x_proj_weight)"
    if not hasattr(mixer, "x_proj") and not hasattr(mixer, "dt_bias"):
        return "it has neither x_proj nor dt_bias: it is no mixer of Mamba or Mamba-2"
    if mixer.activation not in ("silu", "swish"):
        return f"the activation {mixer.activation!r} has no counterpart here"
    return None


def served(mixer: Any) -> Mixer:
    """The mixer on our ops. Raises ValueError for one that computes something else by what it is made of."""
    reason = reason_against(mixer)
    if reason is not None:
        raise ValueError(reason)
    ours = Mixer(mixer)
    if "hidden_states" not in ours._names:
        raise ValueError(f"its forward takes {', '.join(ours._names)}, and no hidden_states")
    return ours


def proven(mixer: Any) -> None:
    """Raise ValueError if on a trial the mixer on our ops computes something else."""
    ours = served(mixer)
    own = next((getattr(mixer, n) for n in ("slow_forward", "torch_forward") if hasattr(mixer, n)), mixer)
    weight = next(mixer.parameters())
    if weight.device.type == "meta":
        raise ValueError("its parameters are on the meta device: there is nothing to try it on")
    drawn = torch.randn(2, 11, mixer.hidden_size, generator=torch.Generator().manual_seed(0))
    x = drawn.to(weight.device, weight.dtype)
    training = mixer.training
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        want, got = own(x).double(), ours.eval()(x).double()
    ours.train(training)
    apart = float((got - want).norm() / want.norm().clamp(min=1e-30))
    if not apart <= _NEAR.get(weight.dtype, 1e-4):
        raise ValueError(f"on a trial it computes something else than ours: they are {apart:.2g} apart")


def mixed(mixer: Any, given: dict[str, Any]) -> Tensor | None:
    """What the mixer computes of the arguments of its forward, by their names; None where its own code has to."""
    x, mask = given["hidden_states"], given.get("attention_mask")
    cache: Any = given.get("cache", given.get("cache_params"))
    if (mask is not None and mask.dim() != 2) or any(given.get(name) is not None for name in _PACKED):
        return None
    if hasattr(cache, "is_recording_past") and cache.is_recording_past(mixer.layer_idx):
        return None
    real = None if mask is None else mask[:, -x.shape[1] :].bool()
    call = _Call(*_known(cache, mixer.layer_idx, given.get("cache_position")), real)
    y, window, state = (_mamba if hasattr(mixer, "x_proj") else _mamba2)(mixer, x, call)
    if cache is not None:
        _keep(cache, mixer.layer_idx, window, state.detach())
    return mixer.out_proj(y.to(x.dtype))


def _mamba(mixer: Any, x: Tensor, call: _Call) -> tuple[Tensor, Tensor, Tensor]:
    u, z = mixer.in_proj(x).chunk(2, -1)
    u, window = _convolved(mixer, u, call)
    y, state = s6.recurrence(mixer, u, z, call.state, call.real, _norms(mixer))
    return y, window, state


def _norms(mixer: Any) -> tuple[Callable[[Tensor], Tensor], ...] | None:
    """Those of dt, before its projection, B and C."""
    if hasattr(mixer, "dt_layernorm"):  # jamba; falcon_mamba from 5 on
        return mixer.dt_layernorm, mixer.b_layernorm, mixer.c_layernorm
    if hasattr(mixer, "rms_eps"):  # falcon_mamba

        def norm(t: Tensor) -> Tensor:
            return F.rms_norm(wide(t), t.shape[-1:], eps=mixer.rms_eps).to(t.dtype)

        return norm, norm, norm
    return None


def _mamba2(mixer: Any, x: Tensor, call: _Call) -> tuple[Tensor, Tensor, Tensor]:
    inner, heads = mixer.intermediate_size, mixer.num_heads
    if hasattr(mixer, "mup_vector"):  # falcon_h1
        projected = mixer.in_proj(x * mixer.ssm_in_multiplier) * mixer.mup_vector
    else:
        projected = mixer.in_proj(x)
    aside = projected.shape[-1] - inner - mixer.conv_dim - heads  # nobody reads it
    _, z, channels, dt = projected.split([aside, inner, mixer.conv_dim, heads], -1)
    channels, window = _convolved(mixer, channels, call)
    limit = _limit(mixer)
    y, state = mamba2.recurrence(mixer, channels, dt, inner, mixer.n_groups, limit, call.state, call.real)
    norm: Any = getattr(mixer, "norm", None)
    if not hasattr(norm, "weight"):  # falcon_h1 may have none
        return y * F.silu(z), window, state
    groups = getattr(norm, "n_groups", inner // getattr(norm, "group_size", inner))
    before = getattr(norm, "norm_before_gate", False)
    eps = norm.variance_epsilon
    y = ops.gated_rms_norm(y, norm.weight, z, groups=groups, gate_first=not before, eps=eps)
    return y, window, state


def _limit(mixer: Any) -> tuple[float, float]:
    """Zamba2 of transformers 4 has a limit that it does not use, and a least step that it does."""
    if type(mixer).__name__ == "Zamba2MambaMixer" and hasattr(mixer, "time_step_min"):
        return mixer.time_step_min, math.inf
    return mixer.time_step_limit


def _convolved(mixer: Any, u: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
    """silu of the convolution of ``(batch, length, channels)``, and its last real inputs, as many as it sees."""
    if call.real is not None:
        u = torch.where(call.real.unsqueeze(-1), u, 0)
    weight, bias = mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias
    batch, length, channels = u.shape
    width = weight.shape[-1]
    old = u.new_zeros(batch, channels, width) if call.window is None else call.window.to(u.dtype)
    if length == 1 and call.real is None:  # a step: torch's own calls cost less than one of ours
        known = torch.cat((old[..., 1:], u.mT), -1)
        y = (wide(known) * wide(weight)).sum(-1)
        return F.silu(y if bias is None else y + bias).to(u.dtype).unsqueeze(1), known.detach()
    before = None if call.window is None else old[..., 1:]
    y, _ = ops.causal_conv1d(u.mT, weight, bias, activation="silu", initial_state=before)
    if call.real is None:
        return y.mT, torch.cat((old, u.detach()[:, -width:].mT), -1)[..., -width:]
    known = torch.cat((old, u.detach().mT), -1)
    places = torch.arange(1, length + 1, device=u.device)
    end = (call.real * places).amax(-1)  # behind the last real one; 0 if there is none
    index = end.view(-1, 1, 1) + torch.arange(width, device=u.device)
    return y.mT, known.gather(-1, index.expand(-1, channels, -1))


def _known(cache: Any, layer: int, position: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The window and the state that a cache has of what came before."""
    if cache is None:
        return None, None
    if hasattr(cache, "get_conv_state"):  # transformers 5
        window, state = cache.get_conv_state(layer), cache.get_recurrent_state(layer)
    else:
        goes_on = getattr(cache, "has_previous_state", position is not None)
        if not goes_on or (position is not None and int(position[0]) == 0):
            return None, None
        window, state = cache.conv_states[layer], cache.ssm_states[layer]
    return window, None if state is None else wide(state)


def _keep(cache: Any, layer: int, window: Tensor, state: Tensor) -> None:
    if hasattr(cache, "update_recurrent_state"):  # transformers 5
        cache.update_conv_state(window, layer, conv_kernel_size=window.shape[-1])
        cache.update_recurrent_state(state, layer)
        return
    cache.conv_states[layer].copy_(window)
    cache.ssm_states[layer].copy_(state)
