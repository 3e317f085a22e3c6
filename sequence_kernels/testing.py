"""The law of a SequenceModule as a function, for the tests of layers that are not in this library."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor

from .module import SequenceModule
from .trees import mapped, tensors_of

#: What is checked, in this order, as ``check_sequence_module`` names it.
PARTS = (
    "interface",
    "dtypes",
    "state",
    "aliasing",
    "splits",
    "steps",
    "gradients",
    "transposed",
    "copies",
    "stepper",
    "compile",
)

_LENGTH = 23
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}


class LawError(AssertionError):
    """A module does not obey the law: which part of it, what was found, and the usual cause."""


def check_sequence_module(
    factory: Callable[..., SequenceModule],
    *args: Any,
    batch: int = 2,
    length: int = _LENGTH,
    skip: Sequence[str] = (),
    compiled: bool = False,
    **kwargs: Any,
) -> None:
    """Check that ``factory(*args, **kwargs)`` makes a module that obeys the contract of ``SequenceModule``.

    In float32 and float64: ``forward`` over a sequence equals ``forward`` over any split of it with the state carried,
    and ``step`` over every element; states have the shape of the batch, are neither changed nor shared; gradients flow
    through a carried state; a class that takes ``transposed`` turns its input alone; copies and pickles compute the
    same; a stepper does what ``step`` does.

    Args:
        factory: a class or a function. It is called several times, each time with the same seed.
        batch, length: of the sequences.
        skip: parts to leave out, of ``sequence_kernels.testing.PARTS``.
        compiled: also compares ``torch.compile(module, fullgraph=True)`` with the module, which takes a minute.

    Raises LawError, an AssertionError, which names the part that failed, the numbers, and what usually causes that.
    """
    unknown = sorted(set(skip) - set(PARTS))
    if unknown:
        raise ValueError(f"skip must be of {', '.join(PARTS)}, got {unknown}")
    check = _Check(
        lambda **more: factory(*args, **kwargs, **more), batch, length, getattr(factory, "__name__", "")
    )
    for part in PARTS:
        if part not in skip and (part != "compile" or compiled):
            getattr(check, part)()


class _Check:
    def __init__(self, factory: Callable[..., SequenceModule], batch: int, length: int, name: str) -> None:
        self._factory, self._batch, self._length, self._name = factory, batch, length, name

    def _make(self, dtype: torch.dtype = torch.float64, **more: Any) -> SequenceModule:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module: Any = self._factory(**more)
        if not isinstance(module, SequenceModule):
            self._fail(
                "interface", f"it is a {type(module).__name__}", "a class that is not a SequenceModule"
            )
        self._name = type(module).__name__
        return module.to(dtype).eval()

    def _x(self, module: SequenceModule, dtype: torch.dtype = torch.float64) -> Tensor:
        """(batch, length, d_model)."""
        generator = torch.Generator().manual_seed(1)
        shape = self._batch, self._length, module.d_model
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    # --- the parts

    def interface(self) -> None:
        module = self._make()
        self._name = type(module).__name__
        if not isinstance(module, SequenceModule):
            self._fail(
                "interface", f"it is a {type(module).__name__}", "a class that is not a SequenceModule"
            )
        for width in ("d_model", "d_output"):
            with self._calls("interface", f"reading {width}", "a constructor that does not set it"):
                getattr(module, width)
        x = self._x(module)
        with self._calls(
            "interface", "forward(x) without a state", "a state that is taken to be there always"
        ):
            output = module(x.mT if module.channels_first else x)
        if not isinstance(output, tuple) or len(output) != 2:
            self._fail(
                "interface",
                f"forward returned a {type(output).__name__} instead of a pair",
                "a forward that returns y; it returns (y, state), and (y, None) where there is no state",
            )
        y = output[0].mT if module.channels_first else output[0]
        wanted = (self._batch, self._length, module.d_output)
        if y.shape != wanted:
            cause = "d_output that is not the width of the output"
            if tuple(y.shape) == (self._batch, module.d_output, self._length):
                cause = (
                    "an output with the channels before the length; put the layout last, or set transposed"
                )
            self._fail("interface", f"forward gave {tuple(y.shape)} instead of {wanted}", cause)

    def dtypes(self) -> None:
        for dtype in _TOLERANCES:
            module = self._make(dtype)
            with self._calls(
                "dtypes", f"forward in {dtype}", "a tensor that is made in float32 whatever x is"
            ):
                y, _ = _forward(module, self._x(module, dtype))
            if y.dtype != dtype:
                self._fail(
                    "dtypes",
                    f"{dtype} in gives {y.dtype} out",
                    "a tensor that is neither parameter nor buffer",
                )

    def state(self) -> None:
        module = self._make()
        if not module.causal:
            return
        for shape in ((), (3,), (2, 3)):
            with self._calls(
                "state", f"default_state{shape}", "default_state that does not take *batch_shape"
            ):
                state = module.default_state(*shape, device="cpu")
            found = [tuple(t.shape) for t in tensors_of(state)]
            if any(leaf[: len(shape)] != shape for leaf in found):
                self._fail(
                    "state",
                    f"default_state{shape} has tensors of shapes {found}",
                    "a state whose first dimensions are not the batch's",
                )
            x = torch.randn(*shape, module.d_model, dtype=torch.float64)
            with self._calls("state", f"step of x {tuple(x.shape)}", "a step for one batch dimension alone"):
                y, after = module.step(x, state)
            if y is None or y.shape != (*shape, module.d_output):
                self._fail(
                    "state",
                    f"a step of {tuple(x.shape)} gave {None if y is None else tuple(y.shape)}",
                    "an output with a length, or of another width than d_output",
                )
            if len(list(tensors_of(after))) != len(found):
                self._fail(
                    "state", "a step gives a state of another structure", "a part of the state left out"
                )
        with self._calls("state", "forward with a state of its own", "a forward that ignores or misreads it"):
            _forward(module, self._x(module), module.default_state(self._batch))

    def aliasing(self) -> None:
        module = self._make()
        if not module.causal:
            return
        x = self._x(module)
        _, state = _forward(module, x, module.default_state(self._batch))
        _, other = _forward(module, x, module.default_state(self._batch))
        shared = {t.data_ptr() for t in tensors_of(state) if t.numel()}
        if any(t.data_ptr() in shared for t in tensors_of(other) if t.numel()):
            self._fail(
                "aliasing", "two calls gave states in one memory", "a state that is a buffer of the module"
            )
        for name, call in (
            ("step", lambda s: module.step(x[:, 0], s)),
            ("forward", lambda s: _forward(module, x[:, :3], s)),
        ):
            given = mapped(lambda t: t.detach().clone(), state)
            before = [t.clone() for t in tensors_of(given)]
            with torch.no_grad():
                y, after = call(given)
                if not all(torch.equal(a, b) for a, b in zip(before, tensors_of(given), strict=True)):
                    self._fail(
                        "aliasing",
                        f"{name} changed the state that it was given",
                        "a write in place (+=, copy_, state[...] = ...); make a new tensor",
                    )
                held = [t.clone() for t in tensors_of(after)]
                y.zero_()
                if not all(torch.equal(a, b) for a, b in zip(held, tensors_of(after), strict=True)):
                    self._fail(
                        "aliasing",
                        f"the state of {name} shares memory with its output",
                        "a state that is y itself or a view of it; y.clone() is another tensor",
                    )

    def splits(self) -> None:
        for dtype in _TOLERANCES:
            module = self._make(dtype)
            if not module.causal:
                return
            x = self._x(module, dtype)
            whole, last = _forward(module, x, module.default_state(self._batch))
            alone, nothing = _forward(module, x)
            self._same(
                "splits", "forward without a state", alone, whole, dtype, "a start that is not default_state"
            )
            if nothing is not None:
                self._fail(
                    "splits",
                    "forward without a state returned one",
                    "a next state that is not None where none was given; @TransposedModule sees to that",
                )
            for cuts in ((self._length // 2,), (1, 2, self._length - 1), (0, self._length)):
                state, pieces = module.default_state(self._batch), []
                for start, stop in zip((0, *cuts), (*cuts, self._length), strict=True):
                    with self._calls(
                        "splits", f"forward of {stop - start} elements", "an edge at one element or none"
                    ):
                        piece, state = _forward(module, x[:, start:stop], state)
                    pieces.append(piece)
                cause = "a state that lacks something of the past, or an output that looks ahead"
                self._same("splits", f"forward cut at {cuts}", torch.cat(pieces, 1), whole, dtype, cause)
                self._same("splits", f"the state of forward cut at {cuts}", state, last, dtype, cause)

    def steps(self) -> None:
        for dtype in _TOLERANCES:
            module = self._make(dtype)
            if not module.causal:
                return
            x = self._x(module, dtype)
            whole, last = _forward(module, x, module.default_state(self._batch))
            outputs, state = _steps(module, x, module.default_state(self._batch))
            cause = "a step that is not forward's recurrence, or that does not go on from its state"
            self._same("steps", "step over every element", outputs, whole, dtype, cause)
            self._same("steps", "the state after all steps", state, last, dtype, cause)

    def gradients(self) -> None:
        module = self._make()
        x = self._x(module)
        names = [name for name, p in module.named_parameters() if p.requires_grad]
        leaves = [p for p in module.parameters() if p.requires_grad]
        weight = torch.randn(
            self._batch,
            self._length,
            module.d_output,
            dtype=x.dtype,
            generator=torch.Generator().manual_seed(2),
        )

        def found(cuts: tuple[int, ...]) -> list[Tensor]:
            given = x.clone().requires_grad_()
            state, pieces = (module.default_state(self._batch) if cuts else None), []
            for start, stop in zip((0, *cuts), (*cuts, self._length), strict=True):
                piece, state = _forward(module, given[:, start:stop], state)
                pieces.append(piece)
            loss = (torch.cat(pieces, 1) * weight).sum()
            with self._calls("gradients", "backward", "a detach, .data or a number taken out of a tensor"):
                return list(torch.autograd.grad(loss, [given, *leaves], allow_unused=True))

        whole = found(())
        for name, gradient in zip(("x", *names), whole, strict=True):
            if gradient is None:
                self._fail(
                    "gradients", f"{name} has none", "a parameter that nothing uses, or a detach before it"
                )
            elif not bool(gradient.isfinite().all()):
                self._fail(
                    "gradients", f"that of {name} is not finite", "a square root, log or division at zero"
                )
        if module.causal:
            for name, a, b in zip(("x", *names), found((self._length // 3,)), whole, strict=True):
                self._same(
                    "gradients",
                    f"that of {name} through a carried state",
                    a,
                    b,
                    torch.float64,
                    "a state that is detached",
                )

    def transposed(self) -> None:
        module = self._make()
        try:
            turned = self._make(transposed=True)
        except TypeError as error:
            self._fail(
                "transposed",
                f"with transposed=True, which models hand to their layers, the constructor raised {error}",
                "a class without the decorator @sequence_kernels.TransposedModule, or a factory without **kwargs",
            )
        turned.load_state_dict(module.state_dict())
        x = self._x(module)
        y, _ = _forward(module, x)
        with self._calls(
            "transposed", "forward of (batch, d_model, length)", "a transposed that is not heeded"
        ):
            other, _ = turned(x.mT)
        if other.mT.shape != y.shape:
            self._fail("transposed", f"it gives {tuple(other.shape)}", "a transposed that is not heeded")
        self._same("transposed", "forward", other.mT, y, torch.float64, "a transposed that turns x and not y")

    def copies(self) -> None:
        module = self._make()
        x = self._x(module)
        y, _ = _forward(module, x)
        fresh = self._make()
        with torch.no_grad():
            for parameter in fresh.parameters():
                parameter.add_(1.0)
        fresh.load_state_dict(module.state_dict())
        self._same(
            "copies",
            "load_state_dict",
            _forward(fresh, x)[0],
            y,
            torch.float64,
            "a tensor that is no buffer",
        )
        self._same("copies", "deepcopy", _forward(copy.deepcopy(module), x)[0], y, torch.float64, "a cache")
        with self._calls("copies", "pickle", "a lambda or a local class held by the module"):
            again = pickle.loads(pickle.dumps(module))
        self._same("copies", "pickle", _forward(again, x)[0], y, torch.float64, "a cache")

    def stepper(self) -> None:
        module = self._make(torch.float32)
        if not module.causal:
            return
        x = self._x(module, torch.float32)
        wanted, last = _steps(module, x, module.default_state(self._batch))
        with self._calls("stepper", "module.stepper", "stages() that do not fit the module"):
            stepper = module.stepper((self._batch,))
            given = torch.stack([stepper.step(one) for one in x.unbind(1)], 1)
        cause = "stages() that say something else than step does"
        self._same("stepper", "its steps", given, wanted, torch.float32, cause)
        self._same("stepper", "its state", stepper.state, last, torch.float32, cause)

    def compile(self) -> None:
        module = self._make(torch.float32)
        x = self._x(module, torch.float32)
        state = module.default_state(self._batch) if module.causal else None
        wanted = _forward(module, x, state)
        with self._calls("compile", "torch.compile(fullgraph=True)", "a branch on the numbers in a tensor"):
            given = _forward(torch.compile(module, fullgraph=True), x, state, module.channels_first)
        self._same("compile", "the compiled forward", given, wanted, torch.float32, "a side effect")

    # --- what they say

    def _same(self, part: str, what: str, given: Any, wanted: Any, dtype: torch.dtype, cause: str) -> None:
        a, b = list(tensors_of(given)), list(tensors_of(wanted))
        if [t.shape for t in a] != [t.shape for t in b]:
            shapes = [[tuple(t.shape) for t in side] for side in (a, b)]
            self._fail(part, f"{what} has shapes {shapes[0]} instead of {shapes[1]}", cause)
        for left, right in zip(a, b, strict=True):
            left, right = left.detach(), right.detach()
            if left.numel() == 0 or torch.equal(left, right):
                continue
            scale = max(1e-30, float(right.abs().max())) if right.dtype != torch.bool else 1.0
            error = float((left.to(right.dtype) - right).abs().max()) if right.dtype != torch.bool else 1.0
            if not error <= _TOLERANCES[dtype] * scale:
                self._fail(
                    part,
                    f"{what} in {dtype} differs by {error / scale:.1e} of the largest number, "
                    f"more than {_TOLERANCES[dtype]:.0e}",
                    cause,
                )

    @contextmanager
    def _calls(self, part: str, what: str, cause: str) -> Iterator[None]:
        try:
            yield
        except LawError:
            raise
        except Exception as error:
            raise LawError(
                self._message(part, f"{what} raised {type(error).__name__}: {error}", cause)
            ) from error

    def _fail(self, part: str, what: str, cause: str) -> NoReturn:
        raise LawError(self._message(part, what, cause))

    def _message(self, part: str, what: str, cause: str) -> str:
        return f"{self._name}, {part}: {what}. The usual cause: {cause}."


def _forward(
    module: Any, x: Tensor, state: Any = None, channels_first: bool | None = None
) -> tuple[Tensor, Any]:
    """Forward on (batch, length, width) whatever the layout of the module."""
    turned = module.channels_first if channels_first is None else channels_first
    y, state = module(x.mT if turned else x, state)
    return (y.mT if turned else y), state


def _steps(module: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    outputs = []
    with torch.no_grad():
        for one in x.unbind(1):
            y, state = module.step(one, state)
            outputs.append(y)
    return torch.stack(outputs, 1), state
