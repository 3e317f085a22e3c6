"""Normalisations of time series that are undone after a forecast; each looks at the whole series."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..arguments.values import checked
from .padding import Lengths, moments, real_elements, without_padding


class _Remembers(nn.Module):
    """Base of modules that keep statistics of their latest call, with what autograd knows of them.

    Copies of the module, and what is pickled, have their values only.
    """

    def unsplit_reason(self) -> str | None:
        """As that of a ``SequenceModule``."""
        return f"a {type(self).__name__} takes statistics over the whole series"

    def __getstate__(self) -> dict[str, Any]:
        return {k: v.detach() if isinstance(v, Tensor) else v for k, v in self.__dict__.items()}


class TSNormalization(_Remembers):
    """Divide ``(batch, length, channels)`` by a scale of each channel before the last ``horizon`` elements.

    ``method``: "mean", of the absolute values; "last", of the last one; None or "none" leaves the series as it is. A
    scale of 0 is taken as 1. ``TSInverseNormalization`` multiplies by the scale of the latest call.

    ``forward(x, lengths)``: as in ``S4``. The horizon is then the end of what is real.
    """

    @checked
    def __init__(self, method: str | None, horizon: int) -> None:
        super().__init__()
        if method not in ("mean", "last", "none", None):
            raise ValueError(f"method must be 'mean', 'last', 'none' or None, got {method!r}")
        self.method = method
        self.horizon = horizon
        self.scale: Tensor | float = 1.0

    def forward(self, x: Tensor, lengths: Lengths | None = None) -> Tensor:
        if lengths is not None:
            x, lengths = without_padding(x, lengths, transposed=False)
        if self.method in ("none", None):
            scale = torch.ones((), dtype=x.dtype, device=x.device)
        elif lengths is None:
            known = x[:, : x.shape[1] - self.horizon].abs()
            scale = known.mean(1, keepdim=True) if self.method == "mean" else known[:, -1:]
        else:
            known = (lengths - self.horizon).clamp(min=0)
            if self.method == "mean":
                scale = moments(x.abs(), real_elements(x, known, transposed=False), (-2,)).mean
            else:
                scale = x.take_along_dim((known - 1).clamp(min=0).view(-1, 1, 1), 1).abs()
        self.scale = torch.where(scale == 0, 1, scale)
        return x / self.scale


class TSInverseNormalization(nn.Module):
    """Undo a ``TSNormalization``."""

    @checked
    def __init__(self, method: str | None, normalizer: TSNormalization) -> None:
        super().__init__()
        self.method = method
        self.normalizer = normalizer

    def forward(self, x: Tensor) -> Tensor:
        return x * self.normalizer.scale


class ReversibleInstanceNorm1dInput(_Remembers):
    """``(x - mean) / (std + 1e-4)`` over the length of ``(batch, length, d)``, or ``(batch, d, length)`` if transposed.

    ``norm.weight`` and ``norm.bias`` of an ESPnet state dict, which it never reads, are accepted and not kept.

    ``forward(x, lengths)``: as in ``S4``. Mean and std are then of what is real.
    """

    @checked
    def __init__(self, d: int, transposed: bool = False) -> None:
        super().__init__()
        self.d = d
        self.transposed = transposed
        self.m: Tensor | float = 0.0
        self.s: Tensor | float = 1.0

    def forward(self, x: Tensor, lengths: Lengths | None = None) -> Tensor:
        length = -1 if self.transposed else -2
        if lengths is None:
            self.m = x.mean(length, keepdim=True)
            self.s = x.std(length, correction=0, keepdim=True) + 1e-4
        else:
            x, lengths = without_padding(x, lengths, self.transposed)
            self.m, variance, _ = moments(x, real_elements(x, lengths, self.transposed), (length,))
            some = variance > 0  # where there is none, the gradient is 0, as torch's of std
            self.s = torch.where(some, torch.where(some, variance, 1).sqrt(), 0) + 1e-4
        return (x - self.m) / self.s

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        unread = (prefix + "norm.weight", prefix + "norm.bias")
        kept = {name: value for name, value in state_dict.items() if name not in unread}
        super()._load_from_state_dict(kept, prefix, *args)


class ReversibleInstanceNorm1dOutput(nn.Module):
    """Undo a ``ReversibleInstanceNorm1dInput``."""

    @checked
    def __init__(self, norm_input: ReversibleInstanceNorm1dInput) -> None:
        super().__init__()
        self.norm_input = norm_input

    def forward(self, x: Tensor) -> Tensor:
        return x * self.norm_input.s + self.norm_input.m
