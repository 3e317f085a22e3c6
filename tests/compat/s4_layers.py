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


def positive(stored: Tensor, transform: str) -> Tensor:
    """A positive number as v4 stores it."""
    functions = {"exp": torch.exp, "softplus": F.softplus, "relu": lambda p: F.relu(p) + 1e-4}
    return stored if transform == "none" else functions[transform](stored)


class Kernel(nn.Module):
    def __init__(self, diagonal: bool, copies: int, channels: int, rank: int = 1) -> None:
        super().__init__()
        self.diagonal, self.disc, self.bandlimit, self.dt_fast = diagonal, "zoh", None, False
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
        real = positive(self.A_real, self.real_transform)
        a = torch.complex(-real, -positive(self.A_imag, self.imag_transform)).repeat(repeat, 1)
        b = torch.view_as_complex(self.B)[0].repeat(repeat, 1)
        dt = positive(torch.sinh(self.inv_dt) if self.dt_fast else self.inv_dt, self.dt_transform)
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


class Untied(Kernel):
    """A diagonal kernel with a step for each mode."""

    def dense(self) -> tuple[Tensor, Tensor, Tensor]:
        repeat = H // self.A_real.shape[0]
        a = torch.complex(-self.A_real.exp(), -self.A_imag).repeat(repeat, 1)
        b, z = torch.view_as_complex(self.B)[0].repeat(repeat, 1), a * self.inv_dt.exp()
        c = torch.view_as_complex(self.C)
        return torch.diag_embed(_all(z.exp())), _all(b * (z.exp() - 1) / a), _all(c)


def convolve(k: Tensor, u: Tensor) -> Tensor:
    """Causal: k (C, H, L), u (B, H, L) to (B, C, H, L)."""
    length = u.shape[-1]
    k = F.pad(k, (0, length - k.shape[-1]))
    lag = torch.arange(length)[:, None] - torch.arange(length)
    toeplitz = torch.where(lag >= 0, k[..., lag.clamp(min=0)], 0)
    return torch.einsum("chts,bhs->bcht", toeplitz, u)


class FFTConv(nn.Module):
    """(B, L, H) to (B, L, C H), with the state that a kernel of that length leaves: none."""

    def __init__(self, bidirectional: bool, channels: int, activation: nn.Module, **arguments: Any) -> None:
        super().__init__()
        self.bidirectional, self.channels, self.l_max, self.swap_channels = (
            bidirectional,
            channels,
            None,
            False,
        )
        self.transposed, self.d_output = False, channels * H
        readouts = channels * (2 if isinstance(activation, nn.GLU) else 1)
        self.D = nn.Parameter(torch.randn(readouts, H).double())
        self.kernel = Kernel(channels=readouts * (2 if bidirectional else 1), **arguments)
        self.activation, self.drop, self.drop_kernel = activation, nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        u, readouts = x.mT, len(self.D)
        k = self.kernel.taps(u.shape[-1] if self.l_max is None else min(u.shape[-1], self.l_max))
        y = convolve(k[:readouts], u) + torch.einsum("ch,bhl->bchl", self.D, u)
        if self.bidirectional:
            ahead = convolve(k[readouts:], u.flip(-1)).flip(-1)
            y = y + F.pad(ahead[..., 1:], (0, 1))
        y = y.transpose(1, 2) if self.swap_channels else y
        return self.activation(self.drop(y.flatten(1, 2)).mT), None


class S4Block(nn.Module):
    """(B, H, L) if transposed, else (B, L, H). ``outer``: an activation of the block, as in s4's training code."""

    def __init__(
        self,
        transposed: bool = True,
        diagonal: bool = False,
        copies: int = H,
        channels: int = 1,
        bidirectional: bool = False,
        activation: nn.Module | None = None,
        glu: bool = True,
        outer: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.transposed, self.gate, self.bottleneck = transposed, None, None
        self.layer = FFTConv(
            bidirectional, channels, activation or nn.GELU(), diagonal=diagonal, copies=copies
        )
        self.activation = outer or nn.Identity()
        self.mult_activation, self.drop = nn.Identity(), nn.Identity()
        linear = nn.Linear(H * channels, (2 if glu else 1) * H).double()
        self.output_linear = nn.Sequential(linear, nn.GLU(-1) if glu else nn.Identity())

    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        y, _ = self.layer(x.mT if self.transposed else x)
        y = self.output_linear(self.drop(self.mult_activation(self.activation(y))))
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
        y = self.output_linear(self.dropout(self.activation(y)))
        return (y if self.transposed else y.mT), None


class EarlyS4D(nn.Module):
    """``S4D`` of H3 and safari, before v3: other names of the width and the poles, and C times B as one."""

    def __init__(self, transposed: bool = True) -> None:
        super().__init__()
        self.h, self.transposed, self.bidirectional = H, transposed, False
        self.D = nn.Parameter(torch.randn(2, H).double())
        self.kernel = nn.Module()
        self.kernel.kernel = inner = nn.Module()
        inner.C = _real(torch.randn(2, H, N, dtype=torch.complex128))
        inner.log_dt = nn.Parameter(-3 + torch.rand(H).double())
        inner.log_w_real = nn.Parameter(0.3 * torch.randn(3, N).double())
        inner.w_imag = nn.Parameter(3 * torch.rand(3, N).double())
        self.activation, self.dropout = nn.GELU(), nn.Identity()
        self.output_linear = nn.Linear(2 * H, H).double()

    def forward(self, x: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        kernel, u = self.kernel.kernel, x if self.transposed else x.mT
        w = torch.complex(-kernel.log_w_real.exp(), kernel.w_imag).repeat(H // 3, 1)
        z = w * kernel.log_dt.exp()[:, None]
        weight = torch.view_as_complex(kernel.C) * (z.exp() - 1) / w
        powers = torch.exp(z[..., None] * torch.arange(u.shape[-1]))
        k = 2 * torch.einsum("chn,hnl->chl", weight, powers).real
        y = convolve(k, u) + self.D[..., None] * u[:, None]
        return self.output_linear(self.activation(y.flatten(1, 2)).mT), None


class _DSSKernel(nn.Module):
    def __init__(self, version: str, separate: bool) -> None:
        super().__init__()
        self.version, self.epsilon, self.max_real_Lambda = version, 1e-7, 1e-4
        self.log_dt = nn.Parameter(-2 + torch.rand(H, *((2,) if separate else ())).double())
        self.W = nn.Parameter(torch.randn(2, H, N, 2).double())
        real, imag = 0.3 * torch.rand(N).double(), 4 * torch.rand(N).double()
        if version == "softmax":
            self.Lambda = nn.Parameter(torch.stack((real - 0.2, imag), -1))  # some of them grow
        else:
            self.Lambda_log_neg_re, self.Lambda_im = nn.Parameter(real.log()), nn.Parameter(imag)

    def taps(self, length: int) -> Tensor:
        soft = self.version == "softmax"
        real, imag = self.Lambda.unbind(-1) if soft else (-self.Lambda_log_neg_re.exp(), self.Lambda_im)
        modes, dt, w = torch.complex(real, imag), self.log_dt.exp().view(H, -1), torch.view_as_complex(self.W)
        turns = torch.complex(real * dt[:, :1], imag * dt[:, -1:])
        powers = torch.exp(turns[..., None] * torch.arange(length))
        weights = powers / powers.sum(-1, keepdim=True) if soft else (turns.exp() - 1)[..., None] * powers
        return torch.einsum("chn,hnl->chl", w / modes, weights).real


class DSS(nn.Module):
    """``DSS`` of its authors, with the softmax as it is printed."""

    def __init__(self, version: str, separate: bool) -> None:
        super().__init__()
        self.transposed, self.bidirectional, self.max_kernel_length = False, False, None
        self.D = nn.Parameter(torch.randn(2, H).double())
        self.kernel = _DSSKernel(version, separate)
        self.activation, self.dropout = nn.GELU(), nn.Identity()
        self.output_linear = nn.Linear(2 * H, H).double()

    def forward(self, u: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        y = convolve(self.kernel.taps(u.shape[1]), u.mT) + self.D[..., None] * u.mT[:, None]
        return self.output_linear(self.activation(y.flatten(1, 2)).mT), None


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
