"""What holds for every op: derivatives, registration with torch, layouts of the inputs, NaN, errors, compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from sequence_kernels import BackendUnavailableError, ops, use_backend
from sequence_kernels.ops import dispatch

from .devices import backends, device_of, gpu_backends
from .sample import Sample
from .samples import SAMPLES, Recorded, every_call


def cases() -> list[Any]:
    cases = []
    for name, sample in SAMPLES.items():
        for backend in backends(sample.op):
            cases.append(pytest.param(sample, backend, id=f"{name}-{backend}"))
        for gpu in gpu_backends(sample.op):
            (backend,) = gpu.values
            cases.append(pytest.param(sample, backend, id=f"{name}-{backend}", marks=gpu.marks))
    return cases


every = pytest.mark.parametrize(("sample", "backend"), cases(), indirect=["sample"])


@pytest.fixture
def sample(request: pytest.FixtureRequest, backend: str) -> Sample:
    """The sample with its tensors where the backend's kernels run."""
    tensors = tuple(t.to(device_of(backend)) for t in request.param.tensors)
    return request.param._replace(tensors=tensors)


def outputs(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def fresh(sample: Sample) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in sample.tensors]


def test_every_op_has_a_sample() -> None:
    functional = {op for op in ops.operations() if not op.endswith(("_backward", "_"))}
    assert {s.op for s in SAMPLES.values()} == functional


@pytest.mark.checks("gradcheck")
@every
def test_first_and_second_derivatives(sample: Sample, backend: str) -> None:
    with use_backend(backend):
        assert gradcheck(sample.function, fresh(sample), fast_mode=False)
        assert gradgradcheck(sample.function, fresh(sample), fast_mode=True)


@every
def test_gradients_come_from_the_forward_s_backend(sample: Sample, backend: str) -> None:
    """A backward pass outside ``use_backend`` gives the same as one inside."""
    inputs = fresh(sample)
    with use_backend(backend):
        results = outputs(sample.function(*inputs))
    weights = [torch.randn_like(r) for r in results]
    later = torch.autograd.grad(results, inputs, weights)
    with use_backend(backend):
        inside = torch.autograd.grad(outputs(sample.function(*inputs)), inputs, weights)
    for a, b in zip(later, inside, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@every
def test_dual_numbers_are_refused_and_not_dropped(sample: Sample, backend: str) -> None:
    function, tensors = sample.function, sample.tensors
    with use_backend(backend):
        for i, tensor in enumerate(tensors):
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(tensor, torch.ones_like(tensor))
                with pytest.raises(NotImplementedError, match="forward-mode"):
                    function(*tensors[:i], dual, *tensors[i + 1 :])
                plain = [t.to(torch.complex64 if t.is_complex() else torch.float32) for t in tensors]
                plain[i] = forward_ad.make_dual(plain[i], torch.ones_like(plain[i]))
                with pytest.raises(NotImplementedError, match="forward-mode"):  # no short cut takes it either
                    function(*plain)


def test_tangents_are_refused_by_every_registered_op() -> None:
    """By hand, from an exported graph, in a backward pass: nothing but the registered op sees those calls."""
    calls = every_call()
    assert {call.op._opname for call in calls} == set(ops.operations())
    for op, args, _ in calls:
        for i, value in enumerate(args):
            if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
                with forward_ad.dual_level():
                    dual = forward_ad.make_dual(value.clone(), torch.ones_like(value))
                    with pytest.raises(NotImplementedError, match=f"^{op._opname} has no forward-mode"):
                        op(*args[:i], dual, *args[i + 1 :])


@every
def test_a_mode_that_only_looks_changes_nothing(sample: Sample, backend: str) -> None:
    """Below a TorchDispatchMode torch ignores pending conjugations, and so would plain torch in an op."""
    with use_backend(backend):
        inputs = fresh(sample)
        results = outputs(sample.function(*inputs))
        weights = [torch.randn_like(r) for r in results]
        gradients = torch.autograd.grad(results, inputs, weights)
        with Recorded():
            seen = outputs(sample.function(*inputs))
            seen_gradients = torch.autograd.grad(seen, inputs, weights)
    for got, want in zip((*seen, *seen_gradients), (*results, *gradients), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@every
def test_strided_and_expanded_inputs(sample: Sample, backend: str) -> None:
    with use_backend(backend):
        expected = outputs(sample.function(*sample.tensors))
        strided, shifted = [], []
        for t in sample.tensors:
            wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), float("nan"))
            strided.append(wide[..., ::2].copy_(t))
            shifted.append(t.new_full((t.numel() + 1,), float("nan"))[1:].view(t.shape).copy_(t))
        for inputs in (strided, shifted):
            for got, want in zip(outputs(sample.function(*inputs)), expected, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        first = sample.tensors[0]
        expanded = first[..., :1].expand(first.shape)
        got_all = outputs(sample.function(expanded, *sample.tensors[1:]))
        want_all = outputs(sample.function(expanded.contiguous(), *sample.tensors[1:]))
        for got, want in zip(got_all, want_all, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@every
def test_nan_in_is_nan_out(sample: Sample, backend: str) -> None:
    with use_backend(backend):
        for i in range(len(sample.tensors)):
            poisoned = [t.clone() for t in sample.tensors]
            poisoned[i][-1].view(-1)[0] = float("nan")  # of the last row: the first may be all padding
            assert any(torch.isnan(r).any() for r in outputs(sample.function(*poisoned)))


@every
def test_empty_memory_is_never_read(sample: Sample, backend: str) -> None:
    """With memory from torch.empty filled with NaN the results stay what they were."""
    with use_backend(backend):
        expected = outputs(sample.function(*sample.tensors))
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        try:
            results = outputs(sample.function(*sample.tensors))
        finally:
            torch.use_deterministic_algorithms(False)
    for got, want in zip(results, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@every
def test_float32_agrees_with_float64(sample: Sample, backend: str) -> None:
    with use_backend(backend):
        wide = outputs(sample.function(*sample.tensors))
        single = [t.to(torch.complex64 if t.is_complex() else torch.float32) for t in sample.tensors]
        for got, want in zip(outputs(sample.function(*single)), wide, strict=True):
            assert got.dtype in (torch.float32, torch.complex64)
            assert float((got - want).abs().norm() / want.abs().norm()) < 2e-6


@pytest.mark.parametrize("name", SAMPLES)
def test_registration(name: str) -> None:
    """torch's own checks: schema, autograd registration, fake tensors, and tracing with dynamic shapes."""
    sample = SAMPLES[name]
    op = getattr(torch.ops.sequence_kernels, sample.op).default
    with Recorded() as recorded:
        sample.function(*sample.tensors)
    (args,) = [call.args for call in recorded.calls if call.op is op]
    for requires_grad in (False, True):
        arguments = [
            a.detach().clone().requires_grad_(requires_grad and a.is_floating_point() | a.is_complex())
            if isinstance(a, Tensor)
            else a
            for a in args
        ]
        torch.library.opcheck(op, tuple(arguments))


def turned(t: Tensor) -> Tensor:
    """The same, its memory in another order."""
    return t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))


@every
def test_results_lie_as_the_fake_says(sample: Sample, backend: str) -> None:
    """Of the op and of its gradients: what Inductor makes of a graph reads memory as the fake laid it out."""
    with use_backend(backend), Recorded() as recorded:
        results = outputs(sample.function(*fresh(sample)))
        torch.autograd.backward(results, [torch.ones_like(r) for r in results])
    for call in recorded.calls:
        for lay in (Tensor.contiguous, turned):
            args = [lay(a.detach()) if isinstance(a, Tensor) else a for a in call.args]
            got = outputs(call.op(*args))
            with FakeTensorMode() as mode:
                fakes = outputs(call.op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args)))
            assert [y.stride() for y in got] == [y.stride() for y in fakes], call.op


@pytest.mark.parametrize(
    "name", ["vandermonde-pairs", "cauchy-pairs", "ssm_conv-diagonal", "fft_conv", "ssm_step"]
)
def test_compiles_to_one_graph(name: str) -> None:
    sample = SAMPLES[name]
    compiled = torch.compile(sample.function, fullgraph=True, dynamic=True, backend="aot_eager")
    inputs = fresh(sample)
    got, want = outputs(compiled(*inputs)), outputs(sample.function(*inputs))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    weights = [torch.randn_like(r) for r in want]
    for a, b in zip(
        torch.autograd.grad(got, inputs, weights), torch.autograd.grad(want, inputs, weights), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", SAMPLES)
def test_bad_arguments_name_the_argument(name: str) -> None:
    sample = SAMPLES[name]
    for i, tensor in enumerate(sample.tensors):

        def call(value: Any, i: int = i) -> Any:
            return sample.function(*sample.tensors[:i], value, *sample.tensors[i + 1 :])

        with pytest.raises(TypeError, match=r"must be a torch.Tensor, got list"):
            call(tensor.tolist())
        with pytest.raises(TypeError, match=r"must be one of"):
            call(torch.ones(tensor.shape, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"shape|dimension|scalar"):
            call(torch.ones((), dtype=tensor.dtype))
        if len(sample.tensors) == 1:  # there is nothing that it could be apart from
            assert call(tensor.to("meta")).device.type == "meta"
            continue
        with pytest.raises(ValueError, match=r"on meta|on cpu"):
            call(tensor.to("meta"))


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend must be None or one of"):
        ops.vandermonde(torch.ones(2), torch.ones(2), 3, backend="numpy")
    with pytest.raises(ValueError, match="backend must be None or one of"), use_backend("numpy"):
        pass
    with pytest.raises(ValueError, match="op must be one of"):
        ops.explain("convolution")


def test_an_impossible_backend_says_why() -> None:
    with pytest.raises(BackendUnavailableError, match=r"does not run on 'cpu' tensors; move the tensors"):
        ops.vandermonde(torch.ones(2), torch.ones(2), 3, backend="cuda")
    with (
        use_backend("cuda"),
        pytest.raises(BackendUnavailableError, match=r"fft_conv\(backend='cuda'\)"),
    ):
        ops.fft_conv(torch.ones(1, 1, 2), torch.ones(1, 1, 2))
    with pytest.raises(BackendUnavailableError, match="fft_conv has no 'cpu' implementation; it has: torch"):
        ops.fft_conv(torch.ones(1, 1, 2), torch.ones(1, 1, 2), backend="cpu")


def test_use_backend_is_nested_and_local_to_its_thread() -> None:
    from concurrent.futures import ThreadPoolExecutor

    x = torch.ones(2)
    free = dispatch.choose("vandermonde", None, x)
    with use_backend("torch"):
        assert dispatch.choose("vandermonde", None, x) == "torch"
        with use_backend(None):
            assert dispatch.choose("vandermonde", None, x) == free
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(dispatch.choose, "vandermonde", None, x).result() == free
        assert dispatch.choose("vandermonde", None, x) == "torch"
    assert dispatch.choose("vandermonde", None, x) == free


def test_explain_names_the_choice_and_the_reasons() -> None:
    text = ops.explain("fft_conv", "cpu", torch.float32)
    assert text.startswith("fft_conv on cpu, torch.float32: torch")
    assert "cpu: fft_conv has no 'cpu' implementation" in text


def test_autocast_keeps_parameters_in_float32() -> None:
    u, k = torch.randn(1, 2, 8), torch.randn(1, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.fft_conv(u, k)
        kernel = ops.vandermonde(torch.randn(2, 3), -torch.rand(2, 3), 5)
    assert y.dtype == torch.bfloat16
    assert kernel.dtype == torch.float32
    exact = ops.fft_conv(u.bfloat16().float(), k)
    torch.testing.assert_close(y, exact.bfloat16())
