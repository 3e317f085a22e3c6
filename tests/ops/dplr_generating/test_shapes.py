"""S4's generating function of drawn shapes and layouts against dense resolvents."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from sequence_kernels import ops

from ..devices import backends
from ..shapes import LENGTHS, POLES, drawn, laid_out, layouts
from .test_dplr_generating import error, resolvent, system


@drawn(
    sizes=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), POLES, LENGTHS),
    layout=layouts(7),
    wide=st.booleans(),
)
def test_generating_function(sizes: Any, layout: Any, wide: bool) -> None:
    channels, _, heads, _, length = sizes
    values = system(*sizes)
    want = resolvent(*values)
    if not wide:
        values = tuple(x.to(torch.complex64 if x.is_complex() else torch.float32) for x in values)
    gradients = []
    for backend in backends("dplr_generating"):
        given = [laid_out(t, k).requires_grad_() for t, k in zip(values, layout, strict=True)]
        got = ops.dplr_generating(*given, backend=backend)
        assert got.shape == (channels, heads, length)
        assert got.dtype == values[0].dtype
        if want.norm() > 0:
            assert error(got, want) < (1e-11 if wide else 1e-4)
        gradients.append(torch.autograd.grad(got.abs().square().sum(), given))
        for gradient, t in zip(gradients[-1], given, strict=True):
            assert (gradient.shape, gradient.dtype) == (t.shape, t.dtype)
    for other in gradients[1:]:
        for got, want in zip(other, gradients[0], strict=True):
            if wide and want.norm() > 0:
                assert error(got, want) < 1e-9
