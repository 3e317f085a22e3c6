"""The selective step of every backend against the scan and the duality, which it is one element of."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops

from ..devices import backends, device_of, gpu_backends, on_every_instruction_set
from ..sample import F64, Sample, real

every_backend = pytest.mark.parametrize(
    "backend", backends("selective_step") + gpu_backends("selective_step")
)
LIMIT = (0.05, 1.5)


@pytest.fixture(autouse=True)
def on_the_device_of_the_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tensors are made where the backend's kernels run."""
    parameters = getattr(request.node, "callspec", None)
    with torch.device(device_of(parameters.params.get("backend", "cpu") if parameters else "cpu")):
        yield


class Given(NamedTuple):
    """All tensors of a call, with one dimension of batch."""

    state: Tensor
    u: Tensor
    delta: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None

    def leaves(self) -> list[Tensor]:
        return [t for t in self if t is not None]

    def to(self, dtype: torch.dtype) -> Given:
        return Given(*(None if t is None else t.to(dtype) for t in self))


def draw(batch: int, heads: int, width: int | None, size: int, groups: int | None = None) -> Given:
    """width None: the form of the scan, else that of the duality. groups of b and c; None: not even one."""
    channels = (heads,) if width is None else (heads, width)
    front = () if groups is None else (groups,)
    return Given(
        real(batch, *channels, size),
        real(batch, *channels, seed=1),
        real(batch, heads, seed=2),
        -torch.exp(real(heads, *(() if width is not None else (size,)), seed=3)),
        real(batch, *front, size, seed=4),
        real(batch, *front, size, seed=5),
        real(*channels, seed=6),
        real(batch, *channels, seed=7),
        real(heads, seed=8),
    )


def by_sequence(given: Given, softplus: bool, limit: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    """By the op that it is one element of, in plain torch."""
    state, u, delta, a, b, c, d, z, bias = given
    u, delta, b, c = (t.unsqueeze(1) for t in (u, delta, b, c))
    z = None if z is None else z.unsqueeze(1)
    if a.dim() == 2:
        y, after = ops.selective_scan(
            u,
            delta,
            a,
            b,
            c,
            d,
            z,
            bias,
            delta_softplus=softplus,
            delta_limit=limit,
            initial_state=state,
            channels_last=True,
            backend="torch",
        )
    else:
        b, c = (t if t.dim() == 4 else t.unsqueeze(2) for t in (b, c))
        y, after = ops.ssd(
            u,
            delta,
            a,
            b,
            c,
            d,
            z,
            bias,
            dt_softplus=softplus,
            dt_limit=limit,
            initial_state=state,
            backend="torch",
        )
    return y.squeeze(1), after


def error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    scale = float(want.detach().norm()) if want.numel() else 0.0
    return float((got - want).detach().norm()) / max(scale, 1e-30) if want.numel() else 0.0


def with_gradients(results: tuple[Tensor, Tensor], leaves: list[Tensor]) -> list[Tensor]:
    weights = [torch.cos(torch.arange(r.numel(), dtype=F64)).view(r.shape).to(r.dtype) for r in results]
    return [*results, *torch.autograd.grad(results, leaves, weights, materialize_grads=True)]


#: batch, heads, width, size and groups. Vectors that are full, and not; more heads than a work item.
SIZES = [
    (2, 3, None, 4, None),
    (3, 70, None, 16, 2),
    (1, 9, None, 21, 3),
    (2, 4, 5, 16, 2),
    (3, 3, 64, 33, 1),
    (2, 70, 3, 1, None),
    (0, 3, None, 4, 1),
    (2, 0, None, 4, 1),
    (2, 3, 2, 0, 1),
    (2, 3, 0, 2, 1),
]


@pytest.mark.checks("oracle")
@every_backend
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("softplus", [False, True])
def test_it_is_one_element_of_the_sequence(backend: str, sizes: tuple[Any, ...], softplus: bool) -> None:
    given = draw(*sizes)
    leaves = [t.requires_grad_() for t in given.leaves()]
    for limit in (None, LIMIT):
        want = with_gradients(by_sequence(given, softplus, limit), leaves)
        got = ops.selective_step(*given, delta_softplus=softplus, delta_limit=limit, backend=backend)
        assert all(e < 1e-12 for e in map(error, with_gradients(got, leaves), want))


@every_backend
@pytest.mark.parametrize("sizes", SIZES[:6], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision(backend: str, sizes: tuple[Any, ...], dtype: torch.dtype) -> None:
    """Half precision rounds inputs and outputs alone; the state stays float32."""
    given = draw(*sizes).to(torch.float32)
    names = ("u", "delta", "b", "c", "z")
    given = given._replace(**{name: getattr(given, name).to(dtype) for name in names})
    want, want_state = by_sequence(given.to(F64), True, LIMIT)
    y, state = ops.selective_step(*given, delta_softplus=True, delta_limit=LIMIT, backend=backend)
    assert y.dtype == dtype
    assert error(y.double(), want) < max(torch.finfo(dtype).eps, 2e-6)
    assert error(state.double(), want_state) < 2e-6


@every_backend
@pytest.mark.parametrize("sizes", SIZES[:6], ids=str)
@pytest.mark.parametrize("indices", [None, torch.int32, torch.int64])
def test_in_place(backend: str, sizes: tuple[Any, ...], indices: torch.dtype | None) -> None:
    given = draw(*sizes).to(torch.float32)
    rows, options = len(given.u), {"delta_softplus": True, "backend": backend}
    want, want_state = ops.selective_step(*given, **options)
    if indices is None:
        assert torch.equal(ops.selective_step_(*given, **options), want)
        assert torch.equal(given.state, want_state)
        return
    pool = torch.full((rows + 3, *given.state.shape[1:]), math.nan)
    slots = torch.arange(rows).flip(0) + 1
    pool[slots] = given.state
    idle = given._replace(
        **{
            name: torch.cat((value, torch.full_like(value[:1], math.nan)))
            for name, value in given._asdict().items()
            if name in ("u", "delta", "b", "c", "z")
        }
    )
    places = torch.cat((slots, torch.tensor([-1]))).to(indices)
    y = ops.selective_step_(pool, *idle[1:], state_indices=places, **options)
    torch.testing.assert_close(y[:-1], want)
    assert torch.equal(y[-1], torch.zeros_like(y[-1]))
    torch.testing.assert_close(pool[slots], want_state)
    assert pool[[0, rows + 1, rows + 2]].isnan().all()


@every_backend
def test_any_layout_of_the_state_and_any_batch(backend: str) -> None:
    given = draw(6, 4, 3, 5, 2).to(torch.float32)
    want, want_state = ops.selective_step(*given, backend=backend)
    batched = {"u", "delta", "b", "c", "z", "state"}
    two = Given(*(t.unflatten(0, (2, 3)) if n in batched else t for n, t in given._asdict().items()))
    one = Given(*(t[0] if n in batched else t for n, t in given._asdict().items()))
    y, state = ops.selective_step(*two, backend=backend)
    assert torch.equal(y.flatten(0, 1), want)
    assert torch.equal(state.flatten(0, 1), want_state)
    y, state = ops.selective_step(*one, backend=backend)
    torch.testing.assert_close(y, want[0])
    torch.testing.assert_close(state, want_state[0])
    strided = torch.zeros(6, 4, 5, 6).mT[..., ::2, :].copy_(given.state)
    assert torch.equal(ops.selective_step_(strided, *given[1:], backend=backend), want)
    assert torch.equal(strided, want_state)


@every_backend
@pytest.mark.parametrize("width", [None, 2])
@pytest.mark.parametrize("rate", [-1e4, -1e-4, 0.0, 1e3])
@pytest.mark.parametrize("dt", [0.0, 1e-6, 1.0, 80.0])
def test_extremes(backend: str, width: int | None, rate: float, dt: float) -> None:
    given = draw(1, 9, width, 5)
    given = given._replace(
        a=torch.full_like(given.a, rate), delta=torch.full_like(given.delta, dt), delta_bias=None
    )
    want, want_state = by_sequence(given, False, None)
    y, state = ops.selective_step(*given.to(torch.float32), backend=backend)
    if rate * dt > 80:
        assert not state.isfinite().any()
        return
    assert error(y.double(), want) < 2e-6
    assert error(state.double(), want_state) < 2e-6
    if dt == 0:
        assert torch.equal(state, given.state.float())


@every_backend
@pytest.mark.parametrize("width", [None, 2])
def test_what_moves_a_state_is_added_at_once(backend: str, width: int | None) -> None:
    """The new state is within its own rounding of the exact one, however short the step: no drift."""
    given = draw(4, 40, width, 16).to(torch.float32)
    state = 1 + real(*given.state.shape).float().abs()
    given = given._replace(state=state, delta=given.delta.abs() * 1e-5, delta_bias=None)
    _, exact = ops.selective_step(*given.to(F64), backend="torch")
    _, after = ops.selective_step(*given, backend=backend)
    last_digit = torch.finfo(torch.float32).eps * torch.exp2(exact.log2().floor())
    assert float(((after - exact).abs() / last_digit).max()) < 0.51


@every_backend
@pytest.mark.parametrize("where", ["u", "delta", "z"])
def test_nan_stays_in_its_channel(backend: str, where: str) -> None:
    given = draw(2, 20, None, 3)
    spoilt = getattr(given, where).clone()
    spoilt[1, 13] = math.nan
    clean, _ = ops.selective_step(*given, delta_limit=(0, 1), backend=backend)
    y, _ = ops.selective_step(*given._replace(**{where: spoilt}), delta_limit=(0, 1), backend=backend)
    assert y[1, 13].isnan()
    y[1, 13] = clean[1, 13]
    assert torch.equal(y, clean)


def test_a_gradient_raises_and_autograd_notices() -> None:
    given = draw(2, 3, None, 4)
    with pytest.raises(RuntimeError, match="selective_step_ works in place and has no gradient"):
        ops.selective_step_(*given._replace(u=given.u.clone().requires_grad_()))
    kept = (given.state * torch.ones((), dtype=F64, requires_grad=True)).square().sum()
    ops.selective_step_(*given)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


def test_registration_and_compilation() -> None:
    indices = torch.tensor([1, -1])
    given = draw(2, 3, 2, 4, 1)
    op = torch.ops.sequence_kernels.selective_step_.default
    state, u, delta, a, b, c, d, z, bias = given
    args = (state.clone(), u, delta, a.unsqueeze(-1), b, c, d, z, bias, indices, True, 0.0, 1.0, "torch")
    torch.library.opcheck(op, args)

    def two_steps(state: Tensor, u: Tensor) -> Tensor:
        first = ops.selective_step_(state, u, *given[2:], state_indices=indices)
        return first + ops.selective_step_(state, u, *given[2:], state_indices=indices)

    twin = state.clone()
    compiled = torch.compile(two_steps, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(state, u), two_steps(twin, u))
    torch.testing.assert_close(state, twin)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": torch.ones(2, 3, 5, dtype=F64)}, r"state must have shape \(2, D=3, N=4\)"),
        ({"u": torch.ones(2, 4, dtype=F64)}, r"u must have shape \(2, D=3\), got \(2, 4\)"),
        ({"delta": torch.ones(3, dtype=F64)}, r"delta must have shape"),
        ({"b": torch.ones(2, 2, 4, dtype=F64)}, r"groups G of b must divide D=3, got G=2"),
        ({"c": torch.ones(2, 5, dtype=F64)}, r"c must have shape \(2, N=4\)"),
        ({"c": torch.ones(2, 3, 4, dtype=F64)}, r"b and c must have the same shape"),
        ({"z": torch.ones(2, 4, dtype=F64)}, r"z must have shape"),
        ({"d": torch.ones(4, dtype=F64)}, r"d must have shape \(D=3\), got \(4,\)"),
        ({"delta_bias": torch.ones(4, dtype=F64)}, r"delta_bias must have shape"),
        ({"a": torch.ones(3, 4, 1, dtype=F64)}, r"a must have shape \(D, N\) or \(H,\)"),
    ],
)
def test_shapes_are_named(changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.selective_step(*draw(2, 3, None, 4)._replace(**changes))


def test_types_and_slots_are_named() -> None:
    given = draw(2, 3, None, 4)
    with pytest.raises(TypeError, match=r"a must be one of float64, got torch.float32"):
        ops.selective_step(*given._replace(a=given.a.float()))
    with pytest.raises(TypeError, match=r"state must be one of float32, float64, got torch.bfloat16"):
        ops.selective_step(*given._replace(state=given.state.bfloat16()))
    with pytest.raises(ValueError, match=r"state_indices must be in -1 .. 1, got values in 0 .. 2"):
        ops.selective_step_(*given, state_indices=torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"state_indices must have shape \(B=2\), got \(1,\)"):
        ops.selective_step_(*given, state_indices=torch.tensor([0]))
    with pytest.raises(ValueError, match=r"delta_limit must be a pair in ascending order"):
        ops.selective_step(*given, delta_limit=(1, 0))


@pytest.mark.skipif("cpu" not in backends("selective_step"), reason="needs the native library")
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_every_instruction_set_and_number_of_threads(dtype: torch.dtype) -> None:
    bound = 2e-6 if dtype == torch.float32 else 1e-13

    def run(given: Given) -> tuple[Tensor, ...]:
        return ops.selective_step(*given, delta_softplus=True, delta_limit=LIMIT, backend="cpu")

    for sizes in ((40, 256, None, 33), (9, 8, 64, 65, 2)):  # enough to be shared out
        given = draw(*sizes).to(dtype)
        want = by_sequence(given.to(F64), True, LIMIT)
        for found in on_every_instruction_set(functools.partial(run, given)):
            assert all(error(g.double(), w) < bound for g, w in zip(found, want, strict=True))


def _sample(given: Given, **options: Any) -> Sample:
    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return ops.selective_step(*tensors, **options)

    return Sample("selective_step", function, tuple(given.leaves()))


SAMPLES = {
    "selective_step": _sample(draw(2, 2, None, 3), delta_softplus=True),
    "selective_step-heads": _sample(draw(1, 2, 2, 2, 1), delta_softplus=True, delta_limit=(0.1, 2.0)),
}
