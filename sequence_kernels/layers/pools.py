"""Maps between sequences of different lengths.

Going down, ``(..., length, d_input)`` becomes ``(..., length / stride, d_output)``; with ``transposed=True``, the
default as in ESPnet, channels come before length. A window of ``stride`` elements gives one element. An incomplete last
window gives none, but waits in the state: ``(*batch_shape, elements, d_input)``, where ``elements`` < ``stride``.
``step`` takes one element and returns None instead of an output when the element completes none.

Going up, an element gives ``stride`` elements. ``step`` returns one of them, and takes an element, or None while there
are outputs left. They wait in the state: ``(*batch_shape, outputs, d_output)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..arguments import inputs
from ..arguments.values import checked
from ..awaited import Awaited, begun
from ..module import SequenceModule
from ..ops import checks
from .components import linear_activation
from .padding import Lengths, without_padding


class Pool(SequenceModule):
    """Base of the pools: windows are cut here, ``_pool`` maps them.

    ``stride``: elements of a window. ``expand``: ``d_output / d_input``. Raises ValueError if one is below 1.
    """

    @checked
    def __init__(self, d_input: int, stride: int = 1, expand: int = 1, transposed: bool = True) -> None:
        super().__init__()
        self.d_model = d_input
        self.d_output = d_input * expand
        self.stride = stride
        self.expand = expand
        self.transposed = transposed

    def _pool(self, windows: Tensor) -> Tensor:
        """(..., windows, stride, d_input) to (..., windows, d_output)."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, state: Tensor | Awaited | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """``lengths``: as in ``S4``, without a state only; ``self.lengths`` says how many outputs are real."""
        x = x.mT if self.transposed else x
        inputs.of_width(x, self.d_model)
        if lengths is not None:
            if state is not None:
                raise ValueError(
                    "lengths cannot be given together with a state: a pool would keep elements that are not real"
                )
            x, lengths = without_padding(x, lengths, transposed=False)
        if isinstance(state, Awaited):
            self._check_part(x.shape[-2], state.start.shape[-2])
            state = state.start
        if state is None:
            y, rest = self._windows(x, 0, lengths)
        else:
            y, rest = self._windows(torch.cat((state.to(x), x), -2), state.shape[-2], None)
        return (y.mT if self.transposed else y), (None if state is None else rest.clone())

    def unsplit_reason(self) -> str | None:
        return None

    def _check_part(self, length: int, waiting: int) -> None:
        """No window spans two parts."""
        if length % self.stride or waiting:
            raise ValueError(
                f"x of length {length}, behind a window of {waiting}: a {type(self).__name__} needs parts of whole "
                f"windows, multiples of stride={self.stride}"
            )

    def _windows(self, x: Tensor, seen: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """The outputs of all complete windows, and the rest; the first ``seen`` elements of x were there before.

        x is zero from the ``lengths`` ``(B,)`` on.
        """
        whole = x.shape[-2] // self.stride
        windows = x[..., : whole * self.stride, :].unflatten(-2, (whole, self.stride))
        return self._pool(windows), x[..., whole * self.stride :, :]

    def step(  # type: ignore[override]
        self, x: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """Map one element ``(..., d_input)``, to None while its window is not complete."""
        inputs.of_width(x, self.d_model)
        state = self.default_state(*x.shape[:-1], device=x.device) if state is None else state
        y, rest = self._windows(torch.cat((state.to(x), x.unsqueeze(-2)), -2), state.shape[-2], None)
        return (y.squeeze(-2) if y.shape[-2] else None), rest.clone()

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        """A window without elements."""
        return torch.empty(*batch_shape, 0, self.d_model, device=device)

    @property
    def state_to_tensor(self) -> Callable[[Any], Tensor | None]:
        """None: a window fills up, and is no tensor of a fixed width."""
        return lambda _: None

    def lengths(self, lengths: Any) -> Any:
        """How many elements are real after the pool, an int or integers, of sequences with so many before."""
        return torch.as_tensor(lengths) // self.stride


class DownAvgPool(Pool):
    """The mean of each window; each channel is repeated ``expand`` times."""

    def _pool(self, windows: Tensor) -> Tensor:
        return windows.mean(-2).repeat_interleave(self.expand, -1)


class DownLinearPool(Pool):
    """A linear map of the ``stride * d_input`` numbers of each window, ordered by channel, then by element."""

    @checked
    def __init__(self, d_input: int, stride: int = 1, expand: int = 1, transposed: bool = True) -> None:
        super().__init__(d_input, stride, expand, transposed)
        self.linear = linear_activation(d_input * stride, self.d_output, spare_bias=transposed)

    def _pool(self, windows: Tensor) -> Tensor:
        return self.linear(windows.mT.flatten(-2))


class DownPool(Pool):
    """``DownLinearPool`` with weight normalisation and an activation.

    Give one of ``d_output`` and ``expand``; else ValueError. ``initializer``: see ``components.initialize``.
    """

    @checked
    def __init__(
        self,
        d_input: int,
        d_output: int | None = None,
        expand: int | None = None,
        stride: int = 1,
        transposed: bool = True,
        weight_norm: bool = True,
        initializer: str | None = None,
        activation: str | None = None,
    ) -> None:
        if (d_output is None) == (expand is None):
            raise ValueError(f"one of d_output and expand must be given, got {d_output} and {expand}")
        super().__init__(d_input, stride, transposed=transposed)
        self.d_output = d_input * expand if d_output is None else d_output  # type: ignore[operator]
        self.linear = linear_activation(
            d_input * stride,
            self.d_output,
            activation,
            initializer=initializer,
            weight_norm=weight_norm,
            spare_bias=transposed,
        )

    def _pool(self, windows: Tensor) -> Tensor:
        return self.linear(windows.mT.flatten(-2))


class DownSample(Pool):
    """The first element of each window; each channel is repeated ``expand`` times.

    A window gives its output when it begins: an incomplete last window gives one too.
    """

    def _windows(self, x: Tensor, seen: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        first = self.stride if seen else 0
        y = x[..., first :: self.stride, :].repeat_interleave(self.expand, -1)
        return y, x[..., x.shape[-2] // self.stride * self.stride :, :]

    def lengths(self, lengths: Any) -> Any:
        return (torch.as_tensor(lengths) + self.stride - 1) // self.stride


class DownSpectralPool(Pool):
    """The sequence without its high frequencies, sampled ``1 / stride`` as often; channels repeated ``expand`` times.

    It looks at the whole sequence, whose length must be a multiple of ``stride``. ESPnet transforms back twice instead
    of forth and back, which reverses time and divides by the length: ``legacy=True`` does that too (for an even
    number of outputs only).
    """

    causal = False

    @checked
    def __init__(
        self, d_input: int, stride: int = 1, expand: int = 1, transposed: bool = True, legacy: bool = False
    ) -> None:
        super().__init__(d_input, stride, expand, transposed)
        self.legacy = legacy

    def _windows(self, x: Tensor, seen: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        if lengths is None:
            return self._resampled(x).repeat_interleave(self.expand, -1), x[..., :0, :]
        rows = x.flatten(0, -3)
        y = rows.new_zeros(len(rows), x.shape[-2] // self.stride, self.d_model)
        for length in set(lengths.tolist()) - {0}:  # each row by itself: the whole row counts
            chosen = lengths == length
            y[chosen, : length // self.stride] = self._resampled(rows[chosen, :length])
        y = y.reshape(*x.shape[:-2], *y.shape[1:])
        return y.repeat_interleave(self.expand, -1), x[..., :0, :]

    def _resampled(self, x: Tensor) -> Tensor:
        length = x.shape[-2] // self.stride
        if x.shape[-2] % self.stride or (self.legacy and length % 2):
            wanted = f"a multiple of {self.stride * (2 if self.legacy else 1)}"
            raise ValueError(f"a spectral pool needs a length that is {wanted}, got {x.shape[-2]}")
        dtype, x = x.dtype, x.float() if x.dtype in checks.HALF else x
        if self.legacy:
            spectrum = torch.fft.ifft(x, dim=-2)
            kept = torch.cat(
                (spectrum[..., : length // 2, :], spectrum[..., x.shape[-2] - length // 2 :, :]), -2
            )
            return torch.fft.ifft(kept, dim=-2).real.to(dtype)
        kept = torch.fft.rfft(x, dim=-2)[..., : length // 2 + 1, :]
        return (torch.fft.irfft(kept, n=length, dim=-2) / self.stride).to(dtype)

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        raise ValueError("a spectral pool looks at the whole sequence: it has no state")

    def forward(
        self, x: Tensor, state: Tensor | Awaited | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if state is not None:
            raise ValueError("a spectral pool looks at the whole sequence: it cannot be given a state")
        return super().forward(x, lengths=lengths)

    def unsplit_reason(self) -> str | None:
        return "a spectral pool looks at the whole sequence"


class Unpool(SequenceModule):
    """Base of the maps to longer sequences. The first ``delay`` outputs, 0 or ``stride``, are zeros."""

    @checked
    def __init__(self, d_input: int, d_output: int, stride: int, transposed: bool, delay: int) -> None:
        super().__init__()
        self.d_model = d_input
        self.d_output = d_output
        self.stride = stride
        self.transposed = transposed
        self._delay = delay

    def _unpool(self, x: Tensor) -> Tensor:
        """(..., length, d_input) to (..., length * stride, d_output)."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        skip: Tensor | None = None,
        lengths: Lengths | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """``skip``: in the shape of the output, is added to it. ``lengths``: as in ``S4``."""
        x = x.mT if self.transposed else x
        if lengths is not None:
            x, lengths = without_padding(x, lengths, transposed=False)
        state = begun(state)
        waiting = self.default_state(*x.shape[:-2], device=x.device) if state is None else state
        outputs = torch.cat((waiting.to(x), self._unpool(x)), -2)
        end = outputs.shape[-2] - self._delay
        y = outputs[..., :end, :]
        y = y.mT if self.transposed else y
        y = y if skip is None else y + skip
        if state is None:
            return y, None
        if lengths is None:
            return y, outputs[..., end:, :].clone()
        missing = (x.shape[-2] - lengths).reshape(*x.shape[:-2], 1) * self.stride
        places = end - missing + torch.arange(self._delay, device=x.device)
        return y, outputs.gather(-2, places.unsqueeze(-1).expand(*places.shape, self.d_output))

    def unsplit_reason(self) -> str | None:
        return f"a {type(self).__name__} delays by {self._delay} elements" if self._delay else None

    def lengths(self, lengths: Any) -> Any:
        """How many elements are real after it, an int or integers, of sequences with so many before."""
        return torch.as_tensor(lengths) * self.stride

    def step(self, x: Tensor | None, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The next output ``(..., d_output)``. x, ``(..., d_input)``, is wanted every ``stride``-th time, else None."""
        if state is None:
            if x is None:
                raise ValueError("the first step needs x or a state, got neither")
            state = self.default_state(*x.shape[:-1], device=x.device)
        if (x is None) == (state.shape[-2] == self._delay // self.stride):
            raise ValueError(
                f"x must {'be given' if x is None else 'be None'}: {state.shape[-2]} outputs are waiting"
            )
        if x is not None:
            state = torch.cat((state.to(x), self._unpool(x.unsqueeze(-2))), -2)
        return state[..., 0, :], state[..., 1:, :].clone()

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        return torch.zeros(*batch_shape, self._delay, self.d_output, device=device)

    @property
    def state_to_tensor(self) -> Callable[[Any], Tensor | None]:
        """None: the number of waiting outputs varies."""
        return lambda _: None


class UpPool(Unpool):
    """A linear map of each element to ``stride`` elements of ``d_output`` channels, later by ``stride`` elements.

    Because of the delay an output depends on nothing later than itself where the input came from a ``DownPool`` of the
    same stride: the input of step ``stride - 1``, ``2 stride - 1``, .. is that pool's output of the same step.
    """

    @checked
    def __init__(
        self,
        d_input: int,
        d_output: int,
        stride: int,
        transposed: bool = True,
        weight_norm: bool = True,
        initializer: str | None = None,
        activation: str | None = None,
    ) -> None:
        super().__init__(d_input, d_output, stride, transposed, delay=stride)
        self.linear = linear_activation(
            d_input,
            d_output * stride,
            activation,
            initializer=initializer,
            weight_norm=weight_norm,
            spare_bias=transposed,
        )

    def _unpool(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(-1, (self.d_output, self.stride)).mT.flatten(-3, -2)


class UpSample(Unpool):
    """Each element ``stride`` times; ``expand`` channels become their mean, so that it undoes ``DownSample``."""

    @checked
    def __init__(self, d_input: int, stride: int = 1, expand: int = 1, transposed: bool = True) -> None:
        if d_input % expand:
            raise ValueError(f"expand must divide the width {d_input}, got {expand}")
        super().__init__(d_input, d_input // expand, stride, transposed, delay=0)
        self.expand = expand

    def _unpool(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.expand)).mean(-1).repeat_interleave(self.stride, -2)


POOLS: dict[str, type[Pool]] = {
    "sample": DownSample,
    "pool": DownAvgPool,
    "linear": DownLinearPool,
    "spectral": DownSpectralPool,
}


def make_pool(config: str | Mapping[str, Any], d_input: int, transposed: bool) -> Pool:
    """Build a pool from its name or from ``{"_name_": name, **arguments}``.

    Raises ValueError for a name that ``POOLS`` does not have.
    """
    arguments = {"_name_": config} if isinstance(config, str) else dict(config)
    name = arguments.pop("_name_", None)
    if name not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}; got {name!r}")
    return POOLS[name](d_input, **{**arguments, "transposed": transposed})
