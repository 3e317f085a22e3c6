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
        if sys._getframe(1).f_code.co_name == "call":
            names.append(name)
        return dispatch.able(name, *rest)

    monkeypatch.setattr(calls, "able", noted)
    return names


def called(sample: Sample, *tensors: Tensor) -> tuple[Tensor, ...]:
    return outputs(sample.function(*(tensors or sample.tensors)))


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
    assert not taken
    for i, t in enumerate(tensors):  # unless what the op does first resolves them
        negated = torch.complex(torch.zeros_like(t.real), -t.real).conj().imag  # its sign is pending
        pending = t.conj().resolve_conj().conj() if t.is_complex() else negated
        near(called(sample, *tensors[:i], pending, *tensors[i + 1 :]), want)
    taken.clear()
    with Recorded() as seen:
        near(called(sample), want)
    assert [call.op._opname for call in seen.calls] == [sample.op]
    near(torch.vmap(lambda *t: called(sample, *t))(*(t[None] for t in tensors)), tuple(y[None] for y in want))
    with torch.autocast("cpu", torch.bfloat16), use_backend("torch"):
        called(sample)
    assert not taken
