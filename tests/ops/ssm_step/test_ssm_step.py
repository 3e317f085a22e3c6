"""The recurrent steps of every backend against dense matrices of conjugate pairs written out."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sequence_kernels import ops

from ..devices import backends, device_of, gpu_backends
from ..sample import Sample, complexes, real

C128 = torch.complex128


SAMPLES = {
    "ssm_step": Sample(
        "ssm_step",
        ops.ssm_step,
        (
            complexes(2, 3, 4),
            real(2, 3),
            complexes(3, 4, seed=1),
            complexes(3, 4, seed=2),
            complexes(2, 3, 4, seed=3),
            real(2, 3, seed=4),
        ),
    ),
    "ssm_step-low-rank": Sample(
        "ssm_step",
        ops.ssm_step,
        (
            complexes(2, 3, 4),
            real(2, 3),
            complexes(3, 4, seed=1),
            complexes(3, 4, seed=4),
            complexes(1, 3, 4, seed=5),
            real(1, 3),
            complexes(2, 3, 4, seed=2),
            complexes(2, 3, 4, seed=3),
        ),
    ),
}


def whole(x: Tensor) -> Tensor:
    """Both of each conjugate pair."""
    return torch.cat((x, x.conj()), -1)


def parts(batch: tuple[int, ...], device: str = "cpu") -> tuple[Tensor, ...]:
    with torch.device(device):
        state, u = torch.randn(*batch, 3, 4, dtype=C128), torch.randn(*batch, 3, dtype=torch.float64)
        a, b = torch.randn(3, 4, dtype=C128), torch.randn(3, 4, dtype=C128)
        return state, u, a, b, torch.randn(2, 3, 4, dtype=C128), torch.randn(2, 3, dtype=torch.float64)


@pytest.mark.checks("oracle")
@pytest.mark.parametrize("backend", backends("ssm_step") + gpu_backends("ssm_step"))
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
def test_diagonal(backend: str, batch: tuple[int, ...]) -> None:
    state, u, a_minus_one, b, c, d = parts(batch, device_of(backend))
    y, new_state = ops.ssm_step(state, u, a_minus_one, b, c, d, backend=backend)
    matrix = torch.diag_embed(1 + whole(a_minus_one))
    moved = torch.einsum("hmn,...hn->...hm", matrix, whole(state)) + whole(b) * u.unsqueeze(-1)
    torch.testing.assert_close(whole(new_state), moved)
    torch.testing.assert_close(
        y, torch.einsum("chn,...hn->...ch", whole(c), moved).real + d * u.unsqueeze(-2)
    )


@pytest.mark.checks("oracle")
@pytest.mark.parametrize("backend", backends("ssm_step") + gpu_backends("ssm_step"))
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_diagonal_plus_low_rank(backend: str, batch: tuple[int, ...], rank: int) -> None:
    state, u, a_minus_one, b, c, d = parts(batch, device_of(backend))
    p, q = torch.randn(2, rank, 3, 4, dtype=C128, device=state.device)
    y, new_state = ops.ssm_step(state, u, a_minus_one, b, c, d, p, q, backend=backend)
    matrix = torch.diag_embed(1 + whole(a_minus_one)) + torch.einsum("rhm,rhn->hmn", whole(p), whole(q))
    moved = torch.einsum("hmn,...hn->...hm", matrix, whole(state)) + whole(b) * u.unsqueeze(-1)
    torch.testing.assert_close(whole(new_state), moved)
    torch.testing.assert_close(
        y, torch.einsum("chn,...hn->...ch", whole(c), moved).real + d * u.unsqueeze(-2)
    )


def test_half_precision_input_keeps_a_float32_state() -> None:
    state, u, a_minus_one, b, c, d = (
        t.to(torch.complex64 if t.is_complex() else torch.float32) for t in parts((5,))
    )
    y, new_state = ops.ssm_step(state, u.bfloat16(), a_minus_one, b, c, d)
    want, want_state = ops.ssm_step(state, u.bfloat16().float(), a_minus_one, b, c, d)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, want.bfloat16())
    torch.testing.assert_close(new_state, want_state)


@pytest.mark.parametrize("backend", backends("ssm_step") + gpu_backends("ssm_step"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrower_input_keeps_a_float64_state(backend: str, dtype: torch.dtype) -> None:
    state, u, *parameters = parts((5,), device_of(backend))
    u = u.to(dtype)
    y, new_state = ops.ssm_step(state, u, *parameters, backend=backend)
    want, want_state = ops.ssm_step(state, u.double(), *parameters, backend=backend)
    assert y.dtype == dtype
    assert torch.equal(y, want.to(dtype))
    assert torch.equal(torch.view_as_real(new_state), torch.view_as_real(want_state))
    assert torch.equal(ops.ssm_step_(state, u, *parameters, backend=backend), y)


def test_bad_arguments() -> None:
    state, u, a_minus_one, b, c, d = parts((5,))
    with pytest.raises(ValueError, match=r"u must have shape \(..., H\) = \(5, 3\), got \(4, 3\)"):
        ops.ssm_step(state, u[:4], a_minus_one, b, c, d)
    with pytest.raises(TypeError, match=r"state must be one of complex64, complex128, got torch.float64"):
        ops.ssm_step(state.real, u, a_minus_one, b, c, d)
    with pytest.raises(TypeError, match=r"a_minus_one must be one of complex128, got torch.complex64"):
        ops.ssm_step(state, u, a_minus_one.to(torch.complex64), b, c, d)
    with pytest.raises(ValueError, match=r"p and q must have the same rank R"):
        ops.ssm_step(state, u, a_minus_one, b, c, d, c, c[:1])
    with pytest.raises(ValueError, match=r"p and q must have the same rank R, got \(2, 3, 4\) and None"):
        ops.ssm_step(state, u, a_minus_one, b, c, d, c)
    with pytest.raises(ValueError, match=r"p must have shape \(R, H=3, N=4\), got \(2, 3, 3\)"):
        ops.ssm_step(state, u, a_minus_one, b, c, d, c[..., :3], c)


class Seen(TorchDispatchMode):
    """Which ops go through torch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


class TestShortWay:
    """A step calls its kernel as it is only where torch would do nothing else."""

    @pytest.fixture
    def arguments(self) -> tuple[Tensor, ...]:
        return tuple(t.to(torch.complex64 if t.is_complex() else torch.float32) for t in parts((5,)))

    @pytest.fixture(params=["diagonal", "low rank"])
    def step(self, request: pytest.FixtureRequest) -> Callable[..., Any]:
        def step(state: Tensor, u: Tensor, a: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
            low_rank = () if request.param == "diagonal" else (0 * a[None], a[None])
            return ops.ssm_step(state, u, a, *rest, *low_rank)

        return step

    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The names of the registered ops that were called."""
        called: list[str] = []
        module = importlib.import_module("sequence_kernels.ops.ssm_step")
        op = module._ssm_step
        monkeypatch.setattr(module, "_ssm_step", lambda *a: called.append("ssm_step") or op(*a))
        return called

    def test_taken(
        self, step: Callable[..., Any], arguments: tuple[Tensor, ...], registered: list[str]
    ) -> None:
        want = step(*(t.double() if not t.is_complex() else t.to(C128) for t in arguments))
        assert len(registered) == 1
        for context in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
            with context:
                for got, exact in zip(step(*arguments), want, strict=True):
                    torch.testing.assert_close(got, exact.to(got.dtype))
        assert len(registered) == 1

    def test_not_taken_where_a_gradient_is_wanted(
        self, step: Callable[..., Any], arguments: tuple[Tensor, ...], registered: list[str]
    ) -> None:
        for i in range(len(arguments)):
            leaf = arguments[i].clone().requires_grad_()
            y, _ = step(*arguments[:i], leaf, *arguments[i + 1 :])
            assert y.requires_grad
        assert len(registered) == len(arguments)

    def test_not_taken_in_modes_transforms_and_traces(
        self, step: Callable[..., Any], arguments: tuple[Tensor, ...], registered: list[str]
    ) -> None:
        y, _ = step(*arguments)
        assert not registered
        with Seen() as seen:
            step(*arguments)
        assert "ssm_step" in seen.names
        with torch.autocast("cpu", torch.bfloat16):
            assert step(*arguments)[0].dtype == torch.bfloat16
        state, u, *rest = arguments

        def loss(u: Tensor) -> Tensor:
            return step(state, u, *rest)[0].square().sum()

        leaf = u.clone().requires_grad_()
        torch.testing.assert_close(torch.func.grad(loss)(u), *torch.autograd.grad(loss(leaf), leaf))
        over_rows = torch.func.vmap(lambda state, u: step(state, u, *rest)[0])
        torch.testing.assert_close(over_rows(state, u), y)
        before = len(registered)
        negated = torch.complex(torch.zeros_like(u), -u).conj().imag  # u, the negation pending
        assert negated.is_neg()
        torch.testing.assert_close(step(state, negated, *rest)[0], y)
        assert len(registered) == before + 1
        compiled = torch.compile(lambda *t: step(*t)[0], fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*arguments), y)
