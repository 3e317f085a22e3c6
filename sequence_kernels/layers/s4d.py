"""The S4D layer: S4 with a diagonal state matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..arguments.values import checked
from .s4 import S4


class S4D(S4):
    """S4 with a diagonal state matrix (Gu et al., 2022): ``S4(mode="diag")`` with the defaults of that paper.

    ``measure="diag-lin"`` and ``disc="zoh"``; every other argument is that of ``S4``, ``transposed=True`` too.
    """

    @checked
    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *args: Any,
        measure: str | Sequence[str] = "diag-lin",
        disc: str = "zoh",
        **kwargs: Any,
    ) -> None:
        if "mode" in kwargs:
            raise TypeError(
                "S4D takes no argument 'mode', it is S4 with mode='diag'; take S4 for another one"
            )
        super().__init__(d_model, d_state, *args, mode="diag", measure=measure, disc=disc, **kwargs)
