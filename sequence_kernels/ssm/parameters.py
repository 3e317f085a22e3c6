"""What the parameters of diagonal and of diagonal-plus-low-rank models have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import values
from ..ops import checks
from ..ops.layouts import by_head
from ..optim import CarriesOptions
from .kept import Kept
from .system import System


class _RealType(NamedTuple):
    """A map from a stored number to a rate of decay > 0, and its inverse."""

    decay: Callable[[Tensor], Tensor]
    stored: Callable[[Tensor], Tensor]


REAL_TYPES = {
    "none": _RealType(lambda p: p, lambda r: r),
    "exp": _RealType(torch.exp, torch.log),
    "relu": _RealType(F.relu, lambda r: r),
    "sigmoid": _RealType(torch.sigmoid, torch.logit),
    "softplus": _RealType(F.softplus, lambda r: r + torch.log(-torch.expm1(-r))),
}


class SSMParameters(CarriesOptions):
    """Base of the parameter modules: step sizes, the sign of the real part, the learning rates of groups."""

    log_dt: Tensor
    C: Tensor
    B: Tensor

    #: The names of what a system is made of.
    parts: ClassVar[tuple[str, ...]]

    #: Whether the kernel does not depend on the length of a call.
    causal: bool = True

    def __init__(
        self,
        log_dt: Tensor,
        real_type: str,
        *,
        least: float,
        relu_offset: float = 0.0,
        bandlimit: float | None = None,
    ) -> None:
        super().__init__()
        if real_type not in REAL_TYPES:
            raise ValueError(f"real_type must be one of {tuple(REAL_TYPES)}, got {real_type!r}")
        self.heads = len(log_dt)
        self.real_type = real_type
        self._least = least
        self._offset = relu_offset if real_type == "relu" else 0.0
        self.bandlimit = bandlimit
        self._kept = Kept()

    def system(self, rate: Any = 1.0, length: int | None = None) -> System:
        """The discrete system for inputs sampled at ``rate`` times the step that the model was made for.

        ``length``: of a call, where the system depends on it.
        """
        raise NotImplementedError

    def kept_system(self, rate: Any = 1.0, length: int | None = None) -> System:
        """``system``, for calls without gradients: not made again while the parameters hold the same numbers."""
        if isinstance(rate, Tensor):
            return self.system(rate, length)
        parts = [getattr(self, name) for name in self.parts]
        about = rate, None if self.causal else length, self.bandlimit
        return self._kept.system(about, parts, lambda: self.system(rate, length))

    def register(
        self, name: str, value: Tensor, *, group: str | None, lr: float | dict[str, float] | None
    ) -> None:
        """Add a parameter, or a buffer if its group's learning rate is 0.

        A parameter of a group (dt, A or B) carries ``_optim``: no weight decay, and the group's learning rate if one
        is given. See ``sequence_kernels.optim.parameter_groups``.
        """
        value = value.detach().clone()
        rate = lr.get(group or "") if isinstance(lr, dict) else lr
        if group is not None and rate == 0.0:
            self.register_buffer(name, value)
            return
        self.register_parameter(name, nn.Parameter(value))
        if group is not None:
            self.set_options(name, {"weight_decay": 0.0} | ({} if rate is None else {"lr": float(rate)}))

    def negative(self, stored: Tensor) -> Tensor:
        """The negative real parts that the stored numbers stand for."""
        wide = stored if stored.dtype in checks.REAL else stored.float()
        real = -REAL_TYPES[self.real_type].decay(wide)
        return real - self._offset if self._offset else real

    def to_stored(self, real: Tensor) -> Tensor:
        """The stored numbers for given real parts, which are first made at most ``-least``.

        Raises ValueError for a decay that ``real_type`` cannot express, unless ``real`` has no numbers (meta).
        """
        decay = torch.clamp(-real, min=self._least)
        stored = REAL_TYPES[self.real_type].stored(decay)
        if not stored.is_meta and not torch.isfinite(stored).all():
            most = float(decay.max())
            raise ValueError(
                f"real_type={self.real_type!r} cannot express the measure's decay rates, up to {most:g}"
            )
        return stored

    def dt(self, rate: float) -> Tensor:
        """The step of each head ``(H,)``, in float64."""
        return step_sizes(self.log_dt, rate)

    def within_band(self, c: Tensor, imag: Tensor) -> Tensor:
        """The readout c (C, H, N) without the modes of ``bandlimit / 2`` cycles a step or more; imag is (S, N)."""
        assert self.bandlimit is not None
        cycles = self.log_dt.exp().unsqueeze(-1) * by_head(imag, self.heads).abs() / (2 * math.pi)
        return torch.where(cycles < self.bandlimit / 2, c, 0)


def step_sizes(log_dt: Tensor, rate: float) -> Tensor:
    """The steps at the given sampling rate, in float64."""
    steps = torch.exp(log_dt.double())
    if type(rate) is float and rate == 1.0:
        return steps
    values.sampling_rate(rate)
    return steps * rate


def initial_log_dt(
    heads: int, dt_min: float, dt_max: float, dtype: torch.dtype, deterministic: bool = False
) -> Tensor:
    """Logarithms of the steps: uniform between those of the bounds, at random or evenly spaced."""
    if not 0 < dt_min <= dt_max:
        raise ValueError(f"dt_min and dt_max must satisfy 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
    low, high = math.log(dt_min), math.log(dt_max)
    place = torch.linspace(0, 1, heads, dtype=dtype) if deterministic else torch.rand(heads, dtype=dtype)
    return low + place * (high - low)


def filled(like: Tensor, value: float) -> Tensor:
    """That number in the shape of a complex tensor, of two real ones: AOTInductor has no complex constants."""
    return torch.complex(torch.full_like(like.real, value), torch.zeros_like(like.real))
