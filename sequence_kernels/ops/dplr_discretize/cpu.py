"""The discretisation by the C++ kernel, csrc/dplr_discretize: head by head, in double precision."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import implement


@implement("dplr_discretize", "cpu")
def dplr_discretize(w: Tensor, p: Tensor, b: Tensor, dt: Tensor, wide: bool) -> tuple[Tensor, ...]:
    w, p, b, dt = (t.resolve_conj().contiguous() for t in (w, p, b, dt))
    found = torch.ops.sequence_kernels_native.dplr_discretize.default(w, p, b, dt, wide)
    return tuple(found) if wide or w.dtype == torch.complex64 else tuple(t.to(torch.complex64) for t in found)
