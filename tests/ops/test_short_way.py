"""An op calls its implementation as it is only where torch would do nothing else."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import use_backend
from sequence_kernels.ops import calls, dispatch

from .sample import Sample
from .samples import SAMPLES, Recorded
from .test_contract import outputs

every = pytest.mark.parametrize("name", SAMPLES)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the ops whose kernels were called, when not by torch."""
    names: list[str] = []

    def noted(name: str, *rest: Any) -> Any:
        if sys._getframe(2).f_code.co_name == "call":
            names.append(name)
        return dispatch.able(name, *rest)

    monkeypatch.setattr(calls, "able", noted)
    return names


def called(sample: Sample, *tensors: Tensor) -> tuple[Tensor, ...]:
    return outputs(sample.function(*(tensors or sample.tensors)))


def unusual(t: Tensor) -> list[Tensor]:
    """The same numbers with a conjugate or a sign pending, and zeros that have no memory."""
    negated = torch.complex(torch.zeros_like(t.real), -t.real).conj().imag
    pending = t.conj().resolve_conj().conj() if t.is_complex() else negated
    assert pending.is_conj() or pending.is_neg()
    return [pending, torch._efficientzerotensor(t.shape, dtype=t.dtype)]


def near(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@every
def test_taken_by_ordinary_tensors(name: str, taken: list[str]) -> None:
    sample = SAMPLES[name]
    for context in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with context:
            called(sample)
    assert taken == [sample.op] * 3


@every
def test_results_are_contiguous_whatever_an_implementation_gives(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are by way of torch, whose tracers know the op's results as contiguous."""

    def turned(t: Tensor) -> Tensor:
        return t.movedim(0, -1).contiguous().movedim(-1, 0) if t.dim() > 1 else t.repeat_interleave(2)[::2]

    def able(*which: Any) -> Any:
        def run(*args: Any) -> Any:
            out = dispatch.able(*which)(*args)
            return turned(out) if isinstance(out, Tensor) else tuple(map(turned, out))

        return run

    with Recorded() as seen:
        called(SAMPLES[name])
    (call,) = seen.calls
    given = [isinstance(a, Tensor) for a in call.args].count(True)
    monkeypatch.setattr(calls, "able", able)
    results = calls.by_the_short_way(call.op, SAMPLES[name].op, given)(*call.args)
    assert all(t.is_contiguous() for t in outputs(results))


@every
def test_not_taken_where_torch_has_work(name: str, taken: list[str]) -> None:
    """For gradients, pending conjugates and signs, modes, autocast and transforms; all give the same."""
    sample = SAMPLES[name]
    want = called(sample)
    taken.clear()
    tensors = sample.tensors
    for i, t in enumerate(tensors):
        leaf = t.clone().requires_grad_()
        got = called(sample, *tensors[:i], leaf, *tensors[i + 1 :])
        near(got, want)
        assert any(y.requires_grad for y in got)
    with Recorded() as seen:
        near(called(sample), want)
    (call,) = seen.calls
    assert call.op._opname == sample.op
    given = [isinstance(a, Tensor) for a in call.args].count(True)
    way = calls.by_the_short_way(call.op, sample.op, given)
    for i, t in enumerate(call.args[:given]):
        if isinstance(t, Tensor) and t.dtype.is_floating_point | t.is_complex():
            for other in unusual(t):
                got = outputs(way(*call.args[:i], other, *call.args[i + 1 :]))
                if not other._is_zerotensor():
                    near(got, call.results)
    near(torch.vmap(lambda *t: called(sample, *t))(*(t[None] for t in tensors)), tuple(y[None] for y in want))
    with torch.autocast("cpu", torch.bfloat16), use_backend("torch"):
        called(sample)
    assert not taken


@every
def test_gradients_of_many_at_once(name: str, taken: list[str]) -> None:
    """torch.autograd.grad with ``is_grads_batched``, and under torch.vmap: whole Jacobians; and of gradients."""
    sample = SAMPLES[name]
    leaves = [t.clone().requires_grad_() for t in sample.tensors]
    first = outputs(sample.function(*leaves))[0]
    slopes = torch.autograd.grad(first, leaves, torch.ones_like(first), create_graph=True)
    for result in (first, next(s for s in slopes if s.requires_grad)):
        many = torch.stack((torch.ones_like(result), torch.full_like(result, 0.5)))

        def one(g: Tensor, result: Tensor = result, batched: bool = False) -> tuple[Tensor, ...]:
            found = torch.autograd.grad(
                result, leaves, g, retain_graph=True, allow_unused=True, is_grads_batched=batched
            )
            return tuple(t for t in found if t is not None)

        each = tuple(torch.stack(rows) for rows in zip(*(one(g) for g in many), strict=True))
        taken.clear()
        near(torch.vmap(one)(many), each)
        near(one(many, batched=True), each)
        assert not taken


HOLD_TENSORS_OF_THE_CPU = {
    "causal_conv1d_packed",
    "causal_conv1d_packed-bare",
    "selective_scan_packed",
    "selective_scan_packed-bare",
    "selective_scan_packed-complex-constant",
    "ssd_packed",
    "ssm_chunk-diagonal",
    "ssm_conv-dense-lengths",
    "ssm_conv_packed-dense",
    "ssm_conv_packed-diagonal",
}


@pytest.mark.parametrize(
    "name",
    sorted(SAMPLES.keys() - HOLD_TENSORS_OF_THE_CPU),
)
def test_meta_tensors_have_shapes(name: str) -> None:
    sample = SAMPLES[name]
    want = called(sample)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            got = called(sample, *(t.to("meta") for t in sample.tensors))
        assert [(y.shape, y.dtype, y.device.type) for y in got] == [(y.shape, y.dtype, "meta") for y in want]
