"""torch.func through every exported module: what functional code asks of a layer, eager and compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from sequence_kernels import SequenceModule
from sequence_kernels.layers.attention import MultiHeadedAttention
from sequence_kernels.layers.recurrent import _Recurrent

from .test_law import WIDTH, Factory, cases, layout_of

Parameters = dict[str, Tensor]
LENGTH = 20


#: What torch itself cannot do, and says: its fused recurrent networks under vmap, its fused attention in forward mode.
NO_VMAP, NO_FORWARD_MODE = (_Recurrent,), (MultiHeadedAttention,)
#: And forward over reverse mode of its norms in one compiled graph ("INTERNAL ASSERT FAILED").
NO_COMPILED_FORWARD_MODE = (nn.LayerNorm, nn.BatchNorm1d)


def loss_of(module: SequenceModule) -> Callable[[Parameters, Tensor], Tensor]:
    def loss(parameters: Parameters, x: Tensor) -> Tensor:
        y = functional_call(module, parameters, (x.mT if layout_of(module) else x,))[0]
        return (y * torch.sin(y)).mean()

    return loss


def contains(module: SequenceModule, kinds: tuple[type, ...]) -> bool:
    return any(isinstance(part, kinds) for part in module.modules())


def vmapped(
    function: Callable[..., Any], in_dims: tuple[Any, ...], module: SequenceModule
) -> Callable[..., Any]:
    """Without a loop: torch warns where it falls back to one."""

    def call(*args: Any) -> Any:
        with warnings.catch_warnings():
            if not contains(module, NO_FORWARD_MODE):  # the fused attention is looped over
                warnings.filterwarnings("error", ".*performance drop.*")
            return vmap(function, in_dims)(*args)

    return call


def made(make: Factory) -> tuple[SequenceModule, Parameters, Tensor]:
    module = make().double()
    torch.manual_seed(1)
    parameters = {name: p.detach().clone() for name, p in module.named_parameters()}
    return module, parameters, torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)


def near(got: Any, want: Any, tolerance: float = 1e-8) -> None:
    got, want = torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def by_autograd(loss: Any, parameters: Parameters, x: Tensor) -> tuple[Parameters, Tensor]:
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    x = x.clone().requires_grad_()
    found = torch.autograd.grad(loss(leaves, x), [*leaves.values(), x], materialize_grads=True)
    return dict(zip(leaves, found[:-1], strict=True)), found[-1]


@pytest.mark.parametrize("make", cases())
def test_functional_gradients(make: Factory) -> None:
    """grad of functional_call, for a batch and for each of its rows."""
    module, parameters, x = made(make)
    loss = loss_of(module)
    near(grad(loss, (0, 1))(parameters, x), by_autograd(loss, parameters, x))
    each_of = vmapped(grad(loss), (None, 0), module)
    if contains(module, NO_VMAP):
        with pytest.raises(RuntimeError, match=r"Batching rule not implemented|output with shape"):
            each_of(parameters, x.unsqueeze(1))
        return
    each = each_of(parameters, x.unsqueeze(1))
    rows = [by_autograd(loss, parameters, row)[0] for row in x.split(1)]
    near(each, {name: torch.stack([row[name] for row in rows]) for name in parameters})


@pytest.mark.parametrize("make", cases())
def test_ensembles(make: Factory) -> None:
    """Modules whose parameters differ, in one call."""
    module, parameters, x = made(make)
    if not parameters or contains(module, NO_VMAP):
        pytest.skip("has no parameters" if not parameters else "torch has no rule for vmap")
    others = {name: p * (1 + 0.01 * torch.randn_like(p)) for name, p in parameters.items()}
    both = {name: torch.stack((parameters[name], others[name])) for name in parameters}
    loss = loss_of(module)
    got = vmapped(loss, (0, None), module)(both, x)
    near(got, torch.stack((loss(parameters, x), loss(others, x))))


@pytest.mark.parametrize("make", cases())
def test_forward_mode(make: Factory) -> None:
    """jvp, forward over reverse, and the whole of a small hessian."""
    module, parameters, x = made(make)
    loss = loss_of(module)
    toward, x_toward = {n: torch.randn_like(p) for n, p in parameters.items()}, torch.randn_like(x)
    slopes, x_slope = by_autograd(loss, parameters, x)
    if contains(module, NO_FORWARD_MODE):
        with pytest.raises(NotImplementedError, match="does not support it"):
            jvp(loss, (parameters, x), (toward, x_toward))
        return
    _, slope = jvp(loss, (parameters, x), (toward, x_toward))
    inner = sum((slopes[n] * toward[n].conj()).real.sum() for n in slopes) + (x_slope * x_toward).sum()
    near(slope, inner)

    scale = torch.ones(2, dtype=torch.float64)

    def scaled(scale: Tensor) -> Tensor:
        return loss(parameters, torch.cat((x[..., :3] * scale[0], x[..., 3:] * scale[1]), -1))

    near(hessian(scaled)(scale), torch.autograd.functional.hessian(scaled, scale))
    near(jacrev(jacrev(scaled))(scale), torch.autograd.functional.hessian(scaled, scale))


def compiled_cases() -> list[Any]:
    """All, of which `make test` runs one: each takes seconds."""
    return [
        case
        if case.id == "S4D-default"
        else pytest.param(*case.values, id=case.id, marks=pytest.mark.thorough)
        for case in cases(lambda module: not contains(module, (*NO_VMAP, *NO_FORWARD_MODE)))
    ]


@pytest.mark.parametrize("make", compiled_cases())
def test_compiled(make: Factory) -> None:
    """In one graph: gradients of each row, forward mode, and a hessian's product with a vector."""
    module, parameters, x = made(make)
    loss = loss_of(module)

    def function(parameters: Parameters, x: Tensor) -> Any:
        each = vmap(grad(loss), in_dims=(None, 0))(parameters, x.unsqueeze(1))
        if contains(module, NO_COMPILED_FORWARD_MODE):
            return each
        product = jvp(lambda x: grad(loss, 1)(parameters, x), (x,), (x,))[1]
        return each, product

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    near(compiled(parameters, x), function(parameters, x))
