"""Systems that are kept between calls: what is spared, and that nothing a parameter may become is overlooked."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sequence_kernels import S4, S4D, native

pytestmark = pytest.mark.skipif(
    native.unavailable("cpu") is not None, reason="nothing is kept in plain torch"
)
DISCRETIZE = {"diagonal_discretize", "dplr_discretize"}


@pytest.fixture(params=[S4, S4D])
def layer(request: pytest.FixtureRequest) -> S4:
    torch.manual_seed(0)
    made: S4 = request.param(4, 8).eval()
    return made


def called(layer: S4, x: Tensor, *args: Tensor) -> set[str]:
    """The ops of a call: of one under a mode, in which nothing is kept, so by name and not recorded."""
    seen: set[str] = set()
    names = ("diagonal_discretize", "dplr_discretize", "ssm_chunk", "ssm_direct", "ssm_conv")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            spied(patch, name, seen)
        layer(x, *args)
    return seen


def spied(patch: pytest.MonkeyPatch, name: str, seen: set[str]) -> None:
    from sequence_kernels.ops import dispatch

    known = dispatch._implementations[name]
    run = known["cpu"].run

    def noted(*args: object) -> object:
        seen.add(name)
        return run(*args)

    patch.setitem(known, "cpu", known["cpu"]._replace(run=noted))
    dispatch.able.cache_clear()


@pytest.fixture(autouse=True)
def real_kernels() -> object:
    from sequence_kernels.ops import dispatch

    yield
    dispatch.able.cache_clear()


@torch.no_grad()
def test_the_second_call_makes_neither_the_system_nor_its_matrices(layer: S4) -> None:
    for length in (20, 300):  # directly, and in chunks
        x, state = torch.randn(1, 4, length), layer.default_state(1)
        first = [layer(x)[0], *layer(x, state)]
        assert not DISCRETIZE & called(layer, x)
        layer(x, state)
        assert called(layer, x, state) == {"ssm_conv"}
        for got, want in zip([layer(x)[0], *layer(x, state)], first, strict=True):
            assert torch.equal(got, want)
    with torch.enable_grad():
        assert DISCRETIZE & called(layer, x)


def grown(p: Tensor) -> Tensor:
    return p * 1.5 + 0.1


def in_place(layer: S4, name: str) -> None:
    parameter = layer.kernel.kernel.get_parameter(name)
    parameter.copy_(grown(parameter))


def by_data(layer: S4, name: str) -> None:
    """Torch does not count these writes."""
    parameter = layer.kernel.kernel.get_parameter(name)
    parameter.data.copy_(grown(parameter))


def given_memory(layer: S4, name: str) -> None:
    parameter = layer.kernel.kernel.get_parameter(name)
    parameter.data = grown(parameter)


def replaced(layer: S4, name: str) -> None:
    setattr(layer.kernel.kernel, name, nn.Parameter(grown(layer.kernel.kernel.get_parameter(name))))


def loaded(layer: S4, name: str) -> None:
    key = f"kernel.kernel.{name}"
    layer.load_state_dict({key: grown(layer.state_dict()[key])}, strict=False, assign=True)


def stepped(layer: S4, name: str) -> None:
    parameter = layer.kernel.kernel.get_parameter(name)
    parameter.grad = torch.ones_like(parameter)
    torch.optim.Adam([parameter], lr=0.3, fused=True).step()


def parametrized(layer: S4, name: str) -> None:
    class Grown(nn.Module):
        def forward(self, p: Tensor) -> Tensor:
            return grown(p)

    parametrize.register_parametrization(layer.kernel.kernel, name, Grown())


@pytest.mark.parametrize("change", [in_place, by_data, given_memory, replaced, loaded, stepped, parametrized])
def test_a_change_of_any_parameter_is_seen(layer: S4, change: Callable[[S4, str], None]) -> None:
    x = torch.randn(1, 4, 20)
    for name in [n for n, _ in layer.kernel.kernel.named_parameters()]:
        with torch.no_grad():
            before = layer(x)[0]
            assert torch.equal(layer(x)[0], before)
            change(layer, name)
            after = layer(x)[0]
        assert not torch.equal(after, before), name
        assert torch.equal(after, layer(x)[0].detach()), name  # with gradients nothing is kept


@torch.no_grad()
def test_dtype_rate_and_functional_calls_are_seen(layer: S4) -> None:
    x = torch.randn(1, 4, 20)
    once, twice = layer(x)[0], layer(x, rate=2.0)[0]
    assert not torch.equal(once, twice)
    assert torch.equal(layer(x)[0], once)
    other = {name: grown(p) for name, p in layer.named_parameters()}
    called = torch.func.functional_call(layer, other, (x,))[0]
    assert not torch.equal(called, once)
    assert torch.equal(layer(x)[0], once)
    assert layer.double()(x.double())[0].dtype == torch.float64


@torch.no_grad()
def test_what_is_made_in_inference_mode_serves_gradients_of_the_input_later(layer: S4) -> None:
    x = torch.randn(1, 4, 300)
    with torch.inference_mode():
        want = layer(x)[0]
    assert torch.equal(layer(x)[0], want)
    with torch.enable_grad():
        layer.requires_grad_(False)(x.requires_grad_())[0].sum().backward()
    assert x.grad is not None


@torch.no_grad()
def test_copies_and_files_hold_nothing_that_is_kept(layer: S4) -> None:
    x = torch.randn(1, 4, 20)
    bare, want = io.BytesIO(), layer(x)[0]
    torch.save(layer, bare)
    again = copy.deepcopy(layer)
    assert again.kernel.kernel._kept._made is None
    assert torch.equal(again(x)[0], want)
    fresh = io.BytesIO()
    torch.save(type(layer)(4, 8), fresh)
    assert abs(len(bare.getvalue()) - len(fresh.getvalue())) < 200
