"""Discrete systems of the parameters that S4 layers of other libraries have, where these keep them and as they do.

Each class stands for what makes the systems of one kind of kernel module, which it refers to and does not copy: what is
put into that module's parameters is in the next system.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..arguments import values
from ..ops.layouts import as_complex, by_head
from ..ssm import DiagonalSystem, DPLRSystem, SampledDiagonalSystem, System, discretize
from ..ssm.diagonal import softmax_weights
from . import names


class Systems:
    """What makes the systems of a kernel module.

    ``causal``: whether they do not depend on the length of a call. ``channels`` and ``size``, conjugate pairs of
    states, are those of C.
    """

    causal = True

    def __init__(self, kernel: Any, channels: int, size: int) -> None:
        self.kernel, self.channels, self.size = kernel, channels, size

    def system(self, rate: Any = 1.0, length: int | None = None) -> System:
        """The discrete system at the given sampling rate; ``length``: of the kernel, if the system depends on it."""
        raise NotImplementedError

    def kept_system(self, rate: Any = 1.0, length: int | None = None) -> System:
        """``system``: it is made in every call."""
        return self.system(rate, length)

    def tied(self, length: int) -> System | None:
        """A system for kernels of that length alone, where it costs less to train; None where there is none."""
        return None


class Minimal(Systems):
    """``S4DKernel`` of s4's ``s4d.py``: A is -exp(log_A_real) + i A_imag, B is 1."""

    def __init__(self, kernel: Any) -> None:
        super().__init__(kernel, 1, kernel.C.shape[-2])

    def system(self, rate: Any = 1.0, length: int | None = None) -> System:
        kernel = self.kernel
        a = torch.complex(-kernel.log_A_real.double().exp(), kernel.A_imag.double())
        steps = _steps(kernel.log_dt.double().exp(), rate)
        return SampledDiagonalSystem(a, torch.ones_like(a), steps, as_complex(kernel.C).unsqueeze(0), "zoh")


class Diagonal(Systems):
    """Diagonal kernels of ESPnet and of s4 v4.

    ``parts(kernel)``: the steps (H) or (H, N), A (S, N), B (S, N) and C (C, H, N) of its parameters, A in complex128.
    """

    def __init__(self, kernel: Any, parts: Callable[[Any], tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
        c = parts(kernel)[3]
        super().__init__(kernel, c.shape[0], c.shape[-1])
        self._parts = parts
        self._disc = getattr(kernel, "disc", "zoh")
        self.causal = self._disc != "dss"

    def system(self, rate: Any = 1.0, length: int | None = None) -> System:
        dt, a, b, c = self._parts(self.kernel)
        heads, limit = c.shape[1], getattr(self.kernel, "bandlimit", None)
        if limit is not None:
            each = dt if dt.dim() == 2 else dt.unsqueeze(-1)
            cycles = each * by_head(a.imag, heads).abs() / (2 * math.pi)
            c = torch.where(cycles < limit / 2, c, 0)
        dt, b = _steps(dt, rate), b.to(a.dtype)
        if self._disc == "dss":
            exponents = discretize(by_head(a, heads), by_head(b, heads), dt, "dss", length)
            return DiagonalSystem(*exponents, c)
        if dt.dim() == 2:  # a step for each mode: those of a dt, with steps of 1
            a, b, dt = by_head(a, heads) * dt, by_head(b, heads) * dt, torch.ones_like(dt[:, 0])
        return SampledDiagonalSystem(a, b, dt, c, self._disc)


class Softmax(Systems):
    """``DSSKernel`` of the authors of DSS: N modes that all heads share, the real part of their sum.

    ``log_dt`` is (H), or (H, 2) with steps of their own for real and imaginary parts. ``version``: how the modes are
    stored, and how a kernel is normalised.
    """

    def __init__(self, kernel: Any) -> None:
        super().__init__(kernel, kernel.W.shape[0], kernel.W.shape[-2])
        if kernel.epsilon != 1e-7:
            raise ValueError(f"epsilon={kernel.epsilon} has no counterpart here, where it is 1e-7")
        self.causal = kernel.version != "softmax"

    def _modes(self) -> Tensor:
        kernel, version = self.kernel, self.kernel.version
        if "exp" in version:
            imag = kernel.Lambda_log_im.double().exp() if "im" in version else kernel.Lambda_im.double()
            return torch.complex(-kernel.Lambda_log_neg_re.double().exp(), imag)
        real, imag = kernel.Lambda.double().unbind(-1)
        return torch.complex(real.clamp(max=kernel.max_real_Lambda) if "clip" in version else real, imag)

    def system(self, rate: Any = 1.0, length: int | None = None) -> System:
        version, a, c = self.kernel.version, self._modes(), as_complex(self.kernel.W)
        dt = _steps(self.kernel.log_dt.double().exp(), rate)
        real_dt, imag_dt = (dt, dt) if dt.dim() == 1 else dt.unbind(-1)
        log_a = torch.complex(a.real * real_dt.unsqueeze(-1), a.imag * imag_dt.unsqueeze(-1))
        if version == "softmax":
            if length is None:
                raise ValueError("a softmax is over the length of a call: it has no system of its own")
            return DiagonalSystem(log_a, softmax_weights(a, log_a, length), c)
        b = torch.ones_like(log_a) if "no-scale" in version else torch.expm1(log_a) / a
        return DiagonalSystem(log_a, b / 2, c)


@dataclass(frozen=True)
class _TiedSystem(DPLRSystem):
    """A system whose ``c`` is ``C (I - A^taps)``, for kernels of at most so many taps."""

    taps: int

    def kernel(self, length: int) -> Tensor:
        """From the generating function at the roots of unity of order ``taps``, as in S4: no power of A is needed."""
        angle = torch.arange(self.taps // 2 + 1, device=self.dt.device, dtype=torch.float64) * (
            2 * torch.pi / self.taps
        )
        w, p, b = self.continuous()
        generating = ops.dplr_generating(self.c.to(w.dtype), p, p.conj(), b, w, self.dt, torch.tan(angle / 2))
        return torch.fft.irfft(generating, n=self.taps)[..., :length].to(self.c.real.dtype)


class LowRank(Systems):
    """Kernels of ESPnet and of s4 with a diagonal plus low rank.

    ``parts(kernel)``: the steps (H), A (S, N), P (R, S, N), B (S, N), C (C, H, N) and L of its parameters; with L above
    0 C is ``C (I - A^L)``, and stays so: it is what an optimizer has.
    """

    def __init__(self, kernel: Any, parts: Callable[[Any], tuple[Tensor, ...]]) -> None:
        c = parts(kernel)[4]
        super().__init__(kernel, c.shape[0], c.shape[-1])
        self._parts = parts
        self._known: tuple[list[Tensor], Tensor] | None = None

    def system(self, rate: Any = 1.0, length: int | None = None) -> System:
        dt, w, p, b, c, taps = self._parts(self.kernel)
        c = self._readout(dt, w, p, b, c, int(taps))
        return DPLRSystem(w=w, p=p, b=b, dt=_steps(dt, rate), c=c)

    def kept_system(self, rate: Any = 1.0, length: int | None = None) -> System:
        """``system``: it is made in every call."""
        return self.system(rate, length)

    def tied(self, length: int) -> System | None:
        dt, w, p, b, c, taps = self._parts(self.kernel)
        return _TiedSystem(w, p, b, dt, c, int(taps)) if length <= int(taps) else None

    def _readout(self, dt: Tensor, w: Tensor, p: Tensor, b: Tensor, c: Tensor, taps: int) -> Tensor:
        """C itself. Where no gradient is wanted, it is kept for as long as the numbers that it is made of."""
        if not taps:
            return c
        made_of = [dt, w, p, b, c, torch.tensor(taps)]
        keeps = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if keeps and self._known is not None:
            known, readout = self._known
            if all(map(_same, known, made_of)):
                return readout
        readout = DPLRSystem(w=w, p=p, b=b, dt=dt, c=c).untruncated_readout(taps).to(c.dtype)
        if keeps:
            self._known = [t.clone() for t in made_of], readout
        return readout


def _same(a: Tensor, b: Tensor) -> bool:
    return a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)


def _steps(dt: Tensor, rate: Any) -> Tensor:
    if type(rate) is float and rate == 1.0:
        return dt
    values.sampling_rate(rate)
    return dt * rate


def of_espnet(kernel: Any) -> Systems:
    """Of the kernel modules of ESPnet and s4 v3, and of those before them (SSSD, H3, safari)."""
    if hasattr(kernel, "P"):
        return LowRank(kernel, _espnet_low_rank if hasattr(kernel, "inv_w_real") else _early_low_rank)
    return Diagonal(kernel, _espnet_diagonal if hasattr(kernel, "inv_A_real") else _early_diagonal)


def _early_poles(kernel: Any) -> Tensor:
    """``w``, or its logarithmic real part and its imaginary part."""
    if hasattr(kernel, "log_w_real"):
        return torch.complex(-kernel.log_w_real.double().exp(), kernel.w_imag.double())
    return as_complex(kernel.w).to(torch.complex128)


def _early_low_rank(kernel: Any) -> tuple[Tensor, ...]:
    if getattr(kernel, "Q", None) is not None:
        raise ValueError("a low-rank part P Q^* with a Q of its own (hurwitz=False) has no counterpart here")
    w, p = _early_poles(kernel), as_complex(kernel.P)
    b, c = as_complex(kernel.B).squeeze(0), as_complex(kernel.C)
    return kernel.log_dt.double().exp(), w, p, b, c, torch.tensor(kernel.L or 0)


def _early_diagonal(kernel: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """C holds the product with B."""
    a = _early_poles(kernel)
    return kernel.log_dt.double().exp(), a, torch.ones_like(a), as_complex(kernel.C)


def _espnet_low_rank(kernel: Any) -> tuple[Tensor, ...]:
    decay = names.positive(kernel.inv_w_real.double(), kernel.real_type)
    w = torch.complex(-decay, kernel.w_imag.double())
    b, c = as_complex(kernel.B).squeeze(0), as_complex(kernel.C)
    return kernel.log_dt.double().exp(), w, as_complex(kernel.P), b, c, kernel.L


def _espnet_diagonal(kernel: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    decay = names.positive(kernel.inv_A_real.double(), kernel.real_type)
    if kernel.real_type == "relu":
        decay = decay + 1e-4
    a = torch.complex(-decay, kernel.A_imag.double())
    return kernel.log_dt.double().exp(), a, as_complex(kernel.B), as_complex(kernel.C)


def of_v4(kernel: Any) -> Systems:
    """Of the kernel modules of s4 v4, with all their transforms."""
    if hasattr(kernel, "P"):
        return LowRank(kernel, _v4_low_rank)
    return Diagonal(kernel, _v4_parts)


def _v4_parts(kernel: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stored = kernel.inv_dt.double()
    if getattr(kernel, "dt_fast", False):
        stored = torch.sinh(stored)
    dt = names.positive_of_v4(stored, kernel.dt_transform)
    real = names.positive_of_v4(kernel.A_real.double(), kernel.real_transform)
    dt = dt if dt.shape[-1] > 1 else dt.squeeze(-1)
    if getattr(kernel, "is_real", False):
        a, b, c = -real, kernel.B, kernel.C
        return dt, a.to(torch.complex128), b.squeeze(0), torch.complex(c, torch.zeros_like(c))
    imag = names.positive_of_v4(kernel.A_imag.double(), kernel.imag_transform)
    return dt, torch.complex(-real, -imag), as_complex(kernel.B).squeeze(0), as_complex(kernel.C)


def _v4_low_rank(kernel: Any) -> tuple[Tensor, ...]:
    dt, w, b, c = _v4_parts(kernel)
    if dt.dim() != 1:
        raise ValueError("dt_tie=False, a step for each mode, goes with no low-rank part here")
    return dt, w, as_complex(kernel.P), b, c, kernel.l_kernel
