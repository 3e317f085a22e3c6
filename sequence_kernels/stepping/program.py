"""One time step of a whole stack of layers in one call: a program for the C++ interpreter (csrc/step_program)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..ssm.system import StepParameters

_PANEL = 64  # kPanel: what arrays are padded to, and how many outputs of a linear map lie side by side
_CODES = {
    name: code
    for code, name in enumerate(
        (
            "save",
            "residual",
            "norm",
            "linear",
            "glu",
            "activation",
            "recurrence",
            "convolution",
            "selective",
            "rms_norm",
            "keep",
            "drop",
            "put",
            "affine",
            "take",
            "append",
            "combine",
            "multiply",
            "recall",
            "modes",
            "gru",
            "lstm",
        )
    )
}
_SIZES = 12  # of an instruction


class Panels(NamedTuple):
    """Where the weight of a linear map lies among a program's numbers."""

    begin: int
    end: int


def packed_panels(weight: Tensor) -> Tensor:
    """``weight`` (outputs, inputs) as the interpreter has it: see csrc/step_program/step_program.h."""
    outputs, inputs = weight.shape
    packed = weight.new_empty((outputs + -outputs % _PANEL) * inputs)
    torch.ops.sequence_kernels_native.pack.default(weight.detach().contiguous(), 0, True, packed)
    return packed


class Program:
    """Instructions over the channels of a sequence, and the numbers they need.

    Each method but the last two adds one instruction. ``width``: channels of the input; ``dtype``: float32 or float64.
    """

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.input = width
        self.width = width  # channels after the last instruction
        self.state_size = 0  # numbers that the state of a sequence has
        self._instructions: list[list[int]] = []
        self._weights: list[tuple[Tensor, int, bool]] = []  # where each goes, and whether in panels
        self.panels: list[Panels] = []
        self._used = 0

    def _add(self, name: str, sizes: tuple[int, ...] = (), *weights: Tensor, state: int = 0) -> None:
        sizes = (*sizes, *[0] * (_SIZES - len(sizes)))
        self._instructions.append([_CODES[name], *sizes, self._used, state])
        for weight in weights:
            self._weights.append((weight, self._used, False))
            numbers = weight.numel() * (2 if weight.is_complex() else 1)
            self._used += numbers + -numbers % _PANEL

    def _numbers(self, *values: float) -> Tensor:
        return torch.tensor(values, dtype=self.dtype)

    def save(self) -> None:
        self._add("save")

    def residual(self, alpha: float, beta: float) -> None:
        self._add("residual", (), self._numbers(alpha, beta))

    def norm(self, gamma: Tensor, beta: Tensor, eps: float, least: float, shift: float) -> None:
        self._add("norm", (), self._numbers(eps, least, shift), gamma, beta)

    def linear(self, weight: Tensor, bias: Tensor | None, begin: int = 0, behind: bool = False) -> None:
        """``weight`` (outputs, inputs), ``bias`` (outputs), of the channels from ``begin`` on.

        ``behind``: the outputs come behind the channels there are, else instead of them.
        """
        outputs, inputs = weight.shape
        self.width = outputs + (self.width if behind else 0)
        given = weight.new_zeros(outputs) if bias is None else bias
        self._add("linear", (inputs, outputs, begin, int(behind)), given)
        self._weights.append((weight, self._used, True))
        at = self._used
        self._used += (outputs + -outputs % _PANEL) * inputs
        self.panels.append(Panels(at, self._used))

    def keep(self, begin: int, size: int) -> None:
        self.width = size
        self._add("keep", (size, begin))

    def drop(self) -> None:
        """Forget what was kept last."""
        self._add("drop")

    def put(self, depth: int) -> None:
        """Keep the channels at that depth below what was kept last, instead of what is there."""
        self._add("put", (depth,))

    def take(self, depth: int, size: int) -> None:
        """The ``size`` channels kept at that depth, and no other."""
        self.width = size
        self._add("take", (depth, size))

    def append(self, depth: int, size: int) -> None:
        """The ``size`` channels kept at that depth behind those there are."""
        self.width += size
        self._add("append", (depth, size))

    def combine(self, depth: int, alpha: float, beta: float) -> None:
        """``alpha`` times the channels kept at that depth plus ``beta`` times the present ones."""
        self._add("combine", (depth,), self._numbers(alpha, beta))

    def multiply(self, depth: int) -> None:
        """The channels kept at that depth times the present ones."""
        self._add("multiply", (depth,))

    def affine(self, scale: Tensor, shift: Tensor) -> None:
        """``scale`` times each channel plus ``shift``."""
        self._add("affine", (), scale, shift)

    def glu(self) -> None:
        self.width //= 2
        self._add("glu", (self.width,))

    def activation(self, code: int) -> None:
        """``code``: an Activation of csrc/step_program/step_program.h."""
        self._add("activation", (code,))

    def recurrence(self, parameters: StepParameters) -> int:
        """Of ``ops.ssm_step``, with a skip. Returns where its numbers begin among those of a sequence's state."""
        channels, heads, pairs = parameters.c.shape
        rank = 0 if parameters.p is None else len(parameters.p)
        given = [t for t in parameters if t is not None]
        self._add("recurrence", (heads, pairs, channels, rank), *given, state=self.state_size)
        self.width = channels * heads
        return self._placed(2 * heads * pairs)

    def convolution(self, weight: Tensor, bias: Tensor | None, begin: int, code: int | None) -> int:
        """``weight`` (channels, taps), of the channels from ``begin`` on, and an activation. Returns its place as
        ``recurrence`` does: of the last inputs, (taps - 1, channels)."""
        channels, taps = weight.shape
        given = weight.new_zeros(channels) if bias is None else bias
        sizes = (channels, taps, begin, 0 if code is None else 1 + code)
        self._add("convolution", sizes, given, weight.mT, state=self.state_size)
        return self._placed((taps - 1) * channels)

    def modes(self, a_minus_one: Tensor) -> int:
        """``x = a x + u`` of complex x ``(N,)``; channels: real, then imaginary parts. Returns its place."""
        self._add("modes", (len(a_minus_one),), a_minus_one, state=self.state_size)
        return self._placed(2 * len(a_minus_one))

    def place(self, numbers: int) -> int:
        """Room among the numbers of a sequence's state, for ``recall``, ``gru`` and ``lstm``."""
        return self._placed(numbers)

    def recall(self, place: int, size: int) -> None:
        """The ``size`` numbers of the state from that place on behind the channels there are."""
        self._add("recall", (size,), state=place)
        self.width += size

    def gates(self, kind: str, place: int, size: int, begin: int) -> None:
        """``kind``: "gru" or "lstm"; the ``4 size`` channels from ``begin`` on to h; see csrc/step_program."""
        self._add(kind, (size, begin), state=place)
        self.width = size

    def selective(
        self,
        sizes: tuple[int, int, int, int],
        places: Sequence[int | None],
        a: Tensor,
        d: Tensor,
        bias: Tensor,
        softplus: bool,
        limits: tuple[float, float],
    ) -> int:
        """Of ``ops.selective_step``: heads, their width, entries and groups, and the channels where u, delta, b, c and
        z begin (None: no z). The outputs are where u was. Returns its place as ``recurrence`` does: of the state."""
        heads, width, entries, _ = sizes
        begins = [-1 if place is None else place for place in places]
        flags = int(a.numel() == heads), int(softplus), int(d.numel() == heads)
        self._add(
            "selective", (*sizes, *begins, *flags), self._numbers(*limits), a, d, bias, state=self.state_size
        )
        return self._placed(heads * width * entries)

    def rms_norm(
        self, gamma: Tensor, eps: float, groups: int, begin: int, gate: int | None, gate_first: bool
    ) -> None:
        """Over groups of the channels from ``begin`` on; ``gate``: where z begins, of which silu is a factor."""
        sizes = len(gamma), groups, begin, -1 if gate is None else gate, int(gate_first)
        self._add("rms_norm", sizes, self._numbers(eps), gamma)

    def _placed(self, numbers: int) -> int:
        place = self.state_size
        self.state_size += numbers
        return place

    def finish(self) -> None:
        """Copy the numbers and make it ready to run."""
        self.packed = torch.zeros(self._used, dtype=self.dtype)
        native = torch.ops.sequence_kernels_native
        for weight, at, panels in self._weights:
            native.pack.default(weight.detach().contiguous(), at, panels, self.packed)
        self._weights.clear()
        self.code = torch.tensor(self._instructions, dtype=torch.int64).view(-1, 3 + _SIZES)
        self._in_order = torch.empty(0, dtype=torch.int64)
        self._run = native.step_program.default

    def run(self, state: Tensor, x: Tensor, state_indices: Tensor | None = None) -> Tensor:
        """Step x ``(rows, channels)`` from and to ``state`` ``(slots, state_size)``; -1 is an idle row."""
        state_indices = self._in_order if state_indices is None else state_indices
        return self._run(self.code, self.packed, state, state_indices, x.contiguous())
