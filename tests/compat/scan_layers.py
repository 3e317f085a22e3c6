"""Layers with the names and the functions of s5-pytorch and LRU-pytorch, element by element: not their code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def discretize_zoh(a: Tensor, b: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    return torch.exp(a * dt), ((torch.exp(a * dt) - 1) / a)[:, None] * b


def discretize_bilinear(a: Tensor, b: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    return (1 + a * dt / 2) / (1 - a * dt / 2), (dt / (1 - a * dt / 2))[:, None] * b


class _S5SSM(nn.Module):
    def __init__(self, width: int, states: int, discretize: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        poles = torch.complex(-torch.rand(states) - 0.1, 4 * torch.randn(states))
        self.Lambda = nn.Parameter(poles)
        self.B = nn.Parameter(torch.randn(states, width, 2))
        self.C = nn.Parameter(torch.randn(width, states, dtype=torch.complex64))
        self.D, self.log_step = nn.Parameter(torch.rand(width)), nn.Parameter(-3 + torch.rand(states))
        self.degree, self.liquid, self.bidir, self.discretize = 1, False, False, discretize


class S5(nn.Module):
    """``(B, L, width)`` to the same, alone or with the state."""

    def __init__(
        self, width: int, states: int, discretize: Callable[..., tuple[Tensor, Tensor]] = discretize_zoh
    ) -> None:
        super().__init__()
        self.seq = _S5SSM(width, states, discretize)

    def forward(
        self, signal: Tensor, step_scale: float = 1.0, state: Tensor | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        seq = self.seq
        b = torch.view_as_complex(seq.B)
        a, b = seq.discretize(seq.Lambda, b, step_scale * seq.log_step.exp())
        x = torch.zeros(len(signal), len(a), dtype=a.dtype) if state is None else state
        out = []
        for u in signal.unbind(1):
            x = a * x + u.to(b.dtype) @ b.mT
            out.append((x @ seq.C.mT).real + seq.D * u)
        y = torch.stack(out, 1)
        return (y, x) if return_state else y


class LRU(nn.Module):
    """``(B, L, inputs)`` to ``(B, L, outputs)``, alone."""

    def __init__(self, inputs: int, outputs: int, states: int) -> None:
        super().__init__()
        self.nu_log, self.theta_log = nn.Parameter(torch.randn(states) - 2), nn.Parameter(torch.randn(states))
        self.gamma_log = nn.Parameter(torch.randn(states) - 1)
        self.B = nn.Parameter(torch.randn(states, inputs, dtype=torch.complex64))
        self.C = nn.Parameter(torch.randn(outputs, states, dtype=torch.complex64))
        self.D = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, input: Tensor, state: Tensor | None = None) -> Tensor:  # noqa: A002
        a = torch.exp(torch.complex(-self.nu_log.exp(), self.theta_log.exp()))
        x, out = torch.zeros(len(input), len(a), dtype=a.dtype), []
        for u in input.unbind(1):
            x = a * x + self.gamma_log.exp() * (u.to(a.dtype) @ self.B.mT)
            out.append((x @ self.C.mT).real + u @ self.D.mT)
        return torch.stack(out, 1)
