"""The contract of SequenceModule, TransposedModule and SequenceIdentity."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import SequenceIdentity, SequenceModule, TransposedModule


@TransposedModule
class Doubling(SequenceModule):
    """Twice the input; the state counts the elements."""

    def __init__(self, d_model: int, scale: float = 2.0) -> None:
        super().__init__()
        self.d_model = self.d_output = d_model
        self.scale = scale

    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        assert x.shape[-1] == self.d_model
        return self.scale * x * kwargs.get("gain", 1.0), (state or 0) + x.shape[-2]


def test_base_defaults() -> None:
    module = SequenceModule()
    x = torch.randn(2, 3, 4)
    assert module(x)[0] is x
    assert module(x)[1] is None
    assert module(x, state=5)[1] is None
    assert module.default_state(2) is None
    assert module.d_state is None
    assert module.state_to_tensor(3) is None
    assert module.causal
    with pytest.raises(NotImplementedError, match="no step"):
        module.step(x[:, 0])


@pytest.mark.parametrize("name", ["d_model", "d_output"])
def test_widths_must_be_set(name: str) -> None:
    module = SequenceModule()
    with pytest.raises(NotImplementedError, match=name):
        getattr(module, name)
    setattr(module, name, 7)
    assert getattr(module, name) == 7


def test_transposed_layouts_agree() -> None:
    x = torch.randn(2, 5, 3)
    plain, _ = Doubling(3)(x)
    turned, _ = Doubling(3, transposed=True)(x.mT)
    torch.testing.assert_close(turned, plain.mT, rtol=0, atol=0)


def test_transposed_passes_keywords_on() -> None:
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(Doubling(3, transposed=True)(x.mT, gain=3.0)[0], 6 * x.mT)


def test_transposed_returns_a_state_only_if_given_one() -> None:
    x = torch.randn(2, 5, 3)
    assert Doubling(3)(x)[1] is None
    assert Doubling(3)(x, 0)[1] == 5  # 0 is a state
    assert Doubling(3)(x, state=2)[1] == 7


def test_transposed_is_keyword_only_and_off_by_default() -> None:
    assert Doubling(3, 4.0).scale == 4.0
    assert not Doubling(3).transposed
    with pytest.raises(TypeError):
        Doubling(3, 4.0, True)  # type: ignore[call-arg]


def test_transposed_keeps_the_class_s_identity() -> None:
    assert Doubling.__name__ == Doubling.__qualname__ == "Doubling"
    assert Doubling.__doc__ is not None
    assert Doubling.__doc__.startswith("Twice")
    assert Doubling.__wrapped__ is Doubling.__mro__[1]
    copy = pickle.loads(pickle.dumps(Doubling(3, transposed=True)))
    assert type(copy) is Doubling
    assert copy.transposed


def test_identity_returns_the_same_objects() -> None:
    module, x, state = SequenceIdentity(4, dropout=0.5), torch.randn(2, 3, 4), object()
    assert (module.d_model, module.d_output) == (4, 4)
    assert module(x)[0] is x
    assert module(x)[1] is None
    assert module(x, state) == (x, state)
    assert module.step(x, state) == (x, state)
    assert module.default_state(2) is None
