"""CUDA graphs: what is launched for one time step, recorded once and replayed by one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

#: Runs before a capture: libraries allocate and kernels are loaded, which a capture does not allow.
_WARM_UPS = 3

#: Records a function without arguments: returns what replays it, and the tensor where each replay leaves its result.
Capture = Callable[[Callable[[], Tensor], torch.device], tuple[Callable[[], Any], Tensor]]


def cuda_graph(function: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], Any], Tensor]:
    """The function as a CUDA graph, after some runs on a side stream."""
    with torch.cuda.device(device):
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                function()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = function()
    return graph.replay, output


#: How a function is captured on a type of device; on others it is called.
CAPTURES: dict[str, Capture] = {"cuda": cuda_graph}


class StepGraph:
    """``step(x, state_indices)`` of up to ``rows`` rows, captured: each call copies into fixed tensors and replays.

    Args:
        step: maps x ``(rows, width)`` and state_indices ``(rows)``, or None, to y ``(rows, any)``, and changes
            ``states`` in place. A row whose slot is -1 must change none.
        rows: of the graph. A call with state_indices may have fewer rows; one without has all.
        width, dtype: of x.
        with_indices: whether calls have state_indices.
        states: what the step changes. Making the graph leaves it as it is.
        capture: see ``Capture``.
    """

    def __init__(
        self,
        step: Callable[[Tensor, Tensor | None], Tensor],
        rows: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        with_indices: bool,
        states: Sequence[Tensor],
        capture: Capture,
    ) -> None:
        self._x = torch.zeros(rows, width, dtype=dtype, device=device)
        self._state_indices = torch.full((rows,), -1, device=device) if with_indices else None
        before = [state.clone() for state in states]
        try:
            self._replay, self._y = capture(lambda: step(self._x, self._state_indices), device)
        except RuntimeError as error:
            raise RuntimeError(
                f"a time step cannot be captured in a CUDA graph ({error}); make the stepper with graph=False"
            ) from error
        finally:
            for state, value in zip(states, before, strict=True):
                state.copy_(value)

    def __call__(self, x: Tensor, state_indices: Tensor | None) -> Tensor:
        self._x[: len(x)].copy_(x)
        if self._state_indices is not None and state_indices is not None:
            self._state_indices[: len(x)].copy_(state_indices)
            self._state_indices[len(x) :].fill_(-1)
        self._replay()
        return self._y[: len(x)].clone()
