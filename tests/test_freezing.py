"""Frozen modules: every class that the library exports, beside what it was frozen from."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from sequence_kernels import (
    GRU,
    LRU,
    S4,
    S4D,
    MambaLM,
    S4Decoder,
    SequenceModel,
    SequenceModule,
    freeze,
    frozen_state,
    thawed_state,
    use_backend,
)
from sequence_kernels.ssm import FrozenSystem
from sequence_kernels.ssm.parameters import SSMParameters
from tests import test_law
from tests.test_law import (
    WIDTH,
    Factory,
    all_cases,
    causal_cases,
    close,
    forward,
    steps,
    tensors,
)


def frozen_or_refused(module: SequenceModule) -> SequenceModule | None:
    """The module frozen; None for one with a kernel that depends on the length of each call, which is refused."""
    changing = [part for part in module.modules() if isinstance(part, SSMParameters) and not part.causal]
    if not changing:
        return module.freeze()
    with pytest.raises(ValueError, match="l_max"):
        module.freeze()
    return None


@all_cases
def test_it_computes_what_the_module_does(make: Factory) -> None:
    module = make().train()
    frozen = frozen_or_refused(module)
    if frozen is None:
        return
    module.eval()
    assert not any(part.training for part in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())
    for length in (12, 36, 100):
        x = torch.randn(2, length, WIDTH)
        close(forward(frozen, x)[0], forward(module, x)[0], 2e-6)
    if module.causal:
        state = forward(module, x, module.default_state(2))[1]
        own = forward(frozen, x, frozen.default_state(2))[1]
        assert not any(t.is_complex() for t in tensors(own))
        close(own, frozen_state(state), 2e-6)
        close(thawed_state(own, module.default_state()), state, 2e-6)
        close(frozen.state_to_tensor(own), module.state_to_tensor(state), 2e-6)
        assert frozen.d_state == module.d_state
        close(forward(frozen, x, own)[0], forward(module, x, state)[0], 2e-6)
        close(steps(frozen, x, own)[0], steps(module, x, state)[0], 2e-5)


@causal_cases
def test_it_obeys_the_law(make: Factory) -> None:
    if frozen_or_refused(make()) is not None:
        test_law.test_forward_equals_splits_and_steps(
            lambda: make().double().freeze(), torch.float64, 1e-9, 45
        )
        test_law.test_default_state(lambda: make().freeze(), (2, 3))


MODEL = {
    "n_layers": 2,
    "layer": [{"_name_": "s4d", "d_state": 4}, "lru", "gru"],
    "residual": "R",
    "norm": "layer",
}


def test_no_parameter_of_a_system_is_left() -> None:
    module = SequenceModel(
        WIDTH, layer=[{"_name_": n, "d_state": 4} for n in ("s4", "s4d", "dss", "s5", "lru")]
    )
    frozen = module.freeze()
    assert sum(isinstance(part, FrozenSystem) for part in frozen.modules()) == 5
    assert not any(isinstance(part, SSMParameters) for part in frozen.modules())
    names = [name for name, _ in frozen.named_parameters()]
    assert all("linear" in name or "norm" in name for name in names), names


@pytest.mark.parametrize("make", [S4D, LRU])
def test_nothing_is_discretised_in_a_call(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = make(WIDTH, d_state=4).freeze()
    x = torch.randn(1, WIDTH, WIDTH)
    y, state = frozen(x, frozen.default_state(1))

    def never(*args: Any) -> Any:
        raise AssertionError("a frozen layer made a system")

    for name in ("ssm_chunk", "diagonal_discretize"):
        op = getattr(torch.ops.sequence_kernels, name)
        monkeypatch.setattr(op, "default", never)
    monkeypatch.setattr(torch, "exp", never)
    close((y, state), frozen(x, frozen.default_state(1)), 0.0)


def test_what_is_refused() -> None:
    frozen = SequenceModel(WIDTH, **MODEL).freeze()
    x = torch.randn(1, 4, WIDTH)
    with pytest.raises(RuntimeError, match=r"frozen.*cannot be trained"):
        frozen.train()
    assert not any(part.training for part in frozen.modules())
    assert frozen.eval() is frozen
    layer = S4D(WIDTH, d_state=4, transposed=False)
    with pytest.raises(ValueError, match=r"frozen: rate must be 1.*got 2"):
        layer.freeze()(x, rate=2.0)
    with pytest.raises(ValueError, match="frozen: rate must be 1"):
        layer.freeze().step(x[:, 0], rate=0.5)
    with pytest.raises(ValueError, match="frozen: rate must be 1"):
        layer.freeze().freeze(0.5)
    with pytest.raises(ValueError, match="GRU has no step in time"):
        GRU(WIDTH).freeze(2.0)
    with pytest.raises(ValueError, match="rate must be finite"):
        layer.freeze(0.0)
    with pytest.raises(ValueError, match="frozen: it has no parameters"):
        layer.freeze().system()
    with pytest.raises(TypeError, match="real tensor"):
        layer.freeze()(x, layer.default_state(1))
    with pytest.raises(TypeError, match=r"computes in torch.float32 and cannot become torch.float64"):
        layer.freeze().double()
    with pytest.raises(TypeError, match=r"x must be torch.float32"):
        layer.freeze()(x.double())
    with pytest.raises(ValueError, match="state must hold 1 tensors"):
        thawed_state([], layer.default_state())


def test_a_rate_is_baked_in() -> None:
    layer, x = S4(WIDTH, d_state=4, l_max=30), torch.randn(1, WIDTH, 40)
    close(layer.freeze(0.5)(x)[0], layer.eval()(x, rate=0.5)[0], 1e-6)
    close(layer.freeze(2.0)(x)[0], layer.eval()(x, rate=2.0)[0], 1e-6)
    y, state = layer.freeze(0.5).step(x[..., 0])
    close((y, thawed_state(state, layer.default_state())), layer.step(x[..., 0], rate=0.5), 1e-6)


def test_moving_keeps_what_is_wider() -> None:
    frozen = S4D(WIDTH, d_state=4).freeze()
    system = frozen.constants
    before = {name: t.clone() for name, t in system.named_buffers()}
    assert before["a_powers"].dtype == torch.float64
    frozen.to(torch.float32).float()
    assert all(torch.equal(before[name], t) for name, t in frozen.constants.named_buffers())
    assert {t.device.type for t in frozen.to("meta").constants.buffers()} == {"meta"}


def test_half_precision() -> None:
    for module in (
        S4D(WIDTH, d_state=4),
        S4(WIDTH, d_state=4, l_max=8),
        LRU(WIDTH, d_state=4, transposed=True),
    ):
        module, x = module.to(torch.bfloat16).eval(), torch.randn(2, WIDTH, 20, dtype=torch.bfloat16)
        frozen = module.freeze()
        close(frozen(x)[0], module(x)[0], 1e-2)
        assert frozen.default_state(2).dtype == torch.float32


def test_copies_pickles_and_state_dicts() -> None:
    module = SequenceModel(WIDTH, **MODEL)
    frozen, other, x = module.freeze(), SequenceModel(WIDTH, **MODEL).freeze(), torch.randn(1, 9, WIDTH)
    expected = frozen(x)[0]
    assert not torch.allclose(other(x)[0], expected)
    other.load_state_dict(frozen.state_dict())
    again = frozen.freeze()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    for one in (other, again, copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        close(one(x)[0], expected, 0.0)


@pytest.mark.parametrize("alter", ["parametrized", "pruned"])
def test_computed_parameters_are_folded(alter: str) -> None:
    module = S4D(WIDTH, d_state=4)
    for part, name in ((module, "D"), (module.kernel.kernel, "C"), (module.output_linear[0], "weight")):
        if alter == "pruned":
            prune.random_unstructured(part, name, amount=0.5)
        else:
            parametrize.register_parametrization(part, name, nn.Tanh())
    frozen, x = module.freeze(), torch.randn(1, WIDTH, 20)
    close(frozen(x)[0], module.eval()(x)[0], 1e-6)
    assert {name for name, _ in frozen.named_parameters()} == {
        "output_linear.0.weight",
        "output_linear.0.bias",
    }
    assert torch.equal(frozen.output_linear[0].weight, module.output_linear[0].weight)


def test_whatever_holds_layers_is_frozen() -> None:
    decoder = S4Decoder(5, WIDTH, n_layers=1, layer={"_name_": "s4d", "d_state": 4})
    frozen = freeze(decoder)
    tokens = torch.tensor([[1, 2, 3]]), torch.tensor([3])
    close(frozen(None, None, *tokens)[0], decoder.eval()(None, None, *tokens)[0], 1e-6)
    assert [s for _, s in frozen.search(2, 3)] == pytest.approx([s for _, s in decoder.search(2, 3)])
    model = MambaLM(5, WIDTH, 1, d_state=2)
    assert torch.equal(freeze(model)(tokens[0])[0], model.eval()(tokens[0])[0])


def test_gradients_of_inputs_go_through() -> None:
    layer, x = S4D(WIDTH, d_state=4).double().eval(), torch.randn(1, WIDTH, 20, dtype=torch.float64)
    frozen = layer.freeze()
    slopes = [torch.autograd.grad(m(x.requires_grad_())[0].sum(), x)[0] for m in (frozen, layer)]
    close(*slopes, 1e-12)
    assert not frozen(x.detach())[0].requires_grad


@pytest.mark.parametrize("layer", ["s4", "s4d", "s5"])
@pytest.mark.parametrize("backend", ["torch", None])
def test_steppers(layer: str, backend: str | None) -> None:
    module = SequenceModel(WIDTH, layer=[{"_name_": layer, "d_state": 4}, "ff"], residual="R", norm="layer")
    x = torch.randn(2, 7, WIDTH)
    with use_backend(backend):
        own, frozen = module.stepper((2,)), module.freeze().stepper((2,))
        for at in range(3):
            close(frozen.step(x[:, at]), own.step(x[:, at]), 1e-5)
        close(frozen.forward(x[:, 3:]), own.forward(x[:, 3:]), 1e-5)
        close(frozen.state, frozen_state(own.state), 1e-5)


def test_one_graph_for_all_lengths() -> None:
    frozen = SequenceModel(WIDTH, layer={"_name_": "s4d", "d_state": 4}).freeze()
    compiled = torch.compile(frozen, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (5, 70):
        x = torch.randn(2, length, WIDTH)
        close(compiled(x, frozen.default_state(2)), frozen(x, frozen.default_state(2)), 1e-6)


def test_batch_shapes_and_tensors() -> None:
    frozen = LRU(WIDTH, d_state=4).freeze()
    x = torch.randn(2, 3, 5, WIDTH)
    y, state = frozen(x, frozen.default_state(2, 3))
    assert state.shape == (2, 3, 8)
    assert isinstance(tensors(state)[0], Tensor)
    close(frozen(x.flatten(0, 1), frozen.default_state(6)), (y.flatten(0, 1), state.flatten(0, 1)), 1e-6)
