"""The SequenceModule contract: what every layer and model of this library offers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .arguments import keywords, sequences, values
from .arguments.values import checked
from .freezing import freeze
from .ssm import FrozenSystem
from .stepping.stages import Stage, Whole
from .stepping.stepper import Stepper
from .trees import mapped

if TYPE_CHECKING:
    from typing_extensions import Self


class _Width:
    """What stands for a width until it is set: an attribute of the instance then comes first, at no cost."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, module: Any, owner: type) -> int:
        raise NotImplementedError(f"{owner.__name__} must set self.{self._name} in its constructor")


class SequenceModule(nn.Module):
    """A map of sequences that can also be carried through time, after ESPnet's ``SequenceModule``.

    ``forward`` maps ``(batch, length, d_model)`` to ``(batch, length, d_output)``; a layer built with
    ``transposed=True`` has ``(batch, d_model, length)`` instead. ``step`` maps one time step,
    ``(batch, d_model)`` to ``(batch, d_output)``, whatever ``transposed`` is. By convention the first
    argument of the constructor is the width ``d_model``.

    The law: for a causal module ``forward(x, state)`` over a sequence equals ``forward`` over any split of it,
    carrying the state, and equals ``step`` over every element. A module that cannot obey it has ``causal = False``
    and raises when it is stepped or given a state.

    ``forward`` and ``step`` say in their signatures which keywords they take. Others raise TypeError, except those of
    ``arguments.keywords.SHARED``, which a layer without a use for them does not get to see. A method with ``**kwargs``
    gets all.

    Every ``forward`` takes ``lengths``, ``cu_seqlens``, ``reset``, ``attention_mask`` and ``states_at``, and every
    ``step`` ``reset``, which say which elements belong together (docs/sequences.md): what it does not name itself is
    brought to what it does (``arguments.sequences``).
    """

    #: Widths of input and output, which a module sets in its constructor.
    d_model: int = _Width()  # type: ignore[assignment]
    d_output: int = _Width()  # type: ignore[assignment]

    #: Whether an output depends on inputs up to its own time only, so that the module can be stepped.
    causal: bool = True

    #: Whether each element is mapped by itself.
    pointwise: ClassVar[bool] = False

    _taken: ClassVar[dict[str, frozenset[str] | None]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._taken = keywords.guard(cls)

    def takes(self, method: str = "forward") -> frozenset[str] | None:
        """The names of the arguments that ``forward``, ``step`` or ``stages`` takes; None: any keyword."""
        return self._taken[method]

    @property
    def channels_first(self) -> bool:
        """Whether ``forward`` takes ``(batch, d_model, length)``."""
        return bool(getattr(self, "transposed", False))

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Map a whole sequence; return the output and the state after it."""
        return x, None

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Map one time step ``(..., d_model) -> (..., d_output)``; return the output and the next state."""
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def setup_step(self, mode: str | None = None) -> None:
        """Nothing: a step needs no preparation. ESPnet and s4 call it on every part of a model before they step it."""

    def stages(self, **kwargs: Any) -> list[Stage]:
        """What ``step(..., **kwargs)`` does in eval mode, for a stepper; by default one stage, the step itself."""
        return [Whole(self, kwargs)]

    def stepper(
        self,
        batch_shape: Sequence[int] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> Stepper:
        """The module made ready to run through time, with a state of its own: see ``Stepper``."""
        return Stepper(self, batch_shape, device, dtype, **kwargs)

    def freeze(self, rate: float = 1.0) -> Self:
        """A copy for inference, with systems and chunk matrices as constants and real states: see ``freeze``."""
        return freeze(self, rate)

    def freeze_here(self, rate: float) -> None:
        """Part of ``freeze``: replace what parameters have to be discretised for; nothing, where nothing has.

        A layer that takes a ``rate`` and does not say how it is frozen counts elements, and refuses another than 1.
        """
        if "rate" in (type(self)._taken["forward"] or ()):
            values.unit_rate(self, rate)

    def train(self, mode: bool = True) -> Self:
        if mode and any(isinstance(part, FrozenSystem) for part in self.modules()):
            raise RuntimeError(
                f"this {type(self).__name__} is frozen: its systems are constants, and it cannot be trained; train the "
                "module that it was made of"
            )
        return super().train(mode)

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Any:
        """The state before the first element, for a batch of the given shape; None if there is no state."""
        return None

    def awaited_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Any:
        """What ``Awaited`` stands for where sequences are split into parts: of a layer that looks ahead, more."""
        return self.default_state(*batch_shape, device=device)

    def restart_state(self, state: Any, fresh: Tensor) -> Any:
        """The state with rows at the start, where ``fresh`` ``(*batch_shape)`` says so."""
        start = self.default_state(*fresh.shape, device=fresh.device)
        return mapped(functools.partial(sequences.restarted, fresh), start, state)

    def spread_state(self, state: Any, at: Tensor, count: int) -> Any:
        """The state of so many sequences: at the places ``at`` ``(B,)`` those of ``state``, of B; the others start."""
        start = self.default_state(count, device=at.device)
        return mapped(functools.partial(sequences.placed, at), start, state)

    def unsplit_reason(self) -> str | None:
        """Why sequences cannot be split into parts that several processes hold; None if they can.

        A module that can be split takes a state that is ``Awaited``, or hands it to those of its parts that do.
        """
        return None if self.pointwise else f"a {type(self).__name__} does not say how its state passes on"

    @property
    def state_to_tensor(self) -> Callable[[Any], Tensor | None]:
        """A function from a state to one tensor ``(*batch_shape, d_state)``; it returns None if there is no state."""
        return lambda _: None

    @property
    def d_state(self) -> int | None:
        """Width of what ``state_to_tensor`` gives; None if there is no state."""
        return None


SequenceModule._taken = keywords.guard(SequenceModule)


def TransposedModule(module: type[SequenceModule]) -> type[SequenceModule]:  # noqa: N802 (ESPnet's name)
    """Class decorator: add the keyword ``transposed=False`` to a module written for ``(batch, length, d_model)``.

    With ``transposed=True`` ``forward`` takes and returns ``(batch, width, length)``. The next state is None when no
    state was given. ``step`` and ``default_state`` are untouched. Instances pickle like those of the bare class.
    """

    @functools.wraps(module, updated=())
    class Transposed(module):  # type: ignore[misc, valid-type]
        only_turns = True  # what its class says of its step, see ``stepping.stages.holds``, holds

        def __init__(self, *args: Any, transposed: bool = False, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.transposed = transposed

        @keywords.named_as(module.forward)
        def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
            y, next_state = super().forward(x.mT if self.transposed else x, state, **kwargs)
            return (y.mT if self.transposed else y), (None if state is None else next_state)

    Transposed._taken = module._taken
    return Transposed


class SequenceIdentity(SequenceModule):
    """The map that returns its input (the same tensor object) and passes the state through."""

    pointwise = True

    @checked
    def __init__(
        self, d_model: int, dropout: float = 0.0, tie_dropout: bool = False, transposed: bool = False
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.d_output = d_model

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return x, state

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return x, state

    def stages(self) -> list[Stage]:  # type: ignore[override]
        return []
