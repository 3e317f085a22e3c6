"""Normalisation by name, for either layout, with a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from ..arguments import keywords, values
from ..arguments.values import checked
from ..ops import packing
from ..optim import CarriesOptions
from ..stepping.stages import Norm, Pointwise, RootMeanSquare, Stage, holds, is_plain
from .padding import Lengths, moments, real_elements, without_padding


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

    With ``lengths``, as in ``S4``, all statistics are of the real elements alone, running ones too: "batch" is torch's
    of the real elements of all sequences, one after another.
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

    @property
    def looks_at_others(self) -> bool:
        """Whether what a position becomes depends on other positions, if only in training."""
        return self.name not in ("layer", "none")

    def unsplit_reason(self) -> str | None:
        """As that of a ``SequenceModule``."""
        return f"norm={self.name!r} takes statistics over other positions" if self.looks_at_others else None

    def forward(self, x: Tensor, lengths: Lengths | None = None) -> Tensor:
        turned = self.looks_at_others and not self.transposed
        if lengths is None:
            return self.norm(x.mT).mT if turned else self.norm(x)
        x, lengths = without_padding(x, lengths, self.transposed)
        if not self.looks_at_others:
            return self.norm(x)
        u = x.mT if turned else x
        y = _norm_of_real(self.norm, u, real_elements(u, lengths, transposed=True))
        return y.mT if turned else y

    def of_packed(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Normalise packed sequences, see ``S4``: each over its own length, where a norm is over the length."""
        if self.causal:
            return self.forward(x)
        axis = -1 if self.transposed else -2
        rows, lengths = packing.unpacked(x, cu_seqlens, axis)
        return packing.packed(self.forward(rows, lengths), lengths, axis)

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


def _norm_of_real(norm: Any, x: Tensor, real: Tensor) -> Tensor:
    """A norm over positions, of x ``(batch, channels, length)`` where it is real ``(batch, 1, length)``, else 0."""
    batch = isinstance(norm, _BatchNorm)
    if batch and not (type(norm) is nn.BatchNorm1d and is_plain(norm)):  # over several processes, for example
        y = torch.zeros_like(x)
        y.mT[real.squeeze(1)] = norm(x.mT[real.squeeze(1)]).to(x.dtype)
        return y
    running = isinstance(norm, _NormBase) and norm.running_mean is not None
    if running and not norm.training:
        return norm(x)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    dims = (-3, -1) if batch else (-2, -1) if isinstance(norm, nn.GroupNorm) else (-1,)
    found = moments(wide, real, dims)
    if running:
        _remember(norm, *(part.detach() for part in found))
    y = (wide - found.mean) * (found.variance + norm.eps).rsqrt()
    if norm.weight is not None:
        y = y * norm.weight.unsqueeze(-1) + norm.bias.unsqueeze(-1)
    return y.to(x.dtype)


def _remember(norm: Any, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Move the running statistics of a norm in training towards those found, as torch does; a row without elements
    has none.
    """
    factor = norm.momentum or 0.0
    if isinstance(norm, _BatchNorm) and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            factor = 1.0 / norm.num_batches_tracked.double()
    some = count > 0
    rows = some.sum(0).clamp(min=1)
    unbiased = variance * count / (count - 1).clamp(min=1)
    for kept, found in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        new = (torch.where(some, found, 0).sum(0) / rows).squeeze(-1)
        kept += factor * torch.where(some.any(), new - kept, 0)


def layer_norm(norm: nn.Module) -> list[Stage] | None:
    """Stages of an ``nn.LayerNorm`` over the last axis; None where it is another module, or not plain."""
    if type(norm) is not nn.LayerNorm or not is_plain(norm):
        return None
    if not isinstance(norm.weight, Tensor) or len(norm.normalized_shape) != 1:
        return None
    beta = torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
    return [Norm(norm.weight, beta, eps=norm.eps)]


def rms_norm(norm: nn.RMSNorm) -> list[Stage] | None:
    """Stages of a plain ``nn.RMSNorm`` over the last axis; None where it is over more of them, or has no weight."""
    if not isinstance(norm.weight, Tensor) or len(norm.normalized_shape) != 1:
        return None
    eps = torch.finfo(norm.weight.dtype).eps if norm.eps is None else norm.eps
    return [RootMeanSquare(norm.weight, eps)]


def norm_stages(norm: Normalization | None) -> list[Stage]:
    """What ``norm.step`` does in eval mode; None is no norm."""
    if norm is None:
        return []
    return norm.stages() if holds(norm, "stages") else [Pointwise(norm.step)]
