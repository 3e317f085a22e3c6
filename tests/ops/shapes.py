"""What the tests of drawn shapes draw: batch shapes that broadcast, lengths, dtypes, and how tensors lie in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from torch import Tensor

#: Around the lanes of a vector, a tile and a block; none, one.
LENGTHS = st.sampled_from([0, 1, 2, 7, 16, 17, 64, 65, 513])
POLES = st.integers(0, 6)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.complex64, torch.complex128])
LAYOUTS = ("plain", "strided", "turned", "conjugated")


def drawn(**strategies: Any) -> Callable[[Any], Any]:
    """A test of a few examples, the same ones at every run."""
    few = settings(
        deadline=None,
        max_examples=40,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    def decorate(test: Any) -> Any:
        return few(given(**strategies)(test))

    return decorate


def batches(count: int) -> Any:
    """So many batch shapes that broadcast together, empty ones among them."""
    shapes = mutually_broadcastable_shapes(num_shapes=count, min_dims=0, max_dims=3, min_side=0, max_side=3)
    return shapes.map(lambda drawn: drawn.input_shapes)


def layouts(count: int) -> Any:
    return st.tuples(*[st.sampled_from(LAYOUTS)] * count)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another layout: with gaps of NaN, last dimensions exchanged, conjugated lazily."""
    if layout == "strided":
        wide = tensor.new_full((*tensor.shape, 2), float("nan"))
        wide[..., 0] = tensor
        return wide[..., 0]
    if layout == "turned" and tensor.dim() > 1:
        return tensor.mT.contiguous().mT
    if layout == "conjugated":
        return tensor.conj_physical().conj()
    return tensor


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def check(got: Tensor, want: Tensor, scale: float) -> None:
    """Values of a drawn call: shape, and the error against that of the terms it is a sum of."""
    assert got.shape == want.shape
    assert not got.is_conj()
    tolerance = 1e-12 if got.dtype in (torch.float64, torch.complex128) else 1e-5
    assert float((got.to(want.dtype) - want).norm()) <= tolerance * (float(want.norm()) + scale)
