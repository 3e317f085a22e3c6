"""State-space duality of every backend against the recurrence as written, split and step by step, at its extremes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sequence_kernels import ops

from ..devices import backends, device_of, gpu_backends, on_every_instruction_set
from ..sample import Sample, real

every_backend = pytest.mark.parametrize("backend", backends("ssd") + gpu_backends("ssd"))


def drawn(batch: int, length: int, heads: int, width: int, groups: int, states: int) -> dict[str, Tensor]:
    """Every tensor that the op takes, in float64; dt before its bias."""
    return {
        "x": real(batch, length, heads, width),
        "dt": 0.5 * real(batch, length, heads, seed=1),
        "a": -real(heads, seed=2).abs() - 0.1,
        "b": real(batch, length, groups, states, seed=3),
        "c": real(batch, length, groups, states, seed=4),
        "d": real(heads, width, seed=5),
        "z": real(batch, length, heads, width, seed=6),
        "dt_bias": 0.3 * real(heads, seed=7),
        "initial_state": real(batch, heads, width, states, seed=8),
    }


def _whole(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    """With all that the registered op takes: z gates its result."""
    x, dt, a, b, c, d, bias, state = tensors
    return ops.ssd(x, dt, a, b, c, d, None, bias, dt_softplus=True, initial_state=state)


_EVERY = tuple(t for name, t in drawn(2, 5, 4, 3, 2, 2).items() if name != "z")
SAMPLES = {
    "ssd": Sample("ssd", _whole, _EVERY),
    "ssd-bare": Sample("ssd", ops.ssd, tuple(drawn(2, 4, 2, 3, 1, 2).values())[:5]),
    "ssd-limited": Sample(
        "ssd",
        lambda x, dt, a, b, c, d: ops.ssd(x, dt, a, b, c, d, dt_limit=(0.01, 0.4)),
        (*tuple(drawn(2, 3, 2, 2, 2, 3).values())[:5], real(2, seed=9)),
    ),
}


def oracle(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Any = None, z: Any = None, dt_bias: Any = None,
    initial_state: Any = None, dt_softplus: bool = False, dt_limit: Any = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One element after the other."""
    heads = x.shape[2]
    dt = dt if dt_bias is None else dt + dt_bias
    dt = F.softplus(dt) if dt_softplus else dt
    dt = dt if dt_limit is None else dt.clamp(*dt_limit)
    b, c = (t.repeat_interleave(heads // t.shape[2], 2) for t in (b, c))
    state = x.new_zeros(*x[:, 0].shape, b.shape[-1]) if initial_state is None else initial_state
    rows = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * a)[..., None, None]
        state = decay * state + (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]
        rows.append((state @ c[:, t, ..., None]).squeeze(-1))
    y = torch.stack(rows, 1)
    if d is not None:
        y = y + (d.unsqueeze(-1) if d.dim() == 1 else d) * x
    return y if z is None else y * F.silu(z), state


def close(got: Any, want: Any, tolerance: float = 1e-11) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu().double(), b.double(), rtol=tolerance, atol=tolerance)


#: Around the elements of a chunk, the lanes of a vector, the rows of a tile; batch, L, H, P, G, N.
SIZES = [
    (2, 1, 2, 3, 1, 5),
    (1, 63, 3, 16, 1, 8),
    (2, 64, 2, 17, 2, 4),
    (1, 65, 4, 5, 2, 33),
    (1, 200, 6, 32, 2, 16),
    (2, 130, 1, 1, 1, 1),
    (1, 70, 20, 4, 1, 3),
]


@pytest.mark.checks("oracle")
@every_backend
@pytest.mark.parametrize("sizes", SIZES)
def test_against_the_recurrence_as_written(backend: str, sizes: tuple[int, ...]) -> None:
    """Results and all gradients, those of the final state among them."""
    tensors = {name: t.requires_grad_() for name, t in drawn(*sizes).items()}
    want = oracle(**tensors, dt_softplus=True, dt_limit=(0.1, 1.5))
    weights = [real(*r.shape, seed=10) for r in want]
    slopes = torch.autograd.grad(want, list(tensors.values()), weights)
    device = device_of(backend)
    moved = {name: t.detach().to(device).requires_grad_() for name, t in tensors.items()}
    got = ops.ssd(**moved, dt_softplus=True, dt_limit=(0.1, 1.5), backend=backend)
    close(got, want)
    close(torch.autograd.grad(got, list(moved.values()), [w.to(device) for w in weights]), slopes, 1e-10)


@every_backend
def test_any_split_and_steps(backend: str) -> None:
    given = {name: t.to(device_of(backend)) for name, t in drawn(2, 70, 4, 3, 2, 5).items()}
    state, sequences = given.pop("initial_state"), ("x", "dt", "b", "c", "z")
    whole = ops.ssd(**given, initial_state=state, dt_softplus=True, backend=backend)
    for cuts in ([3, 0, 66, 1], [1] * 70):
        rows, carried = [], state
        for parts in zip(*(given[name].split(cuts, 1) for name in sequences), strict=True):
            part = given | dict(zip(sequences, parts, strict=True))
            y, carried = ops.ssd(**part, initial_state=carried, dt_softplus=True, backend=backend)
            rows.append(y)
        close((torch.cat(rows, 1), carried), whole)


@every_backend
def test_parts_of_one_projection(backend: str) -> None:
    """As Mamba-2 splits it: x, b, c and dt lie in rows that are wider."""
    wide = real(2, 67, 41).to(device_of(backend))
    x, b, c, dt = wide.split([24, 6, 6, 5], -1)
    dt, a = dt[..., 1:].abs(), -torch.ones(4).to(wide)
    parts = (x.unflatten(-1, (4, 6)), dt, a, b.unflatten(-1, (2, 3)), c.unflatten(-1, (2, 3)))
    got = ops.ssd(*parts, backend=backend)
    close(got, ops.ssd(*(t.contiguous() for t in parts), backend=backend), 0)
    close(got, oracle(*(t.cpu() for t in parts)))


@every_backend
@pytest.mark.parametrize("step", [0.0, 1e-6, 1.0, 80.0])
@pytest.mark.parametrize("decay", [-1e-4, -1.0, -1e4])
def test_extreme_steps_and_decays(backend: str, step: float, decay: float) -> None:
    """Decays that underflow are 0, and nothing overflows: within rounding of float64, with gradients."""
    given = {name: t.float() for name, t in drawn(1, 100, 2, 4, 1, 6).items() if name not in ("z", "dt_bias")}
    given["dt"], given["a"] = torch.full_like(given["dt"], step), torch.full_like(given["a"], decay)
    narrow = {name: t.to(device_of(backend)).requires_grad_() for name, t in given.items()}
    wide = {name: t.double().requires_grad_() for name, t in given.items()}
    got, want = ops.ssd(**narrow, backend=backend), oracle(**wide)
    weights = [real(*r.shape, seed=10) for r in want]
    slopes = torch.autograd.grad(want, list(wide.values()), weights)
    found = torch.autograd.grad(
        got, list(narrow.values()), [w.to(r) for w, r in zip(weights, got, strict=True)]
    )
    for name, a, b in zip((*"ys", *given), (*got, *found), (*want, *slopes), strict=True):
        # the gradients of dt and a are differences of sums over a chunk: more roundings than the others'
        tolerance = 1e-5 if name in ("dt", "a") else 3e-6
        error = (a.detach().cpu().double() - b.detach()).norm()
        assert float(error) <= tolerance * float(b.detach().norm()), name


@every_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(backend: str, dtype: torch.dtype) -> None:
    halves = ("x", "dt", "b", "c")
    given = {
        name: t.to(dtype if name in halves else torch.float32)
        for name, t in drawn(1, 90, 4, 16, 2, 8).items()
    }
    del given["z"]
    narrow = {name: t.to(device_of(backend)).requires_grad_() for name, t in given.items()}
    wide = {name: t.double().requires_grad_() for name, t in given.items()}
    y, state = ops.ssd(**narrow, dt_softplus=True, backend=backend)
    want = oracle(**wide, dt_softplus=True)
    assert (y.dtype, state.dtype) == (dtype, torch.float32)
    close([y], want[:1], torch.finfo(dtype).eps)
    close([state], want[1:], 1e-5)
    found = torch.autograd.grad((y.sum(), state.sum()), list(narrow.values()))
    slopes = torch.autograd.grad((want[0].sum(), want[1].sum()), list(wide.values()))
    for name, a, b in zip(given, found, slopes, strict=True):
        assert a.dtype == given[name].dtype
        assert float((a.cpu().double() - b).norm() / b.norm()) < torch.finfo(dtype).eps, name


@every_backend
def test_nan_stays_in_its_row(backend: str) -> None:
    given = drawn(3, 66, 2, 4, 1, 3)
    clean = ops.ssd(**given, backend=backend)
    given["x"] = given["x"].clone()
    given["x"][1, 5] = float("nan")
    for got, want in zip(ops.ssd(**given, backend=backend), clean, strict=True):
        close([got[::2]], [want[::2]], 0)
        assert got[1].isnan().any()


def test_bad_arguments() -> None:
    given = drawn(2, 5, 4, 3, 2, 2)
    with pytest.raises(ValueError, match=r"G a divisor of H=4, got \(2, 5, 3, 2\)"):
        ops.ssd(**given | {"b": real(2, 5, 3, 2), "c": real(2, 5, 3, 2)})
    with pytest.raises(
        ValueError, match=r"dt_limit must be the least and the greatest time step, got \(1, 0\)"
    ):
        ops.ssd(**given, dt_limit=(1, 0))
    with pytest.raises(ValueError, match=r"d must have shape \(H=4, P=3\), got \(4, 4\)"):
        ops.ssd(**given | {"d": real(4, 4)})
    with pytest.raises(TypeError, match=r"b must be one of float64, got torch\.float32"):
        ops.ssd(**given | {"b": given["b"].float()})


@pytest.mark.skipif("cpu" not in backends("ssd"), reason="needs the native library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set_and_number_of_threads(dtype: torch.dtype) -> None:
    def run(backend: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        given = {name: t.to(dtype).requires_grad_() for name, t in drawn(2, 150, 8, 40, 1, 24).items()}
        results = ops.ssd(**given, dt_softplus=True, backend=backend)
        return (
            *results,
            *torch.autograd.grad(results, list(given.values()), [torch.cos(r) for r in results]),
        )

    want = run("torch", torch.float64)
    for found in on_every_instruction_set(lambda: run("cpu", dtype)):
        for one, expected in zip(found, want, strict=True):
            error = ((one - expected).norm() / expected.norm()).detach()
            assert float(error) < (5e-6 if dtype == torch.float32 else 1e-13)
