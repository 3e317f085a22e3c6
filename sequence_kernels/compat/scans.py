"""S5, LRU and aTENNuate's layers, whose states see every channel, on our ops in their places in models."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ssm import DiagonalSystem, convolve
from ..ssm.scan import diagonal_scan, scan_system


class _Recurrence(NamedTuple):
    """``x_t = exp(exponents) x_{t-1} + b u_t``, ``y_t = Re(c x_t)``: (N), (N, H), (O, N), complex."""

    exponents: Tensor
    b: Tensor
    c: Tensor

    def run(self, u: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, L, H) to (B, L, O), and the state after it, complex (B, N), if one was given."""
        system = scan_system(self.exponents, u.dtype)

        def run(
            u: Tensor, state: Tensor | None, lengths: Tensor | None, cu_seqlens: Tensor | None
        ) -> tuple[Tensor, Tensor | None]:
            return convolve(system, u, None, state, lengths, cu_seqlens=cu_seqlens)

        rows = torch.cat((self.b.real, self.b.imag)).to(u.dtype)
        real, imag = F.linear(u, rows).mT.chunk(2, 1)
        start = None if state is None else torch.view_as_real(state)
        real, imag, final = diagonal_scan(run, real, imag, start)
        columns = torch.cat((self.c.real, -self.c.imag), -1).to(u.dtype)
        y = F.linear(torch.cat((real, imag), 1).mT, columns)
        return y, None if final is None else torch.view_as_complex(final)


class _Scan(nn.Module):
    """A layer of another library on our ops: it has that one's parts, parameters and buffers, under their names."""

    def __init__(self, original: nn.Module, d_model: int) -> None:
        super().__init__()
        self.__dict__.update(original.__dict__)
        self.__dict__["original"] = original  # no part of this one
        self.d_model = d_model
        self.channels_first = False

    @classmethod
    def fits(cls, module: Any) -> bool:
        """Whether a layer with the parts of this kind can be one."""
        return True


class _LRU(_Scan):
    """``LRU`` of LRU-pytorch: input and output of any widths, and a full D."""

    nu_log: Tensor
    theta_log: Tensor
    gamma_log: Tensor
    B: Tensor
    C: Tensor
    D: Tensor

    def __init__(self, original: Any) -> None:
        super().__init__(original, original.B.shape[1])

    def forward(self, input: Tensor, state: Tensor | None = None) -> Tensor:  # noqa: A002 (the layer's name)
        """``(L, in_features)`` or ``(B, L, in_features)``. A ``state`` is refused: there it reaches one row alone."""
        if state is not None:
            raise ValueError(
                "state: LRU-pytorch gives it to the first row alone; an accelerated layer takes none"
            )
        exponents = torch.complex(-self.nu_log.double().exp(), self.theta_log.double().exp())
        recurrence = _Recurrence(exponents, self.gamma_log.exp().unsqueeze(-1) * self.B, self.C)
        rows = input if input.dim() == 3 else input.unsqueeze(0)
        y = recurrence.run(rows, None)[0] + F.linear(rows, self.D)
        return y if input.dim() == 3 else y.squeeze(0)


class _S5(_Scan):
    """``S5`` of s5-pytorch, with a step for each mode by zero-order hold or the bilinear transform."""

    def __init__(self, original: Any) -> None:
        inner = original.seq
        for name, usual in (("liquid", False), ("degree", 1), ("bidir", False)):
            if getattr(inner, name) != usual:
                raise ValueError(f"{name}={getattr(inner, name)} has no counterpart here")
        if not hasattr(inner, "C"):
            raise ValueError("factorized B and C (factor_rank) have no counterpart here")
        super().__init__(original, len(inner.D))

    def forward(
        self,
        signal: Tensor,
        step_scale: float | Tensor = 1.0,
        state: Tensor | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """``(B, L, width)``; ``step_scale`` is one number for all; the state is complex, ``(B, state_width)``."""
        if isinstance(step_scale, Tensor) and step_scale.dim():
            raise ValueError(
                f"step_scale must be one number in an accelerated layer, got {tuple(step_scale.shape)}"
            )
        inner: Any = self.seq
        start = state
        if return_state and state is None:
            start = torch.zeros(len(signal), len(inner.Lambda), dtype=inner.C.dtype, device=signal.device)
        y, final = self._recurrence(inner, step_scale).run(
            signal, None if start is None else start.to(inner.C.dtype)
        )
        y = y + inner.D * signal
        return (y, final) if return_state and final is not None else y

    @staticmethod
    def _recurrence(inner: Any, scale: float | Tensor) -> _Recurrence:
        a = inner.Lambda.to(torch.complex128)
        z = a * (inner.log_step.double().exp() * scale)
        if inner.discretize.__name__ == "discretize_bilinear":
            exponents, factors = torch.log((1 + z / 2) / (1 - z / 2)), z / a / (1 - z / 2)
        else:
            exponents, factors = z, torch.expm1(z) / a
        return _Recurrence(exponents, factors.unsqueeze(-1) * torch.view_as_complex(inner.B), inner.C)


class AttenuateLayer(_Scan):
    """``SSMLayer`` of aTENNuate: ``x_t = exp(a dt) x_{t-1} + dt B u_t``, ``y_t = C Re x_t``, B and C real."""

    log_dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor

    def __init__(self, original: Any) -> None:
        super().__init__(original, original.B.shape[1])
        self.channels_first = True

    @classmethod
    def fits(cls, module: Any) -> bool:
        """Kernels of others have parameters of these names too: A is (N, 2) here, B (N, inputs), C (outputs, N)."""
        a, b, c = (getattr(module, name) for name in "ABC")
        if not all(isinstance(t, Tensor) and t.dim() == 2 and not t.is_complex() for t in (a, b, c)):
            return False
        return tuple(a.shape) == (len(b), 2) and c.shape[1] == len(b) == len(module.log_dt)

    def forward(
        self,
        input: Tensor,  # noqa: A002
        state: Tensor | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """``(B, in_channels, L)`` to ``(B, out_channels, L)``; the state is complex, ``(B, N)``."""
        dt = self.log_dt.double().exp()
        decay, turn = self.A.double().unbind(-1)
        exponents = torch.complex(-F.softplus(decay) * dt, turn * dt).unsqueeze(-1)
        ones = torch.ones_like(exponents)
        system = DiagonalSystem(exponents, ones, (ones / 2).unsqueeze(0).to(input.dtype.to_complex()))
        start = state
        if state is None and return_state:
            start = torch.zeros(len(input), len(dt), dtype=system.c.dtype, device=input.device)
        u = (self.B * dt.to(self.B.dtype).unsqueeze(-1)) @ input
        x, final = convolve(system, u, None, None if start is None else start.unsqueeze(-1))
        y = self.C @ x.squeeze(1)
        return (y, final.squeeze(-1)) if return_state and final is not None else y


#: What each layer is recognised by, and what serves it.
KINDS: tuple[tuple[tuple[str, ...], type[_Scan]], ...] = (
    (("nu_log", "theta_log", "gamma_log", "B", "C", "D"), _LRU),
    (("log_dt", "A", "B", "C"), AttenuateLayer),
    (("seq.Lambda", "seq.log_step", "seq.B", "seq.D", "seq.discretize"), _S5),
)
