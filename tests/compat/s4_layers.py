"""Layers with the parameter names and the functions of ``state-spaces/s4``, written out densely: not its code.

v4's continuous system is A = -exp(A_real) - i A_imag (- P P^* over all N states), its readout C, or C (I - A^l_kernel).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

H, N, LENGTH = 6, 4, 40


def _real(z: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.view_as_real(z.resolve_conj()).clone())


def _all(z: Tensor) -> Tensor:
    return torch.cat((z, z.conj()), -1)


class Kernel(nn.Module):
    def __init__(self, diagonal: bool, copies: int, channels: int, rank: int = 1) -> None:
        super().__init__()
        self.diagonal, self.disc, self.bandlimit = diagonal, "zoh", None
        self.dt_transform = self.real_transform = "exp"
        self.imag_transform = "none"
        self.inv_dt = nn.Parameter(-3 + torch.rand(H, 1).double())
        self.C = _real(torch.randn(channels, H, N, dtype=torch.complex128))
        self.B = _real(torch.randn(1, copies, N, dtype=torch.complex128))
        self.A_real = nn.Parameter(0.3 * torch.randn(copies, N).double())
        self.A_imag = nn.Parameter(3 * torch.rand(copies, N).double())
        if not diagonal:
            self.P = _real(torch.randn(rank, copies, N, dtype=torch.complex128))
            self.register_buffer("l_kernel", torch.tensor(0))

    def dense(self) -> tuple[Tensor, Tensor, Tensor]:
        """A (H, M, M), B (H, M), C (C, H, M) over all M = 2 N states, discrete, C as it is stored."""
        repeat = H // self.A_real.shape[0]
        a = torch.complex(-self.A_real.exp(), -self.A_imag).repeat(repeat, 1)
        b = torch.view_as_complex(self.B)[0].repeat(repeat, 1)
        dt = self.inv_dt.exp()
        c = torch.view_as_complex(self.C)
        if self.diagonal:
            return torch.diag_embed(_all((a * dt).exp())), _all(b * ((a * dt).exp() - 1) / a), _all(c)
        p = _all(torch.view_as_complex(self.P).repeat(1, repeat, 1))
        full = torch.diag_embed(_all(a)) - torch.einsum("rhm,rhn->hmn", p, p.conj())
        eye, half = torch.eye(2 * N, dtype=full.dtype), dt[..., None] / 2
        back = torch.linalg.inv(eye - half * full)
        return back @ (eye + half * full), dt * (back @ _all(b)[..., None])[..., 0], _all(c)

    def truncate(self, length: int) -> None:
        """Store C (I - A^length), as a layer that ran over so many elements does."""
        a, _, c = self.dense()
        kept = torch.eye(2 * N, dtype=a.dtype) - torch.linalg.matrix_power(a, length)
        self.C.data = torch.view_as_real(torch.einsum("chm,hmn->chn", c, kept)[..., :N].contiguous()).detach()
        self.l_kernel.fill_(length)

    def taps(self, length: int) -> Tensor:
        a, b, c = self.dense()
        if not self.diagonal and int(self.l_kernel):
            kept = torch.eye(2 * N, dtype=a.dtype) - torch.linalg.matrix_power(a, int(self.l_kernel))
            c = torch.linalg.solve(kept.mT, c[..., None])[..., 0]
        out = []
        for _ in range(length):
            out.append(torch.einsum("chm,hm->ch", c, b).real)
            b = (a @ b[..., None])[..., 0]
        return torch.stack(out, -1)


def convolve(k: Tensor, u: Tensor) -> Tensor:
    """Causal: k (C, H, L), u (B, H, L) to (B, C, H, L)."""
    length = u.shape[-1]
    lag = torch.arange(length)[:, None] - torch.arange(length)
    toeplitz = torch.where(lag >= 0, k[..., lag.clamp(min=0)], 0)
    return torch.einsum("chts,bhs->bcht", toeplitz, u)


class FFTConv(nn.Module):
    def __init__(self, bidirectional: bool, channels: int, activation: nn.Module, **arguments: Any) -> None:
        super().__init__()
        self.bidirectional, self.channels, self.l_max, self.swap_channels = (
            bidirectional,
            channels,
            None,
            False,
        )
        self.D = nn.Parameter(torch.randn(channels, H).double())
        self.kernel = Kernel(channels=channels * (2 if bidirectional else 1), **arguments)
        self.activation, self.drop, self.drop_kernel = activation, nn.Identity(), nn.Identity()

    def forward(self, u: Tensor) -> Tensor:
        k = self.kernel.taps(u.shape[-1])
        y = convolve(k[: self.channels], u) + torch.einsum("ch,bhl->bchl", self.D, u)
        if self.bidirectional:
            ahead = convolve(k[self.channels :], u.flip(-1)).flip(-1)
            y = y + F.pad(ahead[..., 1:], (0, 1))
        return self.activation(y.flatten(1, 2).mT)


class S4Block(nn.Module):
    """(B, H, L) if transposed, else (B, L, H)."""

    def __init__(
        self,
        transposed: bool = True,
        diagonal: bool = False,
        copies: int = H,
        channels: int = 1,
        bidirectional: bool = False,
        activation: nn.Module | None = None,
        glu: bool = True,
    ) -> None:
        super().__init__()
        self.transposed, self.gate, self.bottleneck = transposed, None, None
        self.layer = FFTConv(
            bidirectional, channels, activation or nn.GELU(), diagonal=diagonal, copies=copies
        )
        self.mult_activation, self.drop = nn.Identity(), nn.Identity()
        linear = nn.Linear(H * channels, (2 if glu else 1) * H).double()
        self.output_linear = nn.Sequential(linear, nn.GLU(-1) if glu else nn.Identity())

    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        y = self.output_linear(self.layer(x if self.transposed else x.mT))
        return (y.mT if self.transposed else y), None


class _S4DKernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.C = _real(torch.randn(H, N, dtype=torch.complex128))
        self.log_dt = nn.Parameter(-3 + torch.rand(H).double())
        self.log_A_real = nn.Parameter(0.3 * torch.randn(H, N).double())
        self.A_imag = nn.Parameter(3 * torch.rand(H, N).double())


class S4D(nn.Module):
    def __init__(self, transposed: bool = True) -> None:
        super().__init__()
        self.transposed = transposed
        self.D = nn.Parameter(torch.randn(H).double())
        self.kernel = _S4DKernel()
        self.activation, self.dropout = nn.GELU(), nn.Identity()
        self.output_linear = nn.Sequential(nn.Conv1d(H, 2 * H, kernel_size=1).double(), nn.GLU(dim=-2))

    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        kernel, u = self.kernel, x if self.transposed else x.mT
        a = torch.complex(-kernel.log_A_real.exp(), kernel.A_imag)
        z = a * kernel.log_dt.exp()[:, None]
        weight = torch.view_as_complex(kernel.C) * (z.exp() - 1) / a
        powers = torch.exp(z[..., None] * torch.arange(u.shape[-1]))
        k = 2 * torch.einsum("hn,hnl->hl", weight, powers).real
        y = convolve(k[None], u)[:, 0] + self.D[:, None] * u
        y = self.output_linear(self.activation(y))
        return (y if self.transposed else y.mT), None


class Model(nn.Module):
    """Residual layers with norms, named as in ``SequenceModel``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for layer in layers:
            block = nn.Module()
            block.layer, block.norm = layer, nn.Module()
            block.norm.norm = nn.LayerNorm(H).double()
            self.layers.append(block)
        self.norm = nn.Module()
        self.norm.norm = nn.LayerNorm(H).double()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.layers:
            x = x + block.layer(block.norm.norm(x))[0]
        return self.norm.norm(x)
