"""``mamba_ssm.Mamba`` and ``mamba_ssm.Mamba2``: our layers with their arguments, calls and caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import layers
from ..optim import CarriesOptions

Cache = tuple[Tensor, Tensor]


class _Mixer(CarriesOptions):
    """A layer of ours behind mamba_ssm's calls. It has the layer's parts under their names: one dictionary holds both.

    A cache is the last ``d_conv`` inputs of the convolution, of which the first is never read, and the recurrence's
    state, both in the dtype of the parameters; float32 is computed in.
    """

    #: Parameters that stay in float32 where the others are of half precision.
    _wide: tuple[str, ...] = ("A_log", "D")

    def __init__(
        self, layer: layers.Mamba | layers.Mamba2, layer_idx: int | None, device: Any, dtype: Any
    ) -> None:
        super().__init__()
        layer.to(device)
        for name, parameter in layer.named_parameters():
            if name not in self._wide or dtype == torch.float64:
                parameter.data = parameter.data.to(dtype)
        self.__dict__["layer"] = layer  # no part of this one
        self._modules, self._parameters, self._buffers = layer._modules, layer._parameters, layer._buffers
        self.__dict__["_options"] = layer.__dict__["_options"]
        self.d_model, self.d_inner, self.d_conv = layer.d_model, layer.d_inner, layer.conv1d.kernel_size
        self.layer_idx = layer_idx
        parameters: dict[str, Any] = dict(layer.named_parameters())
        for name in ("A_log", "D", "dt_bias"):
            if name in parameters:
                parameters[name]._no_weight_decay = True
        if "dt_proj.bias" in parameters:
            parameters["dt_proj.bias"]._no_reinit = True

    def _go_on(self, x: Tensor, cache: Cache | None, fresh: bool = False) -> Tensor:
        """The outputs; the cache goes on in place, from zeros if it is ``fresh``."""
        layer: Any = self.__dict__["layer"]
        if cache is None:
            return layer(x)[0]
        window, state = cache
        if fresh:
            window.zero_()
            state.zero_()
        y, after = layer(x, (window[..., 1:], state.to(torch.promote_types(state.dtype, torch.float32))))
        window[..., 0] = window[..., 1] if x.shape[1] == 1 else 0
        window[..., 1:] = after[0].detach()
        state.copy_(after[1].detach())
        return y

    def step(
        self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One token ``(B, 1, d_model)``; the states change in place."""
        if hidden_states.shape[1] != 1:
            raise ValueError(f"step takes one token, (B, 1, d_model), got {tuple(hidden_states.shape)}")
        return self._go_on(hidden_states, (conv_state, ssm_state)), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> Cache:
        """Zeros, in the dtype of the weights unless one is given."""
        layer: Any = self.__dict__["layer"]
        window, state = layer._state_shapes
        like = layer.conv1d.weight
        kind = dtype or like.dtype
        inputs = like.new_zeros(batch_size, window[-1] + 1, window[0], dtype=kind)
        return inputs.mT, like.new_zeros(batch_size, *state, dtype=kind)

    def _cached(self, x: Tensor, inference_params: Any) -> Tensor:
        if inference_params is None:
            return self._go_on(x, None)
        caches = inference_params.key_value_memory_dict
        if self.layer_idx not in caches:
            caches[self.layer_idx] = self.allocate_inference_cache(x.shape[0], 0)
        return self._go_on(x, caches[self.layer_idx], fresh=inference_params.seqlen_offset == 0)


class Mamba(_Mixer):
    """``mamba_ssm.Mamba``. ``use_fast_path`` changes nothing."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = (d_model, d_state, d_conv, expand, dt_rank, dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        super().__init__(layers.Mamba(*sizes, conv_bias, bias), layer_idx, device, dtype)
        self.d_state, self.expand, self.use_fast_path = d_state, expand, use_fast_path
        self.dt_rank = self.__dict__["layer"].dt_rank

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """``(B, L, d_model)`` to the same; with ``inference_params`` on from its cache, by any number of tokens."""
        return self._cached(hidden_states, inference_params)


class Mamba2(_Mixer):
    """``mamba_ssm.Mamba2`` on one device; ``chunk_size``, ``use_mem_eff_path`` and such change nothing."""

    _wide = ("D",)

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: float = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: Sequence[float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: Sequence[float] = (0.0, float("inf")),
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        process_group: Any = None,
        sequence_parallel: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if process_group is not None:
            raise NotImplementedError("process_group must be None: one device holds the whole layer here")
        sizes = (
            d_model,
            d_state,
            d_conv,
            conv_init,
            expand,
            headdim,
            d_ssm,
            ngroups,
            A_init_range,
            D_has_hdim,
        )
        norms = (rmsnorm, norm_before_gate, dt_min, dt_max, dt_init_floor, dt_limit, bias, conv_bias)
        super().__init__(layers.Mamba2(*sizes, *norms), layer_idx, device, dtype)
        self.d_state, self.expand, self.headdim, self.ngroups = d_state, expand, headdim, ngroups
        layer = self.__dict__["layer"]
        self.d_ssm, self.nheads, self.rmsnorm, self.chunk_size = layer.d_ssm, layer.heads, rmsnorm, chunk_size

    def forward(
        self,
        u: Tensor,
        seqlen: int | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: Any = None,
    ) -> Tensor:
        """``(B, L, d_model)``, or with ``seqlen`` ``(B L, d_model)``, to the same.

        With ``seq_idx`` (B, L) every run of a number is a sequence of its own. ``cu_seqlens``, where those of one row
        begin and the last ends, is for the cache of a first call, which then has the state after each.

        Raises:
            ValueError: ``cu_seqlens`` without ``seq_idx``, which is what separates sequences, or not of its runs; or
                ``seq_idx`` with a cache that is in use, or without ``cu_seqlens``.
        """
        if cu_seqlens is not None and seq_idx is None:
            raise ValueError("cu_seqlens needs seq_idx, which is what separates sequences; got None")
        x = u if seqlen is None else u.unflatten(0, (-1, seqlen))
        if seq_idx is None:
            y = self._cached(x, inference_params)
        elif inference_params is None:
            y = _separate(self.__dict__["layer"], x, seq_idx)
        else:
            y = self._first_of_packed(x, seq_idx, cu_seqlens, inference_params)
        return y if seqlen is None else y.flatten(0, 1)

    def _first_of_packed(
        self, x: Tensor, seq_idx: Tensor, cu_seqlens: Tensor | None, inference_params: Any
    ) -> Tensor:
        """One row of all prompts; the cache gets the state after each."""
        if inference_params.seqlen_offset > 0:
            raise ValueError("seq_idx must be None where inference_params.seqlen_offset is above 0")
        if cu_seqlens is None:
            raise ValueError("seq_idx with inference_params needs cu_seqlens, got None")
        layer: Any = self.__dict__["layer"]
        bounds = F.pad(cu_seqlens, (0, 1), value=x.shape[1])  # what is behind the last is padding
        count, runs = len(cu_seqlens) - 1, _bounds(seq_idx)
        if not torch.equal(bounds.unique(), runs.to(bounds.dtype)):
            raise ValueError(
                f"cu_seqlens must be where the runs of seq_idx begin and end, {runs.tolist()}, "
                f"got {cu_seqlens.tolist()}"
            )
        y, after = layer(x, layer.default_state(count + 1), cu_seqlens=bounds)
        window, state = inference_params.key_value_memory_dict.setdefault(
            self.layer_idx, self.allocate_inference_cache(count, 0)
        )
        window[..., 0] = 0
        window[..., 1:] = after[0][:count].detach()
        state.copy_(after[1][:count].detach())
        return y


class Mamba2Simple(_Mixer):
    """``mamba_ssm.modules.mamba2_simple.Mamba2Simple``: Mamba-2 whose first state may be learned, ``init_states``.

    ``chunk_size`` changes nothing. With ``use_mem_eff_path`` the norm is of each of ``ngroups`` groups, else of all
    channels, as upstream.
    """

    _wide = ("D",)

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: float = 2,
        headdim: int = 128,
        ngroups: int = 1,
        A_init_range: Sequence[float] = (1, 16),
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: Sequence[float] = (0.0, float("inf")),
        learnable_init_states: bool = False,
        activation: str = "swish",
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if activation not in ("silu", "swish"):
            raise NotImplementedError(f"activation must be 'silu' or 'swish', got {activation!r}")
        sizes = (d_model, d_state, d_conv, conv_init, expand, headdim, None, ngroups, A_init_range)
        steps = (dt_min, dt_max, dt_init_floor, dt_limit, bias, conv_bias)
        layer = layers.Mamba2(
            *sizes, False, True, False, *steps, norm_groups=ngroups if use_mem_eff_path else 1
        )
        if learnable_init_states:
            layer.init_states = nn.Parameter(torch.zeros(layer.heads, headdim, d_state))
            layer.init_states._no_weight_decay = True  # type: ignore[attr-defined]
        super().__init__(layer, layer_idx, device, dtype)
        self.d_state, self.expand, self.headdim, self.ngroups = d_state, expand, headdim, ngroups
        self.nheads, self.chunk_size, self.activation = layer.heads, chunk_size, activation
        self.learnable_init_states = learnable_init_states

    def forward(self, u: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """``(B, L, d_model)`` to the same. With ``seq_idx`` (B, L) every run of a number is a sequence of its own.

        Raises:
            ValueError: ``seq_idx`` with a learned first state.
        """
        layer: Any = self.__dict__["layer"]
        if not self.learnable_init_states:
            return self._go_on(u, None) if seq_idx is None else _separate(layer, u, seq_idx)
        if seq_idx is not None:
            raise ValueError("seq_idx must be None with learnable_init_states")
        window, zeros = layer.default_state(len(u))
        return layer(u, (window, zeros + layer.init_states))[0]

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> Cache:
        """Zeros, or the state that was learned, in the dtype of the weights unless one is given."""
        window, state = super().allocate_inference_cache(batch_size, max_seqlen, dtype)
        if self.learnable_init_states:
            state.copy_(self.__dict__["layer"].init_states.detach())
        return window, state


def _separate(layer: Any, x: Tensor, seq_idx: Tensor) -> Tensor:
    """The layer over every run of a number by itself."""
    packed = x.flatten(0, 1).unsqueeze(0)
    return layer(packed, cu_seqlens=_bounds(seq_idx))[0].view(x.shape)


def _bounds(seq_idx: Tensor) -> Tensor:
    """Where the runs of numbers begin, all rows behind each other, and where the last ends."""
    starts = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0), value=True)
    return F.pad(starts.flatten().nonzero().squeeze(1), (0, 1), value=seq_idx.numel())
