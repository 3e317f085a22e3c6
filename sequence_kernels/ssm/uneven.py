"""A diagonal system driven by inputs whose every element is held for a time of its own.

With an input that is constant during each step (zero-order hold), ``x_t = E_t x_{t-1} + (E_t - 1) g u_t`` where
``E_t = exp(a dt_t)`` and ``g = b / a``. Then ``z_t = x_t + g u_{t+1}`` obeys ``z_t = E_t z_{t-1} + g (u_{t+1} - u_t)``,
with input weights that do not depend on the step, as ``ops.selective_scan`` has them. With u = 0 behind the end the
last z is the last x. A z holds parts of x that cancel, the more the smaller a step is, so that all is in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ..ops.layouts import by_head
from ..ops.padding import inside
from .diagonal import SampledDiagonalSystem
from .system import System


def convolve_unevenly(
    system: System,
    u: Tensor,
    rate: Tensor,
    d: Tensor | None = None,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As ``convolve``, of u ``(B, H, L)`` whose element t is held for ``rate[:, t]`` steps of the system.

    Args:
        rate: ``(B, L)``, real and positive.

    Raises ValueError for a system that is not diagonal and held at order zero.
    """
    if not isinstance(system, SampledDiagonalSystem) or system.method != "zoh":
        raise ValueError(
            "rate for each element needs a diagonal state matrix with an input that is held between elements "
            "(disc='zoh'): other systems have no step that input weights do not depend on"
        )
    heads, length = u.shape[1:]
    a, b = (by_head(part, heads).to(torch.complex128) for part in (system.a, system.b))
    real = torch.ones_like(rate, dtype=torch.bool) if lengths is None else inside(lengths, length)
    wide = torch.where(real.unsqueeze(1), u.double(), 0)
    ahead = F.pad(wide, (0, 1))[..., 1:]
    steps = torch.where(real, rate.double(), 0).unsqueeze(1) * system.dt.unsqueeze(-1)
    rise = (ahead - wide) / torch.where(steps > 0, steps, 1)
    gain = b / a
    start = None if state is None else state.to(torch.complex128)
    if length:
        start = (0 if start is None else start) + gain * F.pad(wide, (0, 1))[..., :1]
    outputs = []
    for c in system.c.to(torch.complex128):
        y, final = ops.selective_scan(rise, steps, a, gain, c, initial_state=start)
        outputs.append(y - 2 * (gain * c).sum(-1).real.unsqueeze(-1) * ahead)
    y = torch.stack(outputs, 1)
    y = y if d is None else y + d.double().unsqueeze(-1) * wide.unsqueeze(1)
    return y.to(u.dtype), None if state is None else final.to(state.dtype)
