"""Steppers: a module made ready to run through time, one step or one block after another."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from operator import getitem, is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import ops
from ..ops import checks
from ..ops.dispatch import choose
from ..ops.ssm_step.reference import in_place
from ..ssm.system import ChunkMatrices, interleaved, paired
from .graphs import CAPTURES, Capture, StepGraph
from .program import Program
from .stages import Join, Norm, Pointwise, Recurrence, Residual, Save, Stage, Whole

if TYPE_CHECKING:
    from ..module import SequenceModule

#: Elements that one chunk of a block holds.
_CHUNK = 32


class Stepper:
    """A causal module ready to run through time: its parameters discretised once, its state kept here.

    Made by ``module.stepper(batch_shape, device, dtype)``. It computes what the module's ``step`` and ``forward``
    compute in eval mode, and steps and blocks may follow each other in any order. It raises RuntimeError when the
    parameters of the module have changed since it was made (see ``stale``). There are no gradients.

    Args:
        module: any causal SequenceModule.
        batch_shape: the shape of the batch of sequences.
        device, dtype: where and in which precision to compute; those of the module by default.
        graph: False takes steps on CUDA without a CUDA graph.
        **arguments: what the module's ``step`` takes besides, such as ``rate``.

    On CPU, in float32 and float64, a stack whose parts the C++ interpreter knows (``stepping.program``) takes a step in
    one call. On CUDA the first step, and the first with each power of two of rows in ``state_indices``, is captured in
    a CUDA graph, which later ones replay; it keeps the ops' backend of that moment. A module that does not say its
    stages, and blocks, go through their stages one by one.
    """

    def __init__(
        self,
        module: SequenceModule,
        batch_shape: Sequence[int] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        graph: bool = True,
        **arguments: Any,
    ) -> None:
        if not module.causal:
            raise ValueError(f"a {type(module).__name__} that is not causal cannot be stepped")
        self.module = module
        self.batch_shape = tuple(batch_shape)
        self._target: dict[str, Any] = {"device": device, "dtype": dtype}
        self._arguments = arguments
        self._graph = graph
        self._prepare()
        self._allocate()

    @torch.no_grad()
    def _prepare(self) -> None:
        self._watched = _Watched(self.module)
        first = next(self.module.parameters(), torch.empty(0, **self._target))
        moved = first.to(**self._target)
        self.device, self.dtype = moved.device, moved.dtype
        self._source = self.module
        self._stages = self._source.stages(**self._arguments)
        if moved is not first or not all(map(_reads_parameters_only, self._stages)):
            self._source = copy.deepcopy(self.module).to(**self._target).eval()
            self._stages = self._source.stages(**self._arguments)
        self._systems = [_Prepared(stage) for stage in self._stages if isinstance(stage, Recurrence)]
        self._program = self._translated()

    def _translated(self) -> Program | None:
        """The stages as a program of the C++ interpreter; None if it cannot serve them."""
        example = torch.empty(0, dtype=self.dtype, device=self.device)
        if self.dtype not in checks.REAL or choose("ssm_step_", None, example) != "cpu":
            return None
        program = Program(self.module.d_model, self.dtype)
        systems = iter(self._systems)
        for stage in self._stages:
            if isinstance(stage, Save):
                program.save()
            elif isinstance(stage, Residual):
                program.residual(stage.alpha, stage.beta)
            elif isinstance(stage, Norm):
                program.norm(stage.gamma, stage.beta, stage.eps, stage.least, stage.shift)
            elif isinstance(stage, Recurrence):
                program.recurrence(*next(systems).low_rank())
            elif not isinstance(stage, Pointwise) or not _translate(stage.module, program):
                return None
        program.finish()
        return program

    @torch.no_grad()
    def _allocate(self) -> None:
        """Make the state before the first element."""
        rows = math.prod(self.batch_shape)
        self._empty = self._source.default_state(*self.batch_shape, device=self.device)
        if self._program is None:
            self._states = [system.state(rows) for system in self._systems]
        else:
            self._flat = torch.zeros(rows, self._program.state_size, dtype=self.dtype)
            self._states, at = [], 0
            for system in self._systems:
                size = math.prod(system.shape) * 2
                self._states.append(paired(self._flat[:, at : at + size]).unflatten(-1, system.shape))
                at += size
        wholes = [stage.module for stage in self._stages if isinstance(stage, Whole)]
        self._carried = [m.default_state(*self.batch_shape, device=self.device) for m in wholes]
        self._graphs: dict[tuple[int, bool, str], StepGraph] = {}

    @property
    def stale(self) -> bool:
        """Whether parameters or buffers of the module were changed in place or replaced since they were read.

        A change through ``parameter.data`` cannot be seen.
        """
        return self._watched.changed()

    def refresh(self) -> None:
        """Read the parameters of the module as they are now. The state stays."""
        state = self.state
        self._prepare()
        self._allocate()
        self.state = state

    def _check_fresh(self) -> None:
        if self.stale:
            raise RuntimeError(
                "the parameters of the module have changed since this stepper read them; call refresh()"
            )

    def reset(self) -> None:
        """Go back to the state before the first element."""
        self.state = self._empty

    def _leaves(self) -> Iterator[tuple[Tensor, bool]]:
        """The tensors that hold the state, in the order and shapes of the modules, and whether their shape is fixed."""
        states, carried = iter(self._states), iter(self._carried)
        for stage in self._stages:
            if isinstance(stage, Recurrence):
                state = next(states)
                yield state.reshape(*self.batch_shape, *state.shape[1:]), True
            elif isinstance(stage, Whole):
                yield from ((part, False) for part in _tensors(next(carried)))

    @property
    def state(self) -> Any:
        """A copy of the state, as the module's ``step`` and ``forward`` take it. Assign one to go on from it.

        Raises ValueError for one of another structure or shape than the module's ``default_state(*batch_shape)``. A
        module that does not say its stages may have a state that grows; of that only the batch is compared.
        """
        return _filled(self._empty, iter([part.clone() for part, _ in self._leaves()]))

    @state.setter
    @torch.no_grad()
    def state(self, state: Any) -> None:
        given, leaves = list(_tensors(state)), list(self._leaves())
        compared = [None if fixed else len(self.batch_shape) for _, fixed in leaves]  # leading sizes
        if [t.dim() for t in given] != [t.dim() for t, _ in leaves] or any(
            value.shape[:count] != leaf.shape[:count]
            for value, (leaf, _), count in zip(given, leaves, compared, strict=True)
        ):
            shapes = [tuple(t.shape) for t in _tensors(self._empty)]
            raise ValueError(
                f"state must hold tensors of shapes {shapes}, as default_state{self.batch_shape} does, "
                f"got {[tuple(t.shape) for t in given]}"
            )
        values, states, carried = iter(given), iter(self._states), 0
        for stage in self._stages:
            if isinstance(stage, Recurrence):
                part = next(states)
                part.copy_(next(values).reshape(part.shape))
            elif isinstance(stage, Whole):
                old = self._carried[carried]
                self._carried[carried] = _filled(old, (next(values).to(t, copy=True) for t in _tensors(old)))
                carried += 1

    def step(self, x: Tensor, *, state_indices: Tensor | None = None) -> Any:
        """Map one time step ``(*batch_shape, d_model)`` to ``(*batch_shape, d_output)``, or None as the module does.

        ``state_indices``: int32 or int64 ``(B,)``, to step some of many streams. ``batch_shape`` is then
        ``(slots,)``, x is ``(B, d_model)``, and its row i drives the state ``state_indices[i]``. -1 marks an idle row:
        its output is 0. The state of a slot that no row names keeps its bits; no slot may be named twice.
        """
        self._check_fresh()
        self._check_input(x, (), state_indices)
        rows = x.detach().reshape(-1, x.shape[-1])
        slots = None if state_indices is None else state_indices.to(torch.int64)
        if self._program is not None:
            y = self._program.run(self._flat, rows, slots)
        elif (capture := self._capture()) is not None and len(rows) > 0:
            y = self._step_graph(capture, rows, slots)(rows, slots)
        else:
            y = self._by_stages(rows, slots)
        return None if y is None else y.view(*x.shape[:-1], y.shape[-1])

    def forward(self, x: Tensor, *, state_indices: Tensor | None = None) -> Tensor:
        """Map the next elements ``(*batch_shape, length, d_model)`` to ``(*batch_shape, length, d_output)``.

        The channels come last, whatever the layout of the module. With ``state_indices`` as in ``step``, x is
        ``(B, length, d_model)``.
        """
        self._check_fresh()
        self._check_input(x, ("length",), state_indices)
        rows = x.detach().reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
        slots = None if state_indices is None else state_indices.to(torch.int64)
        y = self._by_stages(rows, slots)
        return y.view(*x.shape[:-2], *y.shape[-2:])

    def _capture(self) -> Capture | None:
        """What captures a step; None where steps are taken as they come."""
        return CAPTURES.get(self.device.type) if self._graph and not self._carried else None

    @torch.no_grad()
    def _step_graph(self, capture: Capture, x: Tensor, slots: Tensor | None) -> StepGraph:
        """The graph for such a step: with slots, one serves all numbers of rows up to a power of two."""
        rows = len(x) if slots is None else 1 << (len(x) - 1).bit_length()
        key = rows, slots is not None, choose("ssm_step_", None, x)
        if key not in self._graphs:
            self._graphs[key] = StepGraph(
                self._by_stages,
                rows,
                x.shape[-1],
                self.dtype,
                self.device,
                slots is not None,
                self._states,
                capture,
            )
        return self._graphs[key]

    def _check_input(self, x: Tensor, position: tuple[str, ...], state_indices: Tensor | None) -> None:
        checks.tensors(x=x)
        batch: list[tuple[str, Any]] = [(str(size), size) for size in self.batch_shape]
        if state_indices is not None:
            if len(batch) != 1 or self._carried:
                raise ValueError(
                    "state_indices needs a batch_shape (slots,) and a module that says its stages, got batch_shape="
                    f"{self.batch_shape} and {type(self.module).__name__}"
                )
            checks.tensors(x=x, state_indices=state_indices)
            checks.shape("state_indices", state_indices, (("B", None),))
            checks.integers("state_indices", state_indices, -1, self.batch_shape[0] - 1)
            batch = [("B", len(state_indices))]
        positions = [(name, None) for name in position]
        checks.shape("x", x, [*batch, *positions, ("d_model", self.module.d_model)])
        checks.dtype("x", x, (self.dtype,))
        if x.device != self.device:
            raise ValueError(f"x is on {x.device}, but the stepper on {self.device}")

    @torch.no_grad()
    def _by_stages(self, x: Any, slots: Tensor | None) -> Any:
        """Run one step (rows, channels) or a block (rows, length, channels) through the stages."""
        kept: list[Tensor] = []
        recurrences = iter(zip(self._systems, self._states, strict=True))
        carried = 0
        for stage in self._stages:
            if isinstance(stage, Save):
                kept.append(x)
            elif isinstance(stage, Residual):
                x = stage.alpha * kept.pop() + stage.beta * x
            elif isinstance(stage, Join):
                x = stage.function(kept.pop(), x)
            elif isinstance(stage, Recurrence):
                system, state = next(recurrences)
                x = (system.step if x.dim() == 2 else system.block)(state, x, slots)
            elif isinstance(stage, Whole):
                x, self._carried[carried] = self._whole(stage, x, self._carried[carried])
                if x is None:
                    return None
                carried += 1
            else:
                x = stage.function(x) if isinstance(stage, Pointwise) else stage(x)
        return x if slots is None else x.masked_fill(slots.view(-1, *(1,) * (x.dim() - 1)) < 0, 0)

    def _whole(self, stage: Whole, x: Tensor, state: Any) -> tuple[Any, Any]:
        """One step or a block by the module's own steps, of which some may give None."""
        outputs = []
        for one in [x] if x.dim() == 2 else x.unbind(1):
            y, state = stage.module.step(one.reshape(*self.batch_shape, -1), state, **stage.arguments)
            if y is not None:
                outputs.append(y.reshape(len(x), -1))
        if x.dim() == 2:
            return (outputs[0] if outputs else None), state
        return torch.stack(outputs, 1) if outputs else x.new_empty(len(x), 0, stage.module.d_output), state


def _reads_parameters_only(stage: Stage) -> bool:
    """Whether what the stage does cannot depend on anything else of the module, such as its training mode."""
    return not isinstance(stage, (Whole, Join)) and not (
        isinstance(stage, Pointwise) and stage.module is None
    )


class _Prepared:
    """The tensors of one recurrence."""

    def __init__(self, stage: Recurrence) -> None:
        self.system = stage.system
        self.parameters = stage.system.step_parameters()
        self.shape = self.parameters[0].shape  # of the state of a sequence
        self.d = stage.d.to(self.parameters[0].dtype.to_real())
        self._matrices: ChunkMatrices | None = None

    def low_rank(self) -> tuple[Tensor, ...]:
        """Parameters of ``ops.dplr_step``, of rank 0 for a diagonal system."""
        a, *pq, b, c = self.parameters
        return (a, *(pq or 2 * [a.new_empty(0, *a.shape)]), b, c, self.d)

    def state(self, rows: int) -> Tensor:
        a = self.parameters[0]
        return torch.zeros(rows, *self.shape, dtype=a.dtype, device=a.device)

    def step(self, state: Tensor, x: Tensor, slots: Tensor | None) -> Tensor:
        op: Any = ops.ssm_step_ if len(self.parameters) == 3 else ops.dplr_step_
        return op(state, x, *self.parameters, self.d, state_indices=slots).flatten(-2)

    def block(self, state: Tensor, x: Tensor, slots: Tensor | None) -> Tensor:
        return in_place(self._convolved, state, x, slots)

    def _convolved(self, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._matrices is None:
            self._matrices = self.system.chunk_matrices(_CHUNK)
        y, final = ops.ssm_conv(x.mT, *self._matrices, d=self.d, initial_state=interleaved(state))
        return y.flatten(1, 2).mT, paired(final)


class _Watched:
    """Parameters and buffers of a module, to be compared later."""

    def __init__(self, module: nn.Module) -> None:
        places = [
            (held, name)
            for part in module.modules()
            for held in (part._parameters, part._buffers)
            for name, value in held.items()
            if value is not None
        ]
        self._held: list[Any] = [held for held, _ in places]
        self._names = [name for _, name in places]
        self._tensors: list[Tensor] = list(map(getitem, self._held, self._names))
        self._counted = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._versions = [tensor._version for tensor in self._counted]

    def changed(self) -> bool:
        same = all(map(is_, map(dict.get, self._held, self._names), self._tensors))
        return not same or [tensor._version for tensor in self._counted] != self._versions


_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.GELU: "gelu",
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
}


def _translate(module: nn.Module | None, program: Program) -> bool:
    """Add what an ordinary module does to the program; whether it could."""
    if isinstance(module, nn.Linear):
        program.linear(module.weight, module.bias)
    elif isinstance(module, nn.GLU):
        program.glu()
    elif (
        module is not None
        and type(module) in _ACTIVATIONS
        and getattr(module, "approximate", "none") == "none"
    ):
        program.activation(_ACTIVATIONS[type(module)])
    else:
        return False
    return True


def _tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors of a state, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from _tensors(part)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))


def _filled(tree: Any, values: Iterator[Tensor]) -> Any:
    """A state of the structure of this one, with other tensors."""
    if isinstance(tree, Tensor):
        return next(values)
    if isinstance(tree, (list, tuple)):
        return type(tree)(_filled(part, values) for part in tree)
    if isinstance(tree, dict):
        return {name: _filled(part, values) for name, part in tree.items()}
    return tree
