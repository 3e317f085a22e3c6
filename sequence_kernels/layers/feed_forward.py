"""The position-wise feed-forward layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..arguments.values import checked
from ..module import SequenceModule
from ..stepping.stages import Stage
from .components import dropout_module, linear_activation
from .padding import Lengths, without_padding
from .pointwise import pointwise


class FeedForward(SequenceModule):
    """Linear to ``expand * d_input`` channels (rounded down), activation, dropout, linear to ``d_output`` channels.

    ``(batch, length, d_input) -> (batch, length, d_output)``; with ``transposed=True`` channels come before
    length. ``d_output=None`` means ``d_input``. ``initializer``: of both weights, see ``components.initialize``.
    There is no state: what is given is passed through. Raises ValueError for an unknown activation or initializer.
    """

    pointwise = True

    @checked
    def __init__(
        self,
        d_input: int,
        expand: float = 2,
        d_output: int | None = None,
        transposed: bool = False,
        activation: str | None = "gelu",
        initializer: str | None = None,
        dropout: float = 0.0,
        tie_dropout: bool = False,
    ) -> None:
        super().__init__()
        self.d_model = d_input
        self.d_output = d_input if d_output is None else d_output
        self.transposed = transposed
        d_inner = int(expand * d_input)
        if d_inner < 1:
            raise ValueError(f"expand must make at least one channel of d_input={d_input}, got {expand}")
        self.ff = nn.Sequential(
            linear_activation(d_input, d_inner, activation, transposed=transposed, initializer=initializer),
            dropout_module(dropout, tied=tie_dropout, transposed=transposed),
            linear_activation(d_inner, self.d_output, transposed=transposed, initializer=initializer),
        )

    def forward(self, x: Tensor, state: Any = None, lengths: Lengths | None = None) -> tuple[Tensor, Any]:
        """``lengths``: as in ``S4``."""
        if lengths is not None:
            x, _ = without_padding(x, lengths, self.transposed)
        return self.ff(x), state

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if not self.transposed:
            return self.ff(x), state
        return self.ff(x.unsqueeze(-1)).squeeze(-1), state

    def stages(self) -> list[Stage]:  # type: ignore[override]
        return pointwise(self.ff, self.transposed)
