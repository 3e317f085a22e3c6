"""Where mamba_ssm's own tests ask for what float32, or their reference, does not give (docs/parity.md).

Their references are restated here in a few lines; no code of theirs is needed.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sequence_kernels.compat.selective import mamba_inner_fn, selective_state_update
from sequence_kernels.ops import use_backend


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [(torch.bfloat16, 1e-2, 5e-2), (torch.float16, 5e-3, 1e-2)]
)
def test_an_output_is_that_of_the_state_before_it_is_rounded(
    dtype: torch.dtype, rtol: float, atol: float
) -> None:
    """mamba_ssm's kernel does so, too; its reference reads the state back as it is stored.

    Tolerances are those of its test_selective_state_update.
    """
    torch.manual_seed(0)
    state, x, dt = torch.randn(2, 4096, 64), torch.randn(2, 4096), torch.randn(2, 4096)
    state, x, dt = state.to(dtype), x.to(dtype), dt.to(dtype)
    bias, a, d = torch.rand(4096) - 4, -torch.rand(4096, 64) - 1, torch.randn(4096)
    b, c = torch.randn(2, 64), torch.randn(2, 64)
    step = F.softplus(dt.double() + bias)
    after = state * torch.exp(step[..., None] * a) + (step * x)[..., None] * b[:, None]

    def outputs(states: Tensor) -> Tensor:
        return (states.double() * c[:, None]).sum(-1) + d * x

    exact, of_rounded = outputs(after), outputs(after.to(dtype)).to(dtype)
    y = selective_state_update(state, x, dt, a, b, c, d, dt_bias=bias, dt_softplus=True)
    torch.testing.assert_close(y.double(), exact, rtol=rtol, atol=atol)
    torch.testing.assert_close(state.double(), after.to(dtype).double(), rtol=rtol, atol=1e-3)
    ours, theirs = (float((t.double() - exact).norm()) for t in (y, of_rounded))
    assert ours < 0.75 * theirs


def inner_arguments(scaled: bool, is_complex: bool, given: bool) -> dict[str, Tensor | None]:
    """Those of mamba_ssm's test_mamba_inner_fn, in float64; ``scaled``: weights that keep the size of what they map."""
    torch.manual_seed(0)
    kind = torch.complex128 if is_complex else torch.float64

    def weight(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, dtype=torch.float64) / (columns**0.5 if scaled else 1)

    size = 8 * (2 if is_complex else 1)
    return {
        "xz": torch.randn(2, 2 * 768, 128, dtype=torch.float64),
        "conv1d_weight": torch.randn(768, 1, 3, dtype=torch.float64),
        "conv1d_bias": torch.randn(768, dtype=torch.float64),
        "x_proj_weight": weight(48 + (0 if given else 2 * size), 768),
        "delta_proj_weight": weight(768, 48),
        "out_proj_weight": weight(384, 768),
        "out_proj_bias": None,
        "A": -0.5 * torch.rand(768, 8, dtype=kind),
        "B": torch.randn(768, 8, dtype=kind) if given else None,
        "C": torch.randn(768, 8, dtype=kind) if given else None,
        "D": torch.randn(768, dtype=torch.float64),
        "delta_bias": 0.5 * torch.rand(768, dtype=torch.float64),
    }


def single(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.to(torch.complex64 if t.is_complex() else torch.float32)


@pytest.mark.parametrize(("is_complex", "given"), [(False, False), (True, False), (False, True)])
def test_a_mixer_of_unscaled_weights_is_beyond_float32(is_complex: bool, given: bool) -> None:
    """test_mamba_inner_fn asks for an absolute 2e-3 where outputs reach 1e8; with weights of usual size it holds."""

    def missed(y: Tensor, exact: Tensor) -> int:
        return int((~torch.isclose(y.double(), exact, rtol=6e-4, atol=2e-3)).sum())

    for scaled in (True, False):
        arguments = inner_arguments(scaled, is_complex, given)
        narrow = {name: single(t) for name, t in arguments.items()}
        exact, ours = mamba_inner_fn(**arguments), mamba_inner_fn(**narrow)  # type: ignore[arg-type]
        with use_backend("torch"):
            plain = mamba_inner_fn(**narrow)  # type: ignore[arg-type]
        if scaled:
            assert missed(ours, exact) == 0
        else:
            assert missed(plain, exact) > 0
            assert (ours - exact).norm() < 1.5 * (plain - exact).norm()
