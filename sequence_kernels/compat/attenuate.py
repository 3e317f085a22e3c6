"""aTENNuate's speech enhancer as the sound comes: samples go in block by block, and out as soon as they are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from .scans import AttenuateLayer


class _Part:
    """A part of the network that takes the next elements ``(B, C, t)``, t from 0, and gives what they complete."""

    def push(self, x: Tensor, last: bool) -> Tensor:
        """``last``: no more follow."""
        raise NotImplementedError

    def needs(self, count: int) -> int:
        """How many elements it must have had to have given so many."""
        return count


class _Convolution(_Part):
    """A convolution that looks ahead: a causal one, whose outputs belong to elements before."""

    def __init__(self, conv: nn.Conv1d) -> None:
        size, padding = conv.kernel_size[0], conv.padding
        each = conv.groups == conv.in_channels == conv.out_channels
        if (
            not each
            or conv.stride != (1,)
            or conv.dilation != (1,)
            or padding not in {(p,) for p in range(size)}
        ):
            raise ValueError(
                f"a convolution of each channel with stride and dilation 1 is expected, got {conv}"
            )
        self.conv, self.ahead = conv, size - 1 - int(padding[0])
        self.before = self.ahead  # outputs to come that belong to no element
        self.state: Tensor | None = None

    def push(self, x: Tensor, last: bool) -> Tensor:
        weight, bias = self.conv.weight.squeeze(1), self.conv.bias
        x = F.pad(x, (0, self.ahead)) if last else x
        y, self.state = ops.causal_conv1d(x, weight, bias, initial_state=self.state)
        dropped = min(self.before, y.shape[-1])
        self.before -= dropped
        return y[..., dropped:]

    def needs(self, count: int) -> int:
        return count + self.ahead


class _Recurrence(_Part):
    def __init__(self, layer: Any) -> None:
        self.layer = layer if isinstance(layer, AttenuateLayer) else AttenuateLayer(layer)
        self.state: Tensor | None = None

    def push(self, x: Tensor, last: bool) -> Tensor:
        if not x.shape[-1]:
            return x.new_zeros(len(x), len(self.layer.C), 0)
        y, self.state = self.layer(x, self.state, return_state=True)
        return y


class _Resampling(_Part):
    """A linear map of ``down`` elements at a time, to ``up``."""

    def __init__(self, mix: Any, down: int, up: int) -> None:
        self.mix, self.down, self.up = mix, down, up
        self.kept: Tensor | None = None

    def push(self, x: Tensor, last: bool) -> Tensor:
        x = x if self.kept is None else torch.cat((self.kept, x), -1)
        whole = x.shape[-1] // self.down * self.down
        self.kept = x[..., whole:]
        if last and self.kept.shape[-1]:
            raise ValueError(
                "the length of all samples must be a multiple of the product of resample_factors"
            )
        return self.mix(x[..., :whole])

    def needs(self, count: int) -> int:
        return -(-count // self.up) * self.down


class _Each(_Part):
    """What maps each element by itself."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def push(self, x: Tensor, last: bool) -> Tensor:
        return self.module(x)


class _Chain(_Part):
    def __init__(self, *parts: _Part) -> None:
        self.parts = parts

    def push(self, x: Tensor, last: bool) -> Tensor:
        for part in self.parts:
            x = part.push(x, last)
        return x

    def needs(self, count: int) -> int:
        for part in reversed(self.parts):
            count = part.needs(count)
        return count


class _Skipped(_Part):
    """``after(within(x) + x)``, where the sum waits for what is within."""

    def __init__(self, within: _Part, after: _Part) -> None:
        self.within, self.after = within, after
        self.skipped: Tensor | None = None

    def push(self, x: Tensor, last: bool) -> Tensor:
        skipped = x if self.skipped is None else torch.cat((self.skipped, x), -1)
        y = self.within.push(x, last)
        self.skipped = skipped[..., y.shape[-1] :]
        return self.after.push(y + skipped[..., : y.shape[-1]], last)

    def needs(self, count: int) -> int:
        return self.within.needs(self.after.needs(count))


class AttenuateStream:
    """A ``Denoiser`` of the package attenuate, run as samples come: the same numbers as of all samples at once.

    Its recurrences run on this library's kernels and carry their states; a convolution waits for the one sample, at its
    rate, that it looks ahead by, and a resampling for the samples of one element. The model is not changed. A block
    costs about the same from one sample to a thousand: blocks of 0.1 s are a good size.

    Args:
        model: a ``Denoiser``; what is put into its parameters later counts from the next push.

    ``latency``: how many samples behind the input the output is, at most.
    """

    def __init__(self, model: Any) -> None:
        for name in ("down_ssms", "hid_ssms", "up_ssms", "last_ssms"):
            if not hasattr(model, name):
                raise TypeError(
                    f"model must be a Denoiser of aTENNuate, got {type(model).__name__} without {name}"
                )
        self._model = model
        self.restart()
        period = 1
        for _, mix in model.down_ssms:
            period *= mix.weight.shape[-1]
        self.latency = max(self._whole.needs(count + 1) - count - 1 for count in range(period))

    def restart(self) -> None:
        """Begin anew, with the next samples as the first."""
        within: _Part = _Chain(*map(_block, self._model.hid_ssms))
        for down, up in reversed(list(zip(self._model.down_ssms, self._model.up_ssms, strict=True))):
            factor = down[1].weight.shape[-1]
            fewer, more = _Resampling(down[1], factor, 1), _Resampling(up[0], 1, factor)
            within = _Skipped(_Chain(_block(down[0]), fewer, within, more), _block(up[1]))
        self._whole: _Part = _Chain(within, *map(_block, self._model.last_ssms))

    def push(self, samples: Tensor, last: bool = False) -> Tensor:
        """The output ``(B, channels, t')`` that the next samples ``(B, channels, t)`` complete.

        ``last``: no more follow, so that everything comes out, and the next samples begin a new sequence. The length
        of all of it must then be a multiple of the product of the resampling factors, as in the model.
        """
        y = self._whole.push(samples, last)
        if last:
            self.restart()
        return y


def _block(block: nn.Sequential) -> _Part:
    return _Chain(*map(_part, block))


def _part(module: nn.Module) -> _Part:
    if isinstance(module, nn.Conv1d):
        return _Convolution(module)
    if all(hasattr(module, name) for name in ("log_dt", "A", "B", "C")):
        return _Recurrence(module)
    return _Each(module)
