"""A wrong input or state is answered in the words of who gave it: ``x`` or ``state``, never an internal's name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sequence_kernels import S4D, SequenceIdentity, SequenceModel, SequenceModule
from sequence_kernels.layers.pools import Unpool

from .test_law import WIDTH, Factory, all_cases, causal_cases, forward, keeps_length, layout_of, tensors

WRONG_INPUTS: dict[str, Callable[[Tensor], Any]] = {
    "float64": Tensor.double,
    "float16": Tensor.half,
    "integers": Tensor.long,
    "complex": lambda x: x.to(torch.complex64),
    "device": lambda x: x.to("meta"),
    "width": lambda x: x.repeat(1, 1, 2),
    "no-length": lambda x: x[0, 0],
    "list": Tensor.tolist,
}


def of_tensors(change: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    return lambda state: pytree.tree_map_only(Tensor, change, state)


def double(t: Tensor) -> Tensor:
    return t.to(torch.complex128 if t.is_complex() else torch.float64) if t.dtype != torch.int64 else t


WRONG_STATES: dict[str, Callable[[Any], Any]] = {
    "dtype": of_tensors(double),
    "device": of_tensors(lambda t: t.to("meta")),
    "batch": of_tensors(lambda t: t[:1].repeat(3, *(1,) * (t.dim() - 1))),
    "size": of_tensors(lambda t: torch.cat((t, t), -1)),
    "word": lambda state: "zeros",
    "number": lambda state: 5,
}


def refusal(call: Callable[[], tuple[Any, Any]]) -> tuple[str, Any]:
    try:
        return "", call()[0]
    except (TypeError, ValueError) as error:
        return str(error), None


@all_cases
@pytest.mark.parametrize("wrong", WRONG_INPUTS)
def test_wrong_inputs(make: Factory, wrong: str) -> None:
    module = make()
    x = torch.randn(2, 12, WIDTH)
    bad = WRONG_INPUTS[wrong](x)
    turned = bad.mT if layout_of(module) and isinstance(bad, Tensor) and bad.dim() > 1 else bad
    said, _ = refusal(lambda: module(turned))
    if said:
        assert re.match("x (must|is) ", said), said
    else:  # served: what has no parameters knows no dtype; on the meta device nothing is computed
        assert not tensors(list(module.parameters())) or wrong in ("device", "no-length")
        assert wrong not in ("width", "list") or isinstance(
            module, SequenceIdentity
        )  # gives what it is given


@causal_cases
@pytest.mark.parametrize("wrong", WRONG_INPUTS)
def test_wrong_elements(make: Factory, wrong: str) -> None:
    module = make()
    if isinstance(module, Unpool) or not keeps_length(module):
        pytest.skip("not every step takes an element")
    x = torch.randn(2, WIDTH)
    bad = x[..., None].repeat(1, 1, 2).flatten(-2) if wrong == "width" else WRONG_INPUTS[wrong](x[None])[0]
    if wrong == "no-length":
        return
    said, _ = refusal(lambda: module.step(bad, module.default_state(2)))
    if said:
        assert re.match("x (must|is) ", said) or (wrong == "device" and "is on" in said), said
    else:
        assert not tensors(list(module.parameters()))
        assert wrong not in ("width", "list") or isinstance(module, SequenceIdentity)


@causal_cases
@pytest.mark.parametrize("wrong", WRONG_STATES)
@pytest.mark.parametrize("step", [False, True])
def test_wrong_states(make: Factory, wrong: str, step: bool) -> None:
    module = make()
    state = module.default_state(2)
    if state is None:
        pytest.skip("no state")
    x = torch.randn(2, 12, WIDTH)
    bad = WRONG_STATES[wrong](state)
    if step and isinstance(module, Unpool):
        pytest.skip("gives what waits in the state")
    if step:
        said, y = refusal(lambda: module.step(x[:, 0], bad))
    else:
        said, y = refusal(lambda: forward(module, x, bad))
    if said:
        assert "state" in said, said
    else:  # served: converted, or there is nothing in it yet
        assert y is None or (y.dtype == x.dtype and y.device == x.device and len(y) == 2)
        assert wrong in ("dtype", "device") or not any(t.numel() for t in tensors(state))


def test_the_innermost_error_is_kept_as_the_cause() -> None:
    model = SequenceModel(8, layer={"_name_": "s4d", "d_state": 4})
    with pytest.raises(
        TypeError, match=r"x must be torch\.float32 as the parameters are, got torch\.float16"
    ) as info:
        model(torch.randn(2, 12, 8).half())
    assert info.value.__cause__ is not None


def test_errors_of_other_arguments_stay() -> None:
    layer = S4D(8, 4, transposed=False)
    with pytest.raises(ValueError, match=r"lengths must be in 0 \.\. 12"):
        layer(torch.randn(2, 12, 8), lengths=torch.tensor([3, 13]))

    class Unfinished(S4D):
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError("mine")

    with pytest.raises(NotImplementedError, match="mine"):
        Unfinished(8, 4)(torch.randn(2, 8, 12))


@pytest.mark.parametrize("autocast", [False, True])
def test_half_inputs_are_served_under_autocast(autocast: bool) -> None:
    layer = S4D(8, 4, transposed=False)
    x = torch.randn(2, 12, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        said, _ = refusal(lambda: layer(x))
    assert bool(said) != autocast


@pytest.mark.parametrize("cls", [S4D, SequenceModel])
def test_calls_compile_to_one_graph(cls: type[Any]) -> None:
    layer = (
        cls(8, layer={"_name_": "s4d", "d_state": 4}) if cls is SequenceModel else cls(8, 4, transposed=False)
    )
    x = torch.randn(2, 12, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], layer(x)[0])


def test_a_module_that_cannot_say_what_it_expects() -> None:
    class Odd(SequenceModule):
        def __init__(self) -> None:
            super().__init__()
            self.d_model = self.d_output = 8

        def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            raise RuntimeError("mine")

        def default_state(self, *batch_shape: int, device: Any = None) -> Any:
            raise KeyError("its own trouble")

    with pytest.raises(RuntimeError, match="mine"):
        Odd()(torch.randn(2, 12, 8), torch.zeros(2, 8))
