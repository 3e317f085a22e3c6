"""Normalisation by name, for either layout, with a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import keywords, values
from ..arguments.values import checked
from ..optim import CarriesOptions
from ..stepping.stages import Norm, Pointwise, Stage, holds, is_plain


class TransposedLN(CarriesOptions):
    """Layer norm over the channels of ``(batch, channels, length)``, or over the axis ``dim`` if it is another.

    With ``scalar=True`` one shift ``m`` and one scale ``s`` serve all channels:
    ``s * (x - mean(x) + m) / std(x)``, with ``std`` the biased standard deviation, at least ``sqrt(eps)``:
    a constant column gives ``s * m / sqrt(eps)``, 0 at the start, and not NaN.
    The two ask optimizers for no weight decay.
    With ``scalar=False`` it is ``nn.LayerNorm``, a shift and a scale for each channel.
    """

    @checked
    def __init__(self, d: int, scalar: bool = True, eps: float = 1e-5, dim: int = -2) -> None:
        super().__init__()
        self.scalar = scalar
        self.eps = eps
        self.dim = dim
        if scalar:
            self.m = nn.Parameter(torch.zeros(1))
            self.s = nn.Parameter(torch.ones(1))
            for name in ("m", "s"):
                self.set_options(name, {"weight_decay": 0.0})
        else:
            self.ln = nn.LayerNorm(d, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        if not self.scalar:
            return self.ln(x.movedim(self.dim, -1)).movedim(-1, self.dim)
        centred = x - x.mean(self.dim, keepdim=True)
        variance = centred.square().mean(self.dim, keepdim=True)
        return self.s * variance.clamp(min=self.eps).rsqrt() * (centred + self.m)


_NORMS: dict[str, type[nn.Module]] = {
    "layer": nn.LayerNorm,
    "batch": nn.BatchNorm1d,
    "instance": nn.InstanceNorm1d,
    "group": nn.GroupNorm,
    "none": nn.Identity,
}
#: Arguments of these that the width decides.
_SIZES = frozenset(("d", "normalized_shape", "num_features", "num_groups", "num_channels"))


class Normalization(nn.Module):
    """Normalisation of ``(batch, length, d)``, or with ``transposed=True`` of ``(batch, d, length)``.

    ``_name_`` is "layer", "batch", "instance", "group" (one group) or "none"; further keywords go to the
    module that does the work, which is ``self.norm``. "instance" and "group" take statistics over the length:
    they are not ``causal`` and cannot be stepped. Raises ValueError for that, and for another name.
    """

    @checked
    def __init__(self, d: int, transposed: bool = False, _name_: str = "layer", **kwargs: Any) -> None:
        super().__init__()
        self.d = d
        self.transposed = transposed
        self.name = _name_
        if _name_ not in _NORMS:
            raise ValueError(f"norm must be layer, batch, instance, group or none; got {_name_!r}")
        make = TransposedLN if transposed and _name_ == "layer" else _NORMS[_name_]
        sizes = {"none": (), "group": (1, d)}.get(_name_, (d,))
        options = keywords.named(make.__init__) - _SIZES if sizes else frozenset[str]()
        keywords.refuse(f"norm={_name_!r}", kwargs, options)
        values.real("eps", kwargs.get("eps", 1e-5))
        self.norm: nn.Module = make(*sizes, **kwargs)

    @property
    def causal(self) -> bool:
        """Whether each position is normalised by itself (in eval mode)."""
        return self.name not in ("instance", "group")

    def forward(self, x: Tensor) -> Tensor:
        if self.transposed or self.name in ("layer", "none"):
            return self.norm(x)
        return self.norm(x.mT).mT

    def step(self, x: Tensor) -> Tensor:
        """Normalise one time step ``(..., d)``."""
        if not self.causal:
            raise ValueError(f"norm={self.name!r} takes statistics over the whole sequence: it has no step")
        one = x.reshape(-1, x.shape[-1]).unsqueeze(-1 if self.transposed else -2)
        return self.forward(one).reshape(x.shape)

    def stages(self) -> list[Stage]:
        """What ``step`` does in eval mode."""
        norm, kind = self.norm, type(self.norm)
        if kind is nn.Identity and is_plain(norm):
            return []
        if isinstance(norm, TransposedLN) and kind is TransposedLN and is_plain(norm):
            if norm.scalar:
                gamma = norm.s.expand(self.d)
                return [Norm(gamma, torch.zeros_like(gamma), least=norm.eps, shift=float(norm.m))]
            norm = norm.ln
        return layer_norm(norm) or [Pointwise(self.step)]


def layer_norm(norm: nn.Module) -> list[Stage] | None:
    """Stages of an ``nn.LayerNorm`` over the last axis; None where it is another module, or not plain."""
    if type(norm) is not nn.LayerNorm or not is_plain(norm):
        return None
    if not isinstance(norm.weight, Tensor) or len(norm.normalized_shape) != 1:
        return None
    beta = torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
    return [Norm(norm.weight, beta, eps=norm.eps)]


def norm_stages(norm: Normalization | None) -> list[Stage]:
    """What ``norm.step`` does in eval mode; None is no norm."""
    if norm is None:
        return []
    return norm.stages() if holds(norm, "stages") else [Pointwise(norm.step)]
