"""One layer of a deep model: normalisation, layer, dropout, residual, pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import keywords, sequences
from ..arguments.values import checked
from ..layers.components import StochasticDepth, dropout_module
from ..layers.norms import Normalization, norm_stages
from ..layers.padding import without_padding
from ..layers.pointwise import pointwise
from ..layers.pools import Pool, make_pool
from ..layers.residuals import Residual, joined, make_residual
from ..module import SequenceModule
from ..stepping.stages import Stage, stages_of
from .registry import LayerConfig, make_layer

#: A name, or ``{"_name_": name, **arguments}``; None for none.
PartConfig = str | Mapping[str, Any] | None


def make_norm(config: PartConfig, d: int, transposed: bool) -> Normalization | None:
    """Build a ``Normalization`` from its name or ``{"_name_": name, **arguments}``; None gives None."""
    if config is None:
        return None
    arguments = {"_name_": config} if isinstance(config, str) else dict(config)
    return Normalization(d, transposed=transposed, **arguments)


class SequenceResidualBlock(SequenceModule):
    """``pool(residual(x, drop(layer(norm(x)))))``; with ``prenorm=False`` the norm comes after the residual.

    ``(batch, length, d_input) -> (batch, length / stride, d_output)``; with ``transposed=True`` channels come before
    length. The state is the layer's, or with a pool the pair of the layer's and the pool's; ``step`` then returns
    None instead of an output when the pool has none.

    ``i_layer``: its place in the stack, from 1, for the residuals that depend on depth.
    ``layer``: see ``LayerConfig``.
    ``residual``: a name in ``RESIDUALS``; None does not add the input (and applies no dropout, as in ESPnet).
    ``norm``: "layer", "batch", "instance", "group" or "none"; None is no norm.
    ``pool``: a name in ``POOLS``, "sample", "pool", "linear" or "spectral"; None is no pool.
    ``drop_path``: probability of dropping the whole layer for a row of the batch in training.

    Raises ValueError or TypeError for an unknown name or a width that the residual cannot join. A block whose
    layer, norm or pool looks at the whole sequence is not ``causal``: it raises when stepped or given a state.
    """

    @checked
    def __init__(
        self,
        d_input: int,
        i_layer: int | None = None,
        prenorm: bool = True,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        transposed: bool = False,
        layer: LayerConfig = "s4d",
        residual: PartConfig = None,
        norm: PartConfig = None,
        pool: PartConfig = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.d_model = d_input
        self.i_layer = i_layer
        self.prenorm = prenorm
        self.transposed = transposed
        self.layer = make_layer(layer, d_input, transposed)
        d_layer = self.layer.d_output
        self.residual: Residual | None = None
        if residual is not None:
            self.residual = make_residual(residual, i_layer, d_input, d_layer)
        self.norm = make_norm(norm, d_input if prenorm else d_layer, transposed)
        self.drop = dropout_module(dropout, tied=tie_dropout, transposed=transposed)
        self.drop_path = StochasticDepth(drop_path) if drop_path > 0.0 else nn.Identity()
        self.pool: Pool | None = None if pool is None else make_pool(pool, d_layer, transposed)
        self.d_output = d_layer if self.pool is None else self.pool.d_output

    @property
    def causal(self) -> bool:  # type: ignore[override]
        return all(part.causal for part in (self.layer, self.norm, self.pool) if part is not None)

    def takes(self, method: str = "forward") -> frozenset[str] | None:
        return keywords.of_parts([self.layer], method)

    def unsplit_reason(self) -> str | None:
        return None

    @property
    def d_state(self) -> int | None:
        return self.layer.d_state

    @property
    def state_to_tensor(self) -> Callable[[Any], Tensor | None]:
        """The layer's. What waits in a pool has no fixed width, and is left out."""
        return lambda state: self.layer.state_to_tensor(self._split(state)[0])

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Any:
        state = self.layer.default_state(*batch_shape, device=device)
        if self.pool is None:
            return state
        return state, self.pool.default_state(*batch_shape, device=device)

    def restart_state(self, state: Any, fresh: Tensor) -> Any:
        return super().restart_state(state, fresh) if self.pool else self.layer.restart_state(state, fresh)

    def spread_state(self, state: Any, at: Tensor, count: int) -> Any:
        return (
            super().spread_state(state, at, count) if self.pool else self.layer.spread_state(state, at, count)
        )

    def _split(self, state: Any) -> tuple[Any, Any]:
        """The layer's state and the pool's."""
        if self.pool is None or state is None:
            return state, None
        if not isinstance(state, tuple) or len(state) != 2:
            raise ValueError(
                f"state of a block with a pool must be a pair, as default_state() gives; got {type(state).__name__}"
            )
        return state

    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        if state is not None and self.norm is not None and not self.norm.causal:
            raise ValueError(
                f"state cannot be carried: norm={self.norm.name!r} takes statistics over the whole sequence"
            )
        if self.pool is not None and state is not None and kwargs.get("lengths") is not None:
            raise ValueError(
                "lengths cannot be given together with a state: a pool would keep elements that are not real"
            )
        keywords.refuse_untaken(self, "forward", kwargs)
        layer_state, pool_state = self._split(state)
        lengths = kwargs.get("lengths")
        if lengths is not None:
            x, lengths = without_padding(x, lengths, self.transposed)
            kwargs["lengths"] = lengths
        bounds = kwargs.get("cu_seqlens")
        if bounds is not None:
            kwargs["cu_seqlens"] = bounds = sequences.bounds_of(bounds, x, sequences.Axes.of(self))
        y = self._normed(x, lengths, bounds) if self.prenorm else x
        y, layer_state = self.layer(y, state=layer_state, **keywords.handed(self.layer, "forward", kwargs))
        y = self._join(x, y, self.transposed)
        y = y if self.prenorm else self._normed(y, lengths, bounds)
        if self.pool is None:
            return y, None if state is None else layer_state
        given = (
            {"lengths": lengths} if lengths is not None else {} if bounds is None else {"cu_seqlens": bounds}
        )
        y, pool_state = self.pool(y, pool_state, **given)
        return y, None if state is None else (layer_state, pool_state)

    def step(  # type: ignore[override]
        self, x: Tensor, state: Any = None, **kwargs: Any
    ) -> tuple[Tensor | None, Any]:
        keywords.refuse_untaken(self, "step", kwargs)
        layer_state, pool_state = self._split(state)
        y = self.norm.step(x) if self.norm is not None and self.prenorm else x
        y, layer_state = self.layer.step(y, state=layer_state, **keywords.handed(self.layer, "step", kwargs))
        y = self._join(x, y, transposed=False)
        if self.norm is not None and not self.prenorm:
            y = self.norm.step(y)
        if self.pool is None:
            return y, layer_state
        pooled, pool_state = self.pool.step(y, pool_state)
        return pooled, (layer_state, pool_state)

    def lengths(self, lengths: Any) -> Any:
        """How many elements are real after the block, of sequences with so many before."""
        return lengths if self.pool is None else self.pool.lengths(lengths)

    def stages(self, **kwargs: Any) -> list[Stage]:
        norm = norm_stages(self.norm)
        stages = [*(norm if self.prenorm else []), *stages_of(self.layer, **kwargs)]
        if self.residual is not None:
            for part in (self.drop, self.drop_path):
                stages += pointwise(part, self.transposed)
            stages = joined(self.residual, stages)
        stages += [] if self.prenorm else norm
        return stages if self.pool is None else [*stages, *stages_of(self.pool)]

    def _normed(self, x: Tensor, lengths: Tensor | None, bounds: Tensor | None) -> Tensor:
        if self.norm is None:
            return x
        if bounds is not None:
            return self.norm.of_packed(x, bounds)
        return self.norm(x, lengths) if self.norm.looks_at_others else self.norm(x)

    def _join(self, x: Tensor, y: Tensor, transposed: bool) -> Tensor:
        if self.residual is None:
            return y
        return self.residual(x, self.drop_path(self.drop(y)), transposed)
