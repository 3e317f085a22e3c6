"""Steppers: a module made ready to run through time, one step or one block after another."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ..arguments import keywords
from ..freezing import copied, freeze
from ..ops import checks
from ..ops.dispatch import choose
from ..trees import tensors_of, with_tensors
from .graphs import CAPTURES, Capture, StepGraph
from .parts import serve_parts
from .program import Program
from .recorded import Derived, UnknownStepError, derived, holds_layers
from .saved import save
from .stages import Carrier, Passage, Stage, Steppable, Whole, stages_of
from .translation import translated
from .watched import Watched


class Stepper:
    """A causal module ready to run through time: its parameters discretised once, its state kept here.

    Made by ``module.stepper(batch_shape, device, dtype)``. It computes what the module's ``step`` and ``forward``
    compute in eval mode, and steps and blocks may follow each other in any order. It raises RuntimeError when the
    parameters of the module have changed since it was made (see ``stale``). There are no gradients.

    Args:
        module: any causal SequenceModule.
        batch_shape: the shape of the batch of sequences.
        device, dtype: where and in which precision to compute; those of the module by default.
        state_dtype: float64, or float32 for half precision, keeps the states in that precision, and computes in it all
            that is between x and y, which stay in ``dtype``. A float32 state loses its last digit at every step, a
            float64 one nothing that float32 shows.
        graph: False takes steps on CUDA without a CUDA graph.
        derive: False calls the ``step`` of a module that does not say its stages, as it is. Else, on a CPU, one step is
            recorded and put into stages; it must do the same at all times (docs/steppers.md).
        **arguments: what the module's ``step`` takes besides, such as ``rate``.

    On CPU, in float32 and float64, a stack whose parts the C++ interpreter knows (``stepping.program``) takes a step in
    one call. On CUDA the first step, and the first with each power of two of rows in ``state_indices``, is captured in
    a CUDA graph, which later ones replay; it keeps the ops' backend of that moment. A module that does not say its
    stages, and blocks, go through their stages one by one.
    """

    def __init__(
        self,
        module: Steppable,
        batch_shape: Sequence[int] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        state_dtype: torch.dtype | None = None,
        graph: bool = True,
        derive: bool = True,
        **arguments: Any,
    ) -> None:
        if not module.causal:
            raise ValueError(f"a {type(module).__name__} that is not causal cannot be stepped")
        taken = module.takes("step")
        if taken is not None:
            known = (taken | keywords.named(Stepper.__init__)) - {"x", "state", "module"}
            keywords.refuse(f"{type(module).__name__}.stepper", arguments, known)
        self.module = module
        self.batch_shape = tuple(batch_shape)
        self._target: dict[str, Any] = {"device": device, "dtype": state_dtype or dtype}
        self._dtype, self._state_dtype = dtype, state_dtype
        self._arguments = arguments
        self._graph = graph
        self._derive_stages = derive
        self._given = ("_given", *vars(self))  # what it is made from: a copy is made from the same
        self._prepare()
        self._allocate()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: what it was made from, and its state. A stale one has stale copies."""
        if "_copied" in vars(self):
            return vars(self)
        given = {name: vars(self)[name] for name in self._given}
        return given | {"_copied": {"state": self.state, "stale": self.stale}}

    def __getattr__(self, name: str) -> Any:
        # What a copy lacks is prepared when it is first used: while copies are made its module may be incomplete.
        if name.startswith("__") or "_copied" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        copied = vars(self).pop("_copied")
        self._prepare()
        self._allocate()
        self.state = copied["state"]
        if copied["stale"]:
            self._watched.note_change()
        return getattr(self, name)

    @torch.inference_mode(False)  # what is made here serves later calls too, in inference mode or not
    @torch.no_grad()
    def _prepare(self) -> None:
        module = cast("nn.Module", self.module)
        self._watched = Watched(module)
        nothing = torch.empty(0, dtype=self._dtype, device=self._target["device"])
        constants = (
            buffer for buffer in module.buffers() if buffer.is_floating_point()
        )  # of a frozen module
        first = next(itertools.chain(module.parameters(), constants), nothing)
        moved = first.to(**self._target)
        self.device, self.dtype = moved.device, self._dtype or first.dtype
        self._inner = self.dtype if self._state_dtype is None else _wider(self._state_dtype, self.dtype)
        as_it_is = moved is first and not _computes_parameters(module)
        self._source = self.module
        self._stages = stages_of(self.module, **self._arguments) if as_it_is else []
        if not as_it_is or not all(stage.fixed for stage in self._stages):
            self._source = cast("Steppable", copied(module, {id(self): self}).to(**self._target).eval())
            self._stages = stages_of(self._source, **self._arguments)
        self._carriers = [stage for stage in self._stages if isinstance(stage, Carrier)]
        if self._wholes():
            self._derive()
        program = self._translated()
        self._program = program if isinstance(program, Program) else None
        self._unserved = None if isinstance(program, Program) else program

    def _derive(self) -> None:
        """Put a module that does not say its stages into stages, or at least its layers into programs."""
        if not self._by_interpreter():
            return
        stages: list[Stage] = []
        carriers: list[Carrier] = []
        for stage in self._stages:
            found = self._derived(stage) if isinstance(stage, Whole) and holds_layers(stage.module) else None
            stages += [stage] if found is None else found.stages
            carriers += found.carriers if found is not None else [stage] if isinstance(stage, Carrier) else []
        self._stages, self._carriers = stages, carriers

    def _derived(self, whole: Whole) -> Derived | None:
        if self._derive_stages:
            try:
                return derived(whole.module, whole.arguments)
            except UnknownStepError as error:
                warnings.warn(
                    f"the steps of a {type(whole.module).__name__} run in Python, where each of the library's layers "
                    f"takes one call; they cannot be one call: {error}; docs/steppers.md says what can, and "
                    "derive=False keeps this quiet",
                    stacklevel=8,
                )
        serve_parts(whole.module, self._inner)
        return None

    def _translated(self) -> Program | str:
        """The stages as a program of the C++ interpreter; or why it cannot serve them."""
        if self._inner not in checks.REAL:
            return f"it computes in {self._inner}"
        if (backend := self._backend()) != "cpu":
            return f"on {self.device} its backend is {backend!r}"
        return translated(self._stages, self.module.d_model, self._inner)

    def _backend(self) -> str:
        return choose("ssm_step_", None, torch.empty(0, dtype=self._inner, device=self.device))

    def _by_interpreter(self) -> bool:
        """Whether programs can run here."""
        return self._inner in checks.REAL and self._backend() == "cpu"

    @torch.inference_mode(False)
    @torch.no_grad()
    def _allocate(self) -> None:
        """Make the state before the first element."""
        self._empty = self._source.default_state(*self.batch_shape, device=self.device)
        self._flat: Tensor | None = None
        if self._program is not None:
            self._flat = torch.zeros(math.prod(self.batch_shape), self._program.state_size, dtype=self._inner)
        for carrier in self._carriers:
            carrier.allocate(self.batch_shape, self.device, self._flat)
        self._graphs: dict[tuple[int, bool, str], StepGraph] = {}

    @property
    def stale(self) -> bool:
        """Whether the parameters, buffers or parts of the module have changed since they were read: a thorough look.

        Steps and blocks look too, and refuse to go on. Nearly every change is found at once: writes in place and by
        optimizers, tensors and parts that were replaced. Some they find within 64 calls, ``stale`` at once:
        ``parameter.data = other`` (``vector_to_parameters``, ``module.to``), writes to parameters made in inference
        mode, new hooks, and parts whose class, ``forward`` or ``step`` was replaced. Never found are writes into the
        memory of ``parameter.data`` or ``parameter.numpy()``, or by replays of a CUDA graph; attributes that are no
        tensors, such as ``norm.eps``; and hooks of all modules (``register_module_forward_hook``) made since.
        """
        return self._watched.thoroughly_changed()

    def refresh(self) -> None:
        """Read the parameters of the module as they are now. The state stays."""
        state = self.state
        self._prepare()
        self._allocate()
        self.state = state

    def _check_fresh(self) -> None:
        if self._watched.changed():
            raise RuntimeError(
                "the parameters or parts of the module have changed since this stepper read them; call refresh()"
            )

    def reset(self, rows: Tensor | None = None) -> None:
        """Go back to the state before the first element, in the rows where ``rows`` ``(*batch_shape)`` says so, or all.

        Raises ValueError for some rows of a module whose state grows, as attention's.
        """
        if rows is None:
            self.state = self._empty
            return
        checks.tensors(rows=rows)
        checks.shape("rows", rows, [("", size) for size in self.batch_shape])
        self.state = cast("Any", self._source).restart_state(self.state, rows.to(self.device) != 0)

    @property
    def state(self) -> Any:
        """A copy of the state, as the module's ``step`` and ``forward`` take it. Assign one to go on from it.

        Raises ValueError for one of another structure or shape than the module's ``default_state(*batch_shape)``. A
        module that does not say its stages may have a state that grows; of that only the batch is compared.
        """
        leaves = (leaf.clone() for carrier in self._carriers for leaf in carrier.leaves())
        return with_tensors(self._empty, leaves)

    @state.setter
    @torch.inference_mode(False)
    @torch.no_grad()
    def state(self, state: Any) -> None:
        given = list(tensors_of(state))
        batch = len(self.batch_shape)
        wanted = [
            (leaf.dim(), leaf.shape if carrier.shaped else leaf.shape[:batch])
            for carrier in self._carriers
            for leaf in carrier.leaves()
        ]
        if len(given) != len(wanted) or any(
            value.dim() != dims or value.shape[: len(shape)] != shape
            for value, (dims, shape) in zip(given, wanted, strict=True)
        ):
            shapes = [tuple(t.shape) for t in tensors_of(self._empty)]
            raise ValueError(
                f"state must hold tensors of shapes {shapes}, as default_state{self.batch_shape} does, "
                f"got {[tuple(t.shape) for t in given]}"
            )
        values = iter(given)
        for carrier in self._carriers:
            carrier.assign(values)

    def step(self, x: Tensor, *, state_indices: Tensor | None = None) -> Any:
        """Map one time step ``(*batch_shape, d_model)`` to ``(*batch_shape, d_output)``, or None as the module does.

        ``state_indices``: int32 or int64 ``(B,)``, to step some of many streams. ``batch_shape`` is then
        ``(slots,)``, x is ``(B, d_model)``, and its row i drives the state ``state_indices[i]``. -1 marks an idle row:
        its output is 0. The state of a slot that no row names keeps its bits; no slot may be named twice.
        """
        self._check_fresh()
        self._check_input(x, (), state_indices)
        rows = self._widened(x.detach().reshape(-1, x.shape[-1]))
        state_indices = None if state_indices is None else state_indices.to(torch.int64)
        if self._program is not None and self._flat is not None:
            y = self._program.run(self._flat, rows, state_indices)
        elif (capture := self._capture()) is not None and len(rows) > 0:
            y = self._step_graph(capture, rows, state_indices)(rows, state_indices)
        else:
            y = self._by_stages(rows, state_indices)
        return None if y is None else self._narrowed(y.view(*x.shape[:-1], y.shape[-1]))

    def forward(self, x: Tensor, *, state_indices: Tensor | None = None) -> Tensor:
        """Map the next elements ``(*batch_shape, length, d_model)`` to ``(*batch_shape, length, d_output)``.

        The channels come last, whatever the layout of the module. With ``state_indices`` as in ``step``, x is
        ``(B, length, d_model)``.
        """
        self._check_fresh()
        self._check_input(x, ("length",), state_indices)
        rows = self._widened(x.detach().reshape(math.prod(x.shape[:-2]), *x.shape[-2:]))
        state_indices = None if state_indices is None else state_indices.to(torch.int64)
        y = self._by_stages(rows, state_indices)
        return self._narrowed(y.view(*x.shape[:-2], *y.shape[-2:]))

    def save(self, path: str | os.PathLike[str], *, weights: str = "float32") -> None:
        """Write a step as a file (.skp), which libsequence_stream runs without Python and torch: docs/c-library.md.

        Its rows are float32, and it computes as this stepper does, in float64 where that has ``state_dtype=float64``.
        The state is not part of it.

        Args:
            path: of the file.
            weights: "bfloat16" stores the weights of linear maps rounded to that, in half the bytes.

        Raises ValueError where a step does not run in one call of the C++ interpreter, or x is not float32.
        """
        self._check_fresh()
        if self.dtype is not torch.float32:
            raise ValueError(
                "a saved step takes and gives float32; make the stepper with dtype=torch.float32 (and "
                f"state_dtype=torch.float64 to compute in that), got dtype {self.dtype}"
            )
        if self._program is None:
            raise ValueError(
                f"only a step that the C++ interpreter runs in one call can be saved, and here {self._unserved}"
            )
        save(path, self._program, self.module.d_model, weights, self._embedding())

    def export(self, path: str | os.PathLike[str]) -> None:
        """Compile a step and a block of the module as it is now into a package (.pt2): see ``export.package``.

        The state is not part of it. Raises ValueError for a stepper of another precision than the module's, or one made
        with other arguments than ``rate``, and where ``export.package`` does.
        """
        from ..export.aoti import package

        self._check_fresh()
        first = next(cast("nn.Module", self.module).parameters(), None)
        if self._state_dtype is not None or (first is not None and first.dtype != self.dtype):
            raise ValueError(
                "a stepper is exported in the precision of the module: convert that, instead of dtype and state_dtype"
            )
        keywords.refuse(f"{type(self).__name__}.export", self._arguments, {"rate"})
        package(freeze(cast("nn.Module", self.module), **self._arguments), path, step=True)

    def _embedding(self) -> Tensor | None:
        """What makes x of tokens, (tokens, d_model)."""
        return None

    def _widened(self, x: Tensor) -> Tensor:
        return x if self._inner is self.dtype else x.to(self._inner)

    def _narrowed(self, y: Tensor) -> Tensor:
        return y if self._inner is self.dtype else y.to(self.dtype)

    def _wholes(self) -> bool:
        """Whether a part is stepped as it is, whatever that does."""
        return any(isinstance(carrier, Whole) for carrier in self._carriers)

    def _capture(self) -> Capture | None:
        """What captures a step; None where steps are taken as they come."""
        return CAPTURES.get(self.device.type) if self._graph and not self._wholes() else None

    @torch.inference_mode(False)
    @torch.no_grad()
    def _step_graph(self, capture: Capture, x: Tensor, state_indices: Tensor | None) -> StepGraph:
        """The graph for such a step: with state_indices, one serves all numbers of rows up to a power of two."""
        rows = len(x) if state_indices is None else 1 << (len(x) - 1).bit_length()
        key = rows, state_indices is not None, choose("ssm_step_", None, x)
        if key not in self._graphs:
            self._graphs[key] = StepGraph(
                self._by_stages,
                rows,
                x.shape[-1],
                self._inner,
                self.device,
                state_indices is not None,
                [carrier.state for carrier in self._carriers],
                capture,
            )
        return self._graphs[key]

    def _check_input(self, x: Tensor, position: tuple[str, ...], state_indices: Tensor | None) -> None:
        checks.tensors(x=x)
        batch: list[tuple[str, Any]] = [("", size) for size in self.batch_shape]
        if state_indices is not None:
            if len(batch) != 1 or self._wholes():
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
    def _by_stages(self, x: Any, state_indices: Tensor | None) -> Any:
        """Run one step (rows, channels) or a block (rows, length, channels) through the stages."""
        passage = Passage([], state_indices)
        for stage in self._stages:
            x = stage.run(x, passage)
            if x is None:
                return None
        return (
            x
            if state_indices is None
            else x.masked_fill(state_indices.view(-1, *(1,) * (x.dim() - 1)) < 0, 0)
        )


def _wider(state_dtype: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """``state_dtype``, if it holds all numbers of ``dtype``."""
    if state_dtype not in checks.REAL or torch.promote_types(state_dtype, dtype) != state_dtype:
        raise ValueError(
            f"state_dtype must be torch.float32 or torch.float64, and as wide as the dtype {dtype}, got {state_dtype}"
        )
    return state_dtype


def _computes_parameters(module: nn.Module) -> bool:
    """Whether reading a parameter calls a module of torch's, which may change its buffers in training mode."""
    return any(isinstance(part, ParametrizationList) for part in module.modules())
