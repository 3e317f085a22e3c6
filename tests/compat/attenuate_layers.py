"""A speech enhancer with the names and the function of aTENNuate's, element by element: not its code."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SSMLayer(nn.Module):
    """``(B, inputs, L)`` to ``(B, outputs, L)``."""

    def __init__(self, states: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.log_dt = nn.Parameter(-3 + torch.rand(states))
        self.A = nn.Parameter(torch.stack((0.3 * torch.randn(states), 4 * torch.randn(states)), -1))
        self.B = nn.Parameter(torch.randn(states, inputs))
        self.C = nn.Parameter(torch.randn(outputs, states))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        dt = self.log_dt.exp()
        a = torch.exp(torch.complex(-F.softplus(self.A[:, 0]), self.A[:, 1]) * dt)
        x, out = torch.zeros(len(input), len(a), dtype=a.dtype), []
        for u in input.unbind(-1):
            x = a * x + dt * (u @ self.B.mT)
            out.append(x.real @ self.C.mT)
        return torch.stack(out, -1)


class Mix(nn.Module):
    """``rate`` elements of some channels to one of others, or one to ``rate``."""

    def __init__(self, inputs: int, outputs: int, rate: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.weight = nn.Parameter(torch.randn(inputs, outputs, rate) / (inputs * rate) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.down:
            return torch.einsum("bctr,cdr->bdt", x.unflatten(-1, (-1, self.weight.shape[-1])), self.weight)
        return torch.einsum("bct,cdr->bdtr", x, self.weight).flatten(-2)


class _Norm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_norm(x.mT).mT


class Denoiser(nn.Module):
    """One rate of channels for each of ``widths``: an encoder, a neck, and a decoder with what was skipped."""

    def __init__(self, widths: tuple[int, ...], rates: tuple[int, ...], states: int = 4) -> None:
        super().__init__()
        layers = list(zip((1, *widths[:-1]), widths, rates, strict=True))

        def block(channels: int) -> nn.Sequential:
            ahead = [nn.Conv1d(channels, channels, 3, 1, 1, groups=channels)] if channels > 1 else []
            norm = [_Norm(channels)] if channels > 1 else []
            return nn.Sequential(*ahead, SSMLayer(states, channels, channels), *norm, nn.SiLU())

        self.down_ssms = nn.ModuleList(nn.Sequential(block(a), Mix(a, b, r, True)) for a, b, r in layers)
        self.up_ssms = nn.ModuleList(nn.Sequential(Mix(b, a, r, False), block(a)) for a, b, r in layers)
        self.hid_ssms = nn.Sequential(block(widths[-1]))
        self.last_ssms = nn.Sequential(block(1), nn.Sequential(SSMLayer(states, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for down in self.down_ssms:
            skipped.append(x)
            x = down(x)
        x = self.hid_ssms(x)
        for up in reversed(self.up_ssms):
            x = up[1](up[0](x) + skipped.pop())
        return self.last_ssms(x)
