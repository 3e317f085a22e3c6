"""One layer of a deep model: normalisation, layer, dropout, residual."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.components import StochasticDepth, dropout_module
from ..layers.norms import Normalization
from ..layers.residuals import Residual, make_residual
from ..module import SequenceModule
from ..stages import Stage
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
    """``residual(x, drop(layer(norm(x))))``, or with ``prenorm=False`` the norm comes last.

    ``(batch, length, d_input) -> (batch, length, d_output)``; with ``transposed=True`` channels come before
    length. The state is the layer's.

    ``i_layer``: its place in the stack, from 1, for the residuals that depend on depth.
    ``layer``: see ``LayerConfig``.
    ``residual``: a name in ``RESIDUALS``; None does not add the input (and applies no dropout, as in ESPnet).
    ``norm``: "layer", "batch", "instance", "group" or "none"; None is no norm.
    ``drop_path``: probability of dropping the whole layer for a row of the batch in training.

    Raises ValueError or TypeError for an unknown name or a width that the residual cannot join. A block whose
    layer or norm looks at the whole sequence is not ``causal``: it raises when stepped or given a state.
    """

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
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.d_model = d_input
        self.i_layer = i_layer
        self.prenorm = prenorm
        self.transposed = transposed
        self.layer = make_layer(layer, d_input, transposed)
        self.d_output = self.layer.d_output
        self.residual: Residual | None = None
        if residual is not None:
            self.residual = make_residual(residual, i_layer, d_input, self.d_output)
        self.norm = make_norm(norm, d_input if prenorm else self.d_output, transposed)
        self.drop = dropout_module(dropout, tied=tie_dropout, transposed=transposed)
        self.drop_path = StochasticDepth(drop_path) if drop_path > 0.0 else nn.Identity()

    @property
    def causal(self) -> bool:  # type: ignore[override]
        return self.layer.causal and (self.norm is None or self.norm.causal)

    @property
    def d_state(self) -> int | None:
        return self.layer.d_state

    @property
    def state_to_tensor(self) -> Callable[[Any], Tensor | None]:
        return self.layer.state_to_tensor

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Any:
        return self.layer.default_state(*batch_shape, device=device)

    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        if state is not None and self.norm is not None and not self.norm.causal:
            raise ValueError(
                f"state cannot be carried: norm={self.norm.name!r} takes statistics over the whole sequence"
            )
        y = self.norm(x) if self.norm is not None and self.prenorm else x
        y, next_state = self.layer(y, state=state, **kwargs)
        y = self._join(x, y, self.transposed)
        if self.norm is not None and not self.prenorm:
            y = self.norm(y)
        return y, None if state is None else next_state

    def step(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        y = self.norm.step(x) if self.norm is not None and self.prenorm else x
        y, next_state = self.layer.step(y, state=state, **kwargs)
        y = self._join(x, y, transposed=False)
        if self.norm is not None and not self.prenorm:
            y = self.norm.step(y)
        return y, next_state

    def stages(self, **kwargs: Any) -> list[Stage]:
        norm = [] if self.norm is None else self.norm.stages()
        inside = [*(norm if self.prenorm else []), *self.layer.stages(**kwargs)]
        joined = inside if self.residual is None else self.residual.around(inside)
        return joined if self.prenorm else [*joined, *norm]

    def _join(self, x: Tensor, y: Tensor, transposed: bool) -> Tensor:
        if self.residual is None:
            return y
        return self.residual(x, self.drop_path(self.drop(y)), transposed)
