"""From sequences and states to what a task wants: readouts of a sequence, and of a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import inputs, sequences
from ..arguments.values import checked
from ..layers.padding import Lengths, without_padding
from ..module import SequenceModule
from ..ops import checks, packing

_READOUTS = ("last", "pool", "sum")


class SequenceDecoder(SequenceModule):
    """A linear map of a readout of the sequence: of its elements, of their mean so far, or of their sum so far.

    At element t the readout is ``x_t`` ("last"), ``mean(x_0 .. x_t)`` ("pool") or ``sum(x_0 .. x_t)`` ("sum"). ``step``
    gives it at each element, and so does ``forward`` by default; a classifier takes the last one only.

    Args:
        d_model: width of the sequence.
        d_output: width of the result; None is ``d_model`` without a linear map.
        l_output: how many readouts ``forward`` returns: None for all (the cumulative readouts), n for those of the last
            n elements ``(batch, n, d_output)``, 0 for the last one alone, ``(batch, d_output)``.
        mode: "last", "pool" or "sum".

    The state is ``(sum so far (*batch_shape, d_model), elements so far (*batch_shape, 1))``, float64 and int64, so that
    both go on after 2^24 elements; there is none for "last".
    """

    @checked
    def __init__(
        self, d_model: int, d_output: int | None = None, l_output: int | None = None, mode: str = "last"
    ) -> None:
        super().__init__()
        if mode not in _READOUTS:
            raise ValueError(f"mode must be one of {_READOUTS}, got {mode!r}")
        self.d_model = d_model
        self.d_output = d_model if d_output is None else d_output
        self.l_output = l_output
        self.mode = mode
        self.output_transform = nn.Identity() if d_output is None else nn.Linear(d_model, d_output)

    def forward(
        self,
        x: Tensor,
        state: tuple[Tensor, Tensor] | None = None,
        lengths: Lengths | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Map ``(batch, length, d_model)``.

        ``lengths``: integers ``(batch,)``, a tensor or a list, how many elements of each sequence are real. The last
        readouts are then those of the last real elements, and the state returned is the one after them.
        ``cu_seqlens``: as in ``S4``; the last readouts are then those of each sequence, ``(sequences, n, d_output)``.
        """
        inputs.of_width(x, self.d_model)
        if cu_seqlens is not None:
            bounds = sequences.bounds_of(cu_seqlens, x, sequences.Axes.of(self))
            rows, real = packing.unpacked(x, bounds, -2)
            y, after = self.forward(rows, state, real)
            return (packing.packed(y, real, -2) if self.l_output is None else y), after
        counts = None
        if lengths is not None:
            if x.dim() != 3:
                raise ValueError(
                    f"x must have shape (batch, length, d_model) with lengths, got {tuple(x.shape)}"
                )
            x, counts = without_padding(x, lengths, transposed=False)
        readout, next_state = self._readouts(x, state, counts)
        return self.output_transform(self._chosen(readout, counts)), None if state is None else next_state

    def unsplit_reason(self) -> str | None:
        if self.mode != "last":
            return f"mode={self.mode!r} is over all elements so far"
        if self.l_output is not None:
            return f"l_output={self.l_output} is of the end of the whole sequence"
        return None

    def _readouts(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None, lengths: Tensor | None
    ) -> tuple[Tensor, Any]:
        if self.mode == "last":
            return x, state
        total, count = self.default_state(*x.shape[:-2], device=x.device) if state is None else state
        here = x.cumsum(-2, dtype=torch.promote_types(x.dtype, torch.float32))
        if lengths is None:
            last = here[..., -1, :] if x.shape[-2] else 0
            final = total + last, count + x.shape[-2]
        else:
            rows = torch.arange(x.shape[0], device=x.device)
            final = total + F.pad(here, (0, 0, 1, 0))[rows, lengths], count + lengths.unsqueeze(-1)
        sums = here if state is None else total.unsqueeze(-2) + here
        if self.mode == "pool":
            sums = sums / (
                count.unsqueeze(-2) + torch.arange(1, x.shape[-2] + 1, device=x.device).unsqueeze(-1)
            )
        return sums.to(x.dtype), final

    def _chosen(self, readout: Tensor, lengths: Tensor | None) -> Tensor:
        if self.l_output is None:
            return readout
        wanted, length = max(self.l_output, 1), readout.shape[-2]
        if lengths is None:
            if length < wanted:
                raise ValueError(f"x must have at least l_output={wanted} elements, got {length}")
            chosen = readout[..., length - wanted :, :]
        else:
            checks.integers("lengths", lengths, wanted, length)
            index = lengths.unsqueeze(-1) - wanted + torch.arange(wanted, device=lengths.device)
            chosen = readout.gather(1, index.unsqueeze(-1).expand(-1, -1, readout.shape[-1]))
        return chosen if self.l_output else chosen.squeeze(-2)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Any]:
        readout, next_state = self._readouts(x.unsqueeze(-2), state, None)
        return self.output_transform(readout.squeeze(-2)), next_state

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Any:
        if self.mode == "last":
            return None
        device = device or next(self.parameters(), torch.empty(0)).device
        total = torch.zeros(*batch_shape, self.d_model, dtype=torch.float64, device=device)
        return total, torch.zeros(*batch_shape, 1, dtype=torch.int64, device=device)

    @property
    def state_to_tensor(self) -> Callable[[Any], Tensor | None]:
        """Sum and number of elements so far, one after the other, in the parameters' precision, at least float32."""
        if self.mode == "last":
            return lambda _: None
        dtype = torch.promote_types(next(self.parameters(), torch.empty(0)).dtype, torch.float32)
        return lambda state: torch.cat([part.to(dtype) for part in state], -1)

    @property
    def d_state(self) -> int | None:
        return None if self.mode == "last" else self.d_model + 1


class StateDecoder(nn.Module):
    """A linear map of a module's state: ``(*batch_shape, d_output)``, from all that the module remembers.

    Args:
        module: whose states these are; it stays where it is, and is not made part of the decoder.
        d_output: width of the result.

    Raises ValueError for a module without a state.
    """

    @checked
    def __init__(self, module: SequenceModule, d_output: int) -> None:
        super().__init__()
        self._module = [module]  # in a list, so that its parameters are not the decoder's
        self.output_transform = nn.Linear(_state_width(module), d_output)

    def forward(self, state: Any) -> Tensor:
        """Map a state that the module returned."""
        return self.output_transform(self._module[0].state_to_tensor(state))


class StateEncoder(nn.Module):
    """A sequence as one vector: the state that a module is left in by it, ``(batch, d_state)``.

    Raises ValueError for a module without a state.
    """

    @checked
    def __init__(self, module: SequenceModule) -> None:
        super().__init__()
        self.module = module
        self.d_model, self.d_output = module.d_model, _state_width(module)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Map ``(batch, length, d_model)``; the keywords, such as ``lengths``, are the module's.

        With ``cu_seqlens``: ``(sequences, d_state)``.
        """
        bounds = kwargs.get("cu_seqlens")
        count = x.shape[0] if bounds is None else len(bounds) - 1
        _, state = self.module(x, self.module.default_state(count, device=x.device), **kwargs)
        return cast("Tensor", self.module.state_to_tensor(state))


def _state_width(module: SequenceModule) -> int:
    width = module.d_state
    if width is None:
        raise ValueError(f"module must have a state, and a {type(module).__name__} has none")
    return width
