"""``mamba_ssm.models`` and the blocks below it: our layers with their arguments, calls, caches and parameter names."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.selective import wide
from .generation import GenerationMixin
from .mixers import Mamba, Mamba2
from .norms import RMSNorm, layer_norm_fn
from .pretrained import load_config_hf, load_state_dict_hf

_MIXERS: dict[str, type[Mamba] | type[Mamba2]] = {"Mamba1": Mamba, "Mamba2": Mamba2}


@dataclass
class MambaConfig:
    """``mamba_ssm.models.config_mamba.MambaConfig``."""

    d_model: int = 2560
    d_intermediate: int = 0
    n_layer: int = 64
    vocab_size: int = 50277
    ssm_cfg: dict[str, Any] = field(default_factory=dict)
    attn_layer_idx: list[int] = field(default_factory=list)
    attn_cfg: dict[str, Any] = field(default_factory=dict)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True


class GatedMLP(nn.Module):
    """``fc2(y activation(gate))`` with ``y, gate = fc1(x)``; ``hidden_features`` is rounded up to ``multiple_of``."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        activation: Callable[[Tensor], Tensor] = F.silu,
        bias: bool = False,
        multiple_of: int = 128,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = int(8 * in_features / 3) if hidden_features is None else hidden_features
        hidden += -hidden % multiple_of
        place = {"device": device, "dtype": dtype}
        outputs = in_features if out_features is None else out_features
        self.fc1 = nn.Linear(in_features, 2 * hidden, bias=bias, **place)
        self.activation = activation
        self.fc2 = nn.Linear(hidden, outputs, bias=bias, **place)

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.fc1(x).chunk(2, -1)
        return self.fc2(y * self.activation(gate))


def _normed_sum(
    norm: Any, x: Tensor, residual: Tensor | None, fused: bool, in_fp32: bool
) -> tuple[Tensor, Tensor]:
    """The norm of ``x + residual``, and that sum, in float32 if ``in_fp32``; ``fused`` rounds only the results."""
    if fused:
        return layer_norm_fn(
            x,
            norm.weight,
            norm.bias,
            residual,
            eps=norm.eps,
            prenorm=True,
            residual_in_fp32=in_fp32,
            is_rms_norm=isinstance(norm, RMSNorm),
        )
    total = x if residual is None else x + residual
    return norm(total.to(norm.weight.dtype)), wide(total) if in_fp32 else total


class Block(nn.Module):
    """``mixer(norm(x + residual))``, and behind it, if there is an MLP, ``mlp(norm2(...))`` alike; sums are handed on.

    ``mixer_cls``, ``mlp_cls`` and ``norm_cls`` make their parts of ``dim``; ``mlp_cls`` nn.Identity: there is none.
    """

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        mlp_cls: Callable[[int], nn.Module] = nn.Identity,
        norm_cls: Callable[..., nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.norm, self.mixer = norm_cls(dim), mixer_cls(dim)
        self.mlp = None
        if mlp_cls is not nn.Identity:
            self.norm2, self.mlp = norm_cls(dim), mlp_cls(dim)
        if fused_add_norm and not isinstance(self.norm, (nn.LayerNorm, RMSNorm)):
            raise ValueError(
                f"fused_add_norm=True needs a norm_cls of LayerNorm or RMSNorm, got {type(self.norm).__name__}"
            )

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        inference_params: Any = None,
        **mixer_kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """What the last part gives, (B, L, dim), and the sum of all before it."""
        how = self.fused_add_norm, self.residual_in_fp32
        x, residual = _normed_sum(self.norm, hidden_states, residual, *how)
        x = self.mixer(x, inference_params=inference_params, **mixer_kwargs)
        if self.mlp is not None:
            x, residual = _normed_sum(self.norm2, x, residual, *how)
            x = self.mlp(x)
        return x, residual

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        mixer: Any = self.mixer
        return mixer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)


def create_block(
    d_model: int,
    d_intermediate: int = 0,
    ssm_cfg: Mapping[str, Any] | None = None,
    attn_layer_idx: Sequence[int] | None = None,
    attn_cfg: Mapping[str, Any] | None = None,
    norm_epsilon: float = 1e-5,
    rms_norm: bool = False,
    residual_in_fp32: bool = False,
    fused_add_norm: bool = False,
    layer_idx: int | None = None,
    device: Any = None,
    dtype: torch.dtype | None = None,
) -> Block:
    """A ``Block`` of a mixer with the options ``ssm_cfg``, whose "layer" is "Mamba1" or "Mamba2".

    Raises:
        NotImplementedError: the layer is one of ``attn_layer_idx``, or "Mamba3".
    """
    if layer_idx in (attn_layer_idx or ()):
        raise NotImplementedError(f"attn_layer_idx must not have layer {layer_idx}: attention is not there")
    options = dict(ssm_cfg or {})
    kind = options.pop("layer", "Mamba1")
    if kind not in _MIXERS:
        error = NotImplementedError if kind == "Mamba3" else ValueError
        raise error(f'ssm_cfg["layer"] must be one of {", ".join(_MIXERS)}, got {kind!r}')
    place = {"device": device, "dtype": dtype}
    mlp = functools.partial(GatedMLP, hidden_features=d_intermediate, out_features=d_model, **place)
    block = Block(
        d_model,
        functools.partial(_MIXERS[kind], layer_idx=layer_idx, **options, **place),
        mlp if d_intermediate else nn.Identity,
        functools.partial(RMSNorm if rms_norm else nn.LayerNorm, eps=norm_epsilon, **place),
        fused_add_norm,
        residual_in_fp32,
    )
    block.layer_idx = layer_idx  # type: ignore[assignment]
    return block


def _init_weights(
    module: nn.Module,
    n_layer: int,
    initializer_range: float = 0.02,
    rescale_prenorm_residual: bool = True,
    n_residuals_per_layer: int = 1,
) -> None:
    """How parameters of one part start: for ``module.apply``, under the name that others import."""
    if isinstance(module, nn.Linear) and module.bias is not None:
        if not getattr(module.bias, "_no_reinit", False):
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=initializer_range)
    if rescale_prenorm_residual:  # so that the sum's variance does not grow with the depth
        for name, parameter in module.named_parameters():
            if name in ("out_proj.weight", "fc2.weight"):
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
                with torch.no_grad():
                    parameter.div_(math.sqrt(n_residuals_per_layer * n_layer))


class MixerModel(nn.Module):
    """Embedding, ``Block``s and a norm, with the names of mamba_ssm's."""

    def __init__(
        self,
        d_model: int,
        n_layer: int,
        d_intermediate: int,
        vocab_size: int,
        ssm_cfg: Mapping[str, Any] | None = None,
        attn_layer_idx: Sequence[int] | None = None,
        attn_cfg: Mapping[str, Any] | None = None,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = False,
        initializer_cfg: Mapping[str, Any] | None = None,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        place = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(vocab_size, d_model, **place)
        kinds = (d_model, d_intermediate, ssm_cfg, attn_layer_idx, attn_cfg, norm_epsilon, rms_norm)
        sums = (residual_in_fp32, fused_add_norm)
        self.layers = nn.ModuleList(create_block(*kinds, *sums, layer_idx=i, **place) for i in range(n_layer))
        self.norm_f = (RMSNorm if rms_norm else nn.LayerNorm)(d_model, eps=norm_epsilon, **place)
        residuals = 2 if d_intermediate else 1
        start = {"n_residuals_per_layer": residuals, **(initializer_cfg or {})}
        self.apply(functools.partial(_init_weights, n_layer=n_layer, **start))

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Any]:
        blocks: Any = self.layers
        return {
            i: block.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)
            for i, block in enumerate(blocks)
        }

    def forward(self, input_ids: Tensor, inference_params: Any = None, **mixer_kwargs: Any) -> Tensor:
        """Tokens (B, L) to what the last norm gives, (B, L, d_model)."""
        x, residual = self.embedding(input_ids), None
        for block in self.layers:
            x, residual = block(x, residual, inference_params=inference_params, **mixer_kwargs)
        return _normed_sum(self.norm_f, x, residual, self.fused_add_norm, self.residual_in_fp32)[0]


class CausalLMOutput(NamedTuple):
    """What ``MambaLMHeadModel`` gives: scores (B, L, vocabulary) of the token after each."""

    logits: Tensor


class MambaLMHeadModel(nn.Module, GenerationMixin):
    """``mamba_ssm.models.mixer_seq_simple.MambaLMHeadModel``: ``MixerModel`` and a linear map to scores.

    ``MambaLM`` is the same function of the same parameters, with states that are passed; ``load_mamba`` makes one.
    """

    def __init__(
        self,
        config: MambaConfig,
        initializer_cfg: Mapping[str, Any] | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        vocab_size = config.vocab_size + -config.vocab_size % config.pad_vocab_size_multiple
        self.backbone = MixerModel(
            config.d_model,
            config.n_layer,
            config.d_intermediate,
            vocab_size,
            config.ssm_cfg,
            config.attn_layer_idx,
            config.attn_cfg,
            rms_norm=config.rms_norm,
            initializer_cfg=initializer_cfg,
            fused_add_norm=config.fused_add_norm,
            residual_in_fp32=config.residual_in_fp32,
            device=device,
            dtype=dtype,
        )
        self.lm_head = nn.Linear(config.d_model, vocab_size, bias=False, device=device, dtype=dtype)
        self.apply(functools.partial(_init_weights, n_layer=config.n_layer, **(initializer_cfg or {})))
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the embedding's weight that of the linear map too, if the configuration says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Any]:
        """A cache for each layer, by its number, as ``InferenceParams.key_value_memory_dict`` holds them."""
        return self.backbone.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        inference_params: Any = None,
        num_last_tokens: int = 0,
        **mixer_kwargs: Any,
    ) -> CausalLMOutput:
        """Scores of the token after each of ``input_ids`` (B, L), or of the ``num_last_tokens`` last if above 0.

        ``position_ids`` is not read: these layers know no positions. With ``inference_params``, from its caches on.
        """
        x = self.backbone(input_ids, inference_params=inference_params, **mixer_kwargs)
        return CausalLMOutput(self.lm_head(x[:, -num_last_tokens:] if num_last_tokens > 0 else x))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | os.PathLike[str],
        device: Any = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> MambaLMHeadModel:
        """The model in a directory with a ``config.json`` and weights; nothing is downloaded."""
        config = MambaConfig(**load_config_hf(pretrained_model_name))
        model = cls(config, device=device, dtype=dtype, **kwargs)
        model.load_state_dict(load_state_dict_hf(pretrained_model_name, device=device, dtype=dtype))
        return model

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write what ``from_pretrained`` reads."""
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), directory / "pytorch_model.bin")
        (directory / "config.json").write_text(json.dumps(dataclasses.asdict(self.config), indent=4))
