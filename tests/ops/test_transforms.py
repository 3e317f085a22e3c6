"""torch.func through every op: reverse and forward mode, vmap, nested and compiled, against ordinary autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from sequence_kernels import ops, use_backend

from .devices import backends
from .sample import Sample
from .samples import SAMPLES, Recorded
from .test_contract import cases, every, outputs, sample  # noqa: F401 (a fixture)

Loss = Callable[..., Tensor]


def real(function: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
    """The function with results as real numbers."""
    return lambda *t: tuple(torch.view_as_real(r) if r.is_complex() else r for r in outputs(function(*t)))


def loss_of(function: Callable[..., Any]) -> Loss:
    """A number whose second derivatives are not 0."""

    def loss(*tensors: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=tensors[0].device)
        for i, result in enumerate(real(function)(*tensors)):
            weights = torch.cos(torch.arange(result.numel(), device=result.device) + i).reshape(result.shape)
            total = total + (weights * torch.sin(0.1 * result)).sum()
        return total

    return loss


def near(got: Any, want: Any) -> None:
    for a, b in zip(outputs(got), outputs(want), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def directions(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    return tuple(torch.randn_like(t) for t in tensors)


@every
def test_reverse_mode(sample: Sample, backend: str) -> None:  # noqa: F811
    every_argument = tuple(range(len(sample.tensors)))
    with use_backend(backend):
        leaves = [t.clone().requires_grad_() for t in sample.tensors]
        loss = loss_of(sample.function)
        expected = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        near(grad(loss, every_argument)(*sample.tensors), tuple(e.detach() for e in expected))

        results = outputs(sample.function(*leaves))
        cotangents = directions(tuple(r.detach() for r in results))
        _, pull = vjp(sample.function, *sample.tensors)
        pulled = pull(cotangents if len(cotangents) > 1 else cotangents[0])
        near(pulled, torch.autograd.grad(results, leaves, cotangents))

        toward = directions(sample.tensors)

        def slope(*tensors: Tensor) -> Tensor:
            return sum(
                (torch.view_as_real(g * v.conj())[..., 0] if g.is_complex() else g * v).sum()
                for g, v in zip(grad(loss, every_argument)(*tensors), toward, strict=True)
            )

        twice = torch.autograd.grad(expected, leaves, toward)
        near(grad(slope, every_argument)(*sample.tensors), twice)


@every
def test_forward_mode(sample: Sample, backend: str) -> None:  # noqa: F811
    """By reverse mode twice: the derivative of a pull-back along the cotangent."""
    function, toward = real(sample.function), directions(sample.tensors)
    with use_backend(backend):
        results, tangents = jvp(function, sample.tensors, toward)
        near(results, function(*sample.tensors))
        near(tangents, torch.autograd.functional.jvp(function, sample.tensors, toward)[1])
        loss = loss_of(sample.function)
        every_argument = tuple(range(len(sample.tensors)))
        _, forward_over_reverse = jvp(lambda *t: grad(loss, every_argument)(*t), sample.tensors, toward)
        leaves = [t.clone().requires_grad_() for t in sample.tensors]
        slopes = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        weights = directions(tuple(s.detach() for s in slopes))
        pulled = torch.autograd.grad(slopes, leaves, weights)
        inner = [
            sum((a * b.conj()).real.sum() for a, b in zip(x, y, strict=True))
            for x, y in ((forward_over_reverse, weights), (toward, pulled))
        ]
        near(inner[0], inner[1])


@pytest.mark.parametrize("name", SAMPLES)
def test_whole_derivatives(name: str) -> None:
    given = SAMPLES[name]
    function, loss = real(given.function), loss_of(given.function)
    for i, t in enumerate(given.tensors):

        def along(x: Tensor, i: int = i, t: Tensor = t) -> tuple[Tensor, ...]:
            x = torch.view_as_complex(x) if t.is_complex() else x
            return function(*given.tensors[:i], x, *given.tensors[i + 1 :])

        def number(x: Tensor, i: int = i, t: Tensor = t) -> Tensor:
            x = torch.view_as_complex(x) if t.is_complex() else x
            return loss(*given.tensors[:i], x, *given.tensors[i + 1 :])

        x = torch.view_as_real(t) if t.is_complex() else t
        near(jacrev(along)(x), jacfwd(along)(x))
        if i < 2:
            near(hessian(number)(x), torch.autograd.functional.hessian(number, x))


@every
def test_vmap_is_one_call(sample: Sample, backend: str) -> None:  # noqa: F811
    """Of each argument alone, and of all; the axis stands first or last."""
    count = len(sample.tensors)
    for mapped in (*((i,) for i in range(count)), tuple(range(count))):
        for dim in (0, -1):
            torch.manual_seed(4)
            many = [
                torch.stack([t, 0.9 * t, t * 1.05], dim) if i in mapped else t
                for i, t in enumerate(sample.tensors)
            ]
            in_dims = tuple(dim if i in mapped else None for i in range(count))
            with use_backend(backend):
                each = [
                    outputs(
                        sample.function(*(t.select(dim, k) if i in mapped else t for i, t in enumerate(many)))
                    )
                    for k in range(3)
                ]
                with Recorded() as recorded:
                    got = vmap(sample.function, in_dims)(*many)
                near(got, tuple(torch.stack(results) for results in zip(*each, strict=True)))
                nodes = sample.op == "dplr_generating" and count - 1 in mapped
                assert len(recorded.calls) == (3 if nodes else 1)


@every
def test_gradients_of_each_sample(sample: Sample, backend: str) -> None:  # noqa: F811
    """vmap of grad: of everything, with all or the first argument mapped; backward ops are one call each too."""
    count, loss = len(sample.tensors), loss_of(sample.function)
    every_argument = tuple(range(count))
    for mapped in ((0,), every_argument):
        many = [torch.stack([t, 0.9 * t]) if i in mapped else t for i, t in enumerate(sample.tensors)]
        in_dims = tuple(0 if i in mapped else None for i in range(count))
        with use_backend(backend):
            each = [
                grad(loss, every_argument)(*(t[k] if i in mapped else t for i, t in enumerate(many)))
                for k in range(2)
            ]
            with Recorded() as recorded:
                got = vmap(grad(loss, every_argument), in_dims)(*many)
            near(got, tuple(torch.stack(results) for results in zip(*each, strict=True)))
            calls = [call.op._opname for call in recorded.calls]
            nodes = sample.op == "dplr_generating" and count - 1 in mapped
            assert (
                nodes
                or calls.count(sample.op) == 1
                or sample.op in ("cauchy", "cauchy_transpose", "vandermonde", "vandermonde_transpose")
            )
            assert calls.count(f"{sample.op}_backward") <= (2 if nodes else 1)


@pytest.mark.parametrize("backend", backends("dplr_discretize"))
@pytest.mark.parametrize(
    "in_dims", [(0, None, None, None), (None, 0, None, None), (0, None, None, 0), (None, None, None, 0)]
)
def test_systems_of_fewer_groups_than_heads(backend: str, in_dims: tuple[int | None, ...]) -> None:
    """As a graph calls the op that was made before vmap: each system keeps its own groups."""
    op, (groups, heads) = torch.ops.sequence_kernels.dplr_discretize.default, (2, 6)
    torch.manual_seed(5)
    w = torch.complex(-torch.rand(3, groups, 4).double(), torch.randn(3, groups, 4).double())
    p, b = torch.randn(3, 1, groups, 4, dtype=w.dtype), torch.randn(3, groups, 4, dtype=w.dtype)
    many = (w, p, b, torch.rand(3, heads).double())
    given = [t if dim == 0 else t[0] for t, dim in zip(many, in_dims, strict=True)]
    rows = [
        op(*(t[k] if dim == 0 else t for t, dim in zip(given, in_dims, strict=True)), True, backend)
        for k in range(3)
    ]
    with Recorded() as recorded:
        got = vmap(lambda *t: op(*t, True, backend), in_dims)(*given)
    near(got, tuple(torch.stack(results) for results in zip(*rows, strict=True)))
    assert len(recorded.calls) == 1


@pytest.mark.parametrize("name", SAMPLES)
def test_no_call_at_all(name: str) -> None:
    """A vmap over nothing has the shapes of one over something."""
    function, many = SAMPLES[name].function, [t.unsqueeze(0) for t in SAMPLES[name].tensors]
    want = outputs(vmap(function)(*many))
    got = outputs(vmap(function)(*(t[:0] for t in many)))
    assert [(y.shape, y.dtype) for y in got] == [((0, *y.shape[1:]), y.dtype) for y in want]


def test_lengths_of_each_call() -> None:
    """Of one system they fold into the batch; systems that differ are called one by one."""
    given = SAMPLES["ssm_conv-dense-lengths"]
    u, *parameters = given.tensors
    lengths = torch.tensor([[3, 11, 0], [7, 1, 4]])

    def function(u: Tensor, lengths: Tensor, *parameters: Tensor) -> Any:
        return ops.ssm_conv(u, *parameters, lengths=lengths)

    many = torch.stack((u, 0.9 * u))
    each = [function(many[k], lengths[k], *parameters) for k in range(2)]
    with Recorded() as recorded:
        got = vmap(function, (0, 0, *(None for _ in parameters)))(many, lengths, *parameters)
    near(got, tuple(torch.stack(results) for results in zip(*each, strict=True)))
    assert len(recorded.calls) == 1

    loss, others = loss_of(function), tuple(range(2, 8))
    got = vmap(grad(loss, (0, *others)), (0, 0, *(None for _ in parameters)))(many, lengths, *parameters)
    rows = [grad(loss, (0, *others))(many[k], lengths[k], *parameters) for k in range(2)]
    near(got, tuple(torch.stack(results) for results in zip(*rows, strict=True)))


@pytest.mark.thorough
@pytest.mark.parametrize("name", {s.op: name for name, s in SAMPLES.items()}.values())
def test_compiled_to_one_graph(name: str) -> None:
    """Gradients of each sample, and forward over reverse."""
    inputs, loss = SAMPLES[name].tensors, loss_of(SAMPLES[name].function)

    def function(*tensors: Tensor) -> Any:
        many = tuple(torch.stack((t, 0.9 * t)) for t in tensors)
        each = vmap(grad(loss, tuple(range(len(tensors)))))(*many)
        return each, jvp(grad(loss), tensors, tensors)[1]

    torch._dynamo.reset()
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs)
    want = function(*inputs)
    near((*got[0], got[1]), (*want[0], want[1]))
