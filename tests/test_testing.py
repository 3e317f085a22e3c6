"""The public law: it passes for layers of the library and names what is wrong with others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sequence_kernels import S4D, CausalConv, FeedForward, SequenceModule, TransposedModule
from sequence_kernels.testing import PARTS, LawError, check_sequence_module

WIDTH = 4


class Decay(SequenceModule):
    """``y_t = h_t = a h_(t-1) + x_t``, right in every part."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = self.d_output = d_model
        self.a = nn.Parameter(torch.rand(d_model))

    def default_state(self, *batch_shape: int, device: Any = None) -> Tensor:
        return torch.zeros(*batch_shape, self.d_model, dtype=self.a.dtype, device=device)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        h = self.default_state(len(x), device=x.device) if state is None else state
        outputs = [x[:, :0]]
        for one in x.unbind(1):
            h = self.a * h + one
            outputs.append(h.unsqueeze(1))
        return torch.cat(outputs, 1), h.clone()

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        h = self.a * (self.default_state(*x.shape[:-1]) if state is None else state) + x
        return h, h.clone()


@TransposedModule
class Right(Decay):
    pass


class NoTuple(Decay):
    def forward(self, x: Tensor, state: Any = None) -> Any:
        return super().forward(x, state)[0]


class Wide(Decay):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.d_output = d_model + 1


class Forgets(Decay):
    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return super().step(x, None)


class LooksAhead(Decay):
    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = super().forward(x, state)
        return y.flip(1).cumsum(1).flip(1), state


class InPlace(Decay):
    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        state = self.default_state(*x.shape[:-1]) if state is None else state
        state.mul_(self.a.detach()).add_(x)
        return state.clone(), state


class Aliasing(Decay):
    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        h, _ = super().step(x, state)
        return h, h


class Detached(Decay):
    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = super().forward(x, state)
        return y, state.detach()


class Unused(Decay):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.unused = nn.Parameter(torch.zeros(3))


class Single(Decay):
    def default_state(self, *batch_shape: int, device: Any = None) -> Tensor:
        return super().default_state(*batch_shape, device=device).float()

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = super().forward(x, state)
        return y.float(), state


@TransposedModule
class Constant(Decay):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.hidden = lambda: 1.0


class NoBatch(Decay):
    def default_state(self, *batch_shape: int, device: Any = None) -> Tensor:
        return torch.zeros(self.d_model, dtype=self.a.dtype)


class InPlaceEverywhere(InPlace):
    """Its forward goes step by step, and so changes what it was given before it is cut."""

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        state = self.default_state(*x.shape[:-2], device=x.device) if state is None else state
        outputs = []
        for element in x.unbind(-2):
            y, state = self.step(element, state)
            outputs.append(y)
        return torch.stack(outputs, -2) if outputs else x, state


class TurnsHalf(Decay):
    def __init__(self, d_model: int, transposed: bool = False) -> None:
        super().__init__(d_model)
        self.turned = transposed

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return super().forward(x.mT if self.turned else x, state)


class Stateful(Decay):
    """Gives a state though none was given."""


FAULTS = [
    (NoTuple, "interface: forward returned a Tensor instead of a pair.*returns y"),
    (Wide, r"interface: forward gave \(2, 23, 4\) instead of \(2, 23, 5\).*d_output"),
    (Single, "dtypes: torch.float64 in gives torch.float32 out"),
    (NoBatch, r"state: default_state\(3,\) has tensors of shapes \[\(4,\)\].*the batch's"),
    (TransposedModule(LooksAhead), "splits: forward cut at .* differs .*looks ahead"),
    (Stateful, "splits: forward without a state returned one.*TransposedModule"),
    (TransposedModule(Forgets), "steps: step over every element .* differs"),
    (TransposedModule(InPlace), "aliasing: step changed the state that it was given.*in place"),
    (TransposedModule(InPlaceEverywhere), "aliasing: step changed the state that it was given.*in place"),
    (TransposedModule(Aliasing), "aliasing: the state of step shares memory with its output"),
    (TransposedModule(Detached), "gradients: that of .* through a carried state .* differs .*detached"),
    (TransposedModule(Unused), "gradients: unused has none.*nothing uses"),
    (Constant, "copies: pickle raised .*lambda"),
]


@pytest.mark.parametrize(
    ("factory", "arguments"),
    [
        (Right, {}),
        (S4D, {"d_state": 4}),
        (CausalConv, {"kernel_size": 3}),
        (FeedForward, {}),
    ],
)
def test_layers_that_obey_it_pass(factory: Any, arguments: dict[str, Any]) -> None:
    check_sequence_module(factory, WIDTH, length=12, **arguments)


@pytest.mark.parametrize(("factory", "message"), FAULTS)
def test_what_is_wrong_is_named_with_its_usual_cause(factory: Any, message: str) -> None:
    with pytest.raises(LawError, match=f"{message}.*"):
        check_sequence_module(factory, WIDTH)


def test_a_class_without_transposed_is_told_of_the_decorator() -> None:
    class Bare(Decay):
        def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            y, after = super().forward(x, state)
            return y, None if state is None else after

    with pytest.raises(LawError, match=r"Bare, transposed: .*@sequence_kernels.TransposedModule"):
        check_sequence_module(Bare, WIDTH)
    check_sequence_module(Bare, WIDTH, skip=["transposed", "copies"])
    with pytest.raises(LawError, match=r"Linear, interface: it is a Linear.*SequenceModule"):
        check_sequence_module(nn.Linear, 2, 2)


def test_parts_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match=f"{PARTS[0]}.*got .'nothing'"):
        check_sequence_module(S4D, WIDTH, skip=["nothing"])


@pytest.mark.thorough
def test_compiled() -> None:
    check_sequence_module(
        S4D, WIDTH, d_state=4, compiled=True, skip=[part for part in PARTS if part != "compile"]
    )
