"""The short causal convolution of every backend against the sum as written, in both layouts, split and step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops, use_backend

from ..devices import backends, device_of, gpu_backends, on_every_instruction_set
from ..sample import Sample, real

every_backend = pytest.mark.parametrize("backend", backends("causal_conv1d") + gpu_backends("causal_conv1d"))
every_layout = pytest.mark.parametrize("last", [False, True], ids=["elements", "channels"])


def _last(x: Tensor, weight: Tensor, bias: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """With channels side by side, however x comes."""
    x = x.mT.contiguous().mT if isinstance(x, Tensor) and x.dim() == 3 else x
    return ops.causal_conv1d(x, weight, bias, activation="silu", initial_state=before)


SAMPLES = {
    "causal_conv1d": Sample(
        "causal_conv1d",
        lambda x, w, b, s: ops.causal_conv1d(x, w, b, activation="silu", initial_state=s),
        (real(2, 3, 7), real(3, 4, seed=1), real(3, seed=2), real(2, 3, 3, seed=3)),
    ),
    "causal_conv1d-bare": Sample(
        "causal_conv1d", lambda x, w: ops.causal_conv1d(x, w), (real(2, 3, 5), real(3, 2, seed=1))
    ),
    "causal_conv1d_channels_last": Sample(
        "causal_conv1d_channels_last",
        _last,
        (real(2, 3, 7), real(3, 4, seed=1), real(3, seed=2), real(2, 3, 3, seed=3)),
    ),
}


def drawn(batch: int, channels: int, length: int, width: int, last: bool) -> list[Tensor]:
    """x, weight, bias and initial state in float64, x in one of the layouts."""
    x = real(batch, length, channels).mT if last else real(batch, channels, length)
    return [
        x,
        real(channels, width, seed=1),
        real(channels, seed=2),
        real(batch, channels, width - 1, seed=3),
    ]


def oracle(x: Tensor, weight: Tensor, bias: Tensor, before: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    known = torch.cat((before, x), -1)
    z = torch.stack(
        [(known[..., t : t + weight.shape[1]] * weight).sum(-1) + bias for t in range(x.shape[-1])], -1
    )
    return z * torch.sigmoid(z) if silu else z, known[..., x.shape[-1] :]


def close(got: Any, want: Any, tolerance: float = 1e-12) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu().double(), b.double(), rtol=tolerance, atol=tolerance)


#: Around the lanes of a vector, the rows of a work item and the channels of its parts; shorter than the state.
SIZES = [
    (2, 3, 1, 4),
    (1, 17, 2, 4),
    (2, 5, 33, 3),
    (1, 2, 130, 2),
    (2, 4, 129, 4),
    (1, 515, 5, 4),
    (1, 2, 40, 9),
    (2, 3, 9, 1),
]


@pytest.mark.checks("oracle")
@every_backend
@every_layout
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_against_the_sum_as_written(
    backend: str, last: bool, silu: bool, sizes: tuple[int, int, int, int]
) -> None:
    """Results and all gradients, those of the final state among them."""
    tensors = [t.requires_grad_() for t in drawn(*sizes, last)]
    want = oracle(*tensors, silu)
    weights = [real(*r.shape, seed=10) for r in want]
    slopes = torch.autograd.grad(want, tensors, weights)
    device = device_of(backend)
    moved = [t.detach().to(device).requires_grad_() for t in tensors]
    x, weight, bias, before = moved
    got = ops.causal_conv1d(
        x, weight, bias, activation="silu" if silu else None, initial_state=before, backend=backend
    )
    close(got, want)
    assert got[0].stride() == (x.stride() if sizes[1] > 1 and sizes[2] > 1 else got[0].stride())
    close(torch.autograd.grad(got, moved, [w.to(device) for w in weights]), slopes)


@every_backend
@every_layout
def test_any_split_and_steps(backend: str, last: bool) -> None:
    x, weight, bias, state = (t.to(device_of(backend)) for t in drawn(2, 3, 11, 4, last))
    whole = ops.causal_conv1d(x, weight, bias, initial_state=state, backend=backend)
    for cuts in ([2, 0, 1, 8], [1] * 11):
        parts, carried = [], state
        for part in x.split(cuts, -1):
            y, carried = ops.causal_conv1d(part, weight, bias, initial_state=carried, backend=backend)
            parts.append(y)
        close((torch.cat(parts, -1), carried), whole)


@every_backend
@every_layout
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(backend: str, last: bool, dtype: torch.dtype) -> None:
    x, weight, bias, before = (t.to(device_of(backend)) for t in drawn(2, 19, 37, 4, last))
    x, before = x.to(dtype).requires_grad_(), before.to(dtype).requires_grad_()
    y, final_state = ops.causal_conv1d(
        x, weight.float(), bias.float(), activation="silu", initial_state=before, backend=backend
    )
    assert y.dtype == final_state.dtype == dtype
    wide = [t.detach().double().requires_grad_() for t in (x, before)]
    want = oracle(wide[0], weight.float().double(), bias.float().double(), wide[1], True)
    eps = torch.finfo(dtype).eps
    close([y], [want[0]], eps)
    assert torch.equal(final_state.double(), want[1])
    got = torch.autograd.grad((y.sum(), final_state.sum()), (x, before))
    slopes = torch.autograd.grad((want[0].sum(), want[1].sum()), wide)
    assert [g.dtype for g in got] == [dtype, dtype]
    close(got, slopes, 2 * eps)
    same = [t.to(dtype) for t in (weight, bias)]
    assert ops.causal_conv1d(x, *same, backend=backend)[0].dtype == dtype


@every_backend
def test_channels_that_are_part_of_something_wider(backend: str) -> None:
    """As Mamba-2 splits one projection: nothing is copied, and the result is the same."""
    wide = real(2, 9, 12).to(device_of(backend))
    x = wide[..., 3:8].mT
    weight = real(5, 4, seed=1).to(x)
    with use_backend(backend):
        close(ops.causal_conv1d(x, weight), ops.causal_conv1d(x.contiguous(), weight))


def test_bad_arguments() -> None:
    x, weight, _, state = drawn(2, 3, 5, 4, False)
    with pytest.raises(ValueError, match=r"activation must be None or \"silu\", got 'relu'"):
        ops.causal_conv1d(x, weight, activation="relu")
    with pytest.raises(ValueError, match=r"weight must have shape \(D, W\) with W at least 1, got \(3, 0\)"):
        ops.causal_conv1d(x, weight[:, :0])
    with pytest.raises(
        ValueError, match=r"initial_state must have shape \(B=2, D=3, W-1=3\), got \(2, 3, 2\)"
    ):
        ops.causal_conv1d(x, weight, initial_state=state[..., 1:])
    with pytest.raises(TypeError, match=r"weight must be one of float32, bfloat16, got torch\.float64"):
        ops.causal_conv1d(x.bfloat16(), weight)


@pytest.mark.skipif("cpu" not in backends("causal_conv1d"), reason="needs the native library")
@every_layout
def test_every_instruction_set_and_number_of_threads(last: bool) -> None:
    given = [t.float().requires_grad_() for t in drawn(2, 37, 1100, 4, last)]

    def run(backend: str) -> tuple[Tensor, ...]:
        x, weight, bias, state = given
        results = ops.causal_conv1d(x, weight, bias, activation="silu", initial_state=state, backend=backend)
        return (*results, *torch.autograd.grad(results, given, [torch.cos(r) for r in results]))

    want = run("torch")
    for found in on_every_instruction_set(lambda: run("cpu")):
        for one, expected in zip(found, want, strict=True):
            assert float(((one - expected).norm() / expected.norm()).detach()) < 2e-6


@pytest.mark.skipif("cpu" not in backends("causal_conv1d"), reason="needs the native library")
@every_layout
@pytest.mark.parametrize("taps", [4, 12], ids=["usual taps", "more than a vector"])
def test_a_result_past_the_caches_is_that_of_its_parts(last: bool, taps: int) -> None:
    """From 8 MiB on results are written past the caches, by whole lines; the states go from part to part."""
    x, weight, bias, state = (t.float() for t in drawn(1, 544, 4096, taps, last))
    x = x.mT.contiguous().mT if last else x

    def part(times: slice, before: Tensor) -> tuple[Tensor, Tensor]:
        piece = x[..., times] if last else x[..., times].contiguous()
        return ops.causal_conv1d(piece, weight, bias, activation="silu", initial_state=before, backend="cpu")

    first, between = part(slice(None, 2048), state)
    second, final = part(slice(2048, None), between)
    want = torch.cat((first, second), -1)
    for got in on_every_instruction_set(lambda: part(slice(None), state)):
        assert float((got[0] - want).abs().max()) < 2e-6 * float(want.abs().max())
        assert torch.equal(got[1], final)
    assert torch.equal(part(slice(None), state)[0], want)
