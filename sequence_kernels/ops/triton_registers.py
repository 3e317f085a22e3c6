"""How many registers ptxas gives a thread of a Triton kernel."""

from __future__ import annotations

import torch


def every_register() -> dict[str, int]:
    """The option of a launch that lets a thread have all of them, where ptxas, left alone, would rather spill some
    bytes to fit one more block on a multiprocessor. HIP's compiler has no such option, and spills none."""
    return {} if torch.version.hip else {"maxnreg": 255}
