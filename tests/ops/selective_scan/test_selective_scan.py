"""The selective scan of every backend against the recurrence, element by element in float64."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops

from ..devices import backends, on_every_instruction_set
from ..sample import C128, F64, Sample, complexes, real

every_backend = pytest.mark.parametrize("backend", backends("selective_scan"))


class Given(NamedTuple):
    """All arguments of a call, sequences (B, D, L)."""

    u: Tensor
    delta: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None
    initial_state: Tensor | None = None

    def leaves(self) -> list[Tensor]:
        return [t for t in self if t is not None]


def draw(
    batch: int,
    channels: int,
    length: int,
    size: int,
    groups: int | None = None,
    *,
    dtype: torch.dtype = F64,
    all_options: bool = True,
) -> Given:
    """groups: of b and c, 0 for constant ones, None for neither."""
    make = complexes if dtype.is_complex else real
    a = -torch.exp(real(channels, size)).to(dtype)
    if dtype.is_complex:
        a = a + 5j * real(channels, size, seed=1)
    front = (channels,) if groups == 0 else (batch,) if groups is None else (batch, groups)
    shape = (*front, size) if groups == 0 else (*front, size, length)
    steps = real(batch, channels, length, seed=3)
    given = Given(
        real(batch, channels, length, seed=2),
        steps if all_options else steps.abs(),
        a,
        make(*shape, seed=4),
        make(*shape, seed=5),
    )
    if not all_options:
        return given
    return given._replace(
        d=real(channels, seed=6),
        z=real(batch, channels, length, seed=7),
        delta_bias=real(channels, seed=8),
        initial_state=make(batch, channels, size, seed=9),
    )


def by_elements(given: Given, softplus: bool, limit: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    u, delta, a, b, c, d, z, bias, state = given
    channels, size = a.shape
    batch, _, length = u.shape

    def for_all(matrix: Tensor) -> Tensor:
        if matrix.dim() == 2:
            return matrix[None, :, :, None].expand(batch, channels, size, length)
        groups = matrix if matrix.dim() == 4 else matrix.unsqueeze(1)
        return groups.repeat_interleave(channels // groups.shape[1], 1)

    steps = delta if bias is None else delta + bias[:, None]
    steps = torch.log1p(torch.exp(steps)) if softplus else steps
    steps = steps.clamp(*limit) if limit else steps
    b, c = for_all(b), for_all(c)
    state = torch.zeros(batch, channels, size, dtype=a.dtype) if state is None else state
    outputs = []
    for t in range(length):
        drive = (steps[:, :, t] * u[:, :, t]).unsqueeze(-1)
        state = torch.exp(steps[:, :, t].unsqueeze(-1) * a) * state + drive * b[..., t]
        y = (c[..., t] * state).sum(-1)
        y = 2 * y.real if y.is_complex() else y
        outputs.append(y if d is None else y + d * u[:, :, t])
    y = torch.stack(outputs, -1) if outputs else u * 1
    return (y if z is None else y * z * torch.sigmoid(z)), state


def by_op(
    given: Given, softplus: bool, limit: tuple[float, float] | None, backend: str | None, channels_last: bool
) -> tuple[Tensor, Tensor]:
    *tensors, initial_state = given
    if channels_last:
        tensors = [
            t.movedim(-1, 1) if t is not None and i in (0, 1, 3, 4, 6) and t.dim() > 2 else t
            for i, t in enumerate(tensors)
        ]
    y, state = ops.selective_scan(
        *tensors,
        delta_softplus=softplus,
        delta_limit=limit,
        initial_state=initial_state,
        channels_last=channels_last,
        backend=backend,
    )
    return (y.mT if channels_last else y), state


def error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return (
        float((got - want).detach().norm() / max(float(want.detach().norm()), 1e-30)) if want.numel() else 0.0
    )


def with_gradients(results: tuple[Tensor, Tensor], leaves: list[Tensor]) -> list[Tensor]:
    weights = [torch.cos(torch.arange(r.numel(), dtype=F64)).view(r.shape).to(r.dtype) for r in results]
    return [*results, *torch.autograd.grad(results, leaves, weights, materialize_grads=True)]


#: batch, channels, length, size and groups. Lanes that are full, and not; chunks that are; groups within a vector.
SIZES = [
    (2, 3, 5, 4, None),
    (1, 16, 70, 16, 2),
    (2, 40, 130, 5, 1),
    (1, 6, 65, 3, 3),
    (2, 6, 70, 3, 0),
    (1, 130, 64, 2, None),
    (2, 48, 67, 2, 3),
    (2, 5, 0, 4, None),
    (2, 5, 0, 4, 0),
    (0, 5, 3, 4, 1),
]


@pytest.mark.checks("oracle")
@every_backend
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("channels_last", [False, True])
def test_against_the_recurrence(
    backend: str, sizes: tuple[Any, ...], dtype: torch.dtype, channels_last: bool
) -> None:
    given = draw(*sizes, dtype=dtype)
    leaves = [t.requires_grad_() for t in given.leaves()]
    for softplus, limit in ((True, None), (False, (0.05, 1.0))):
        want = with_gradients(by_elements(given, softplus, limit), leaves)
        got = with_gradients(by_op(given, softplus, limit, backend, channels_last), leaves)
        assert all(e < 1e-11 for e in map(error, got, want))


@every_backend
@pytest.mark.parametrize("sizes", SIZES[:4], ids=str)
def test_float32_is_within_rounding(backend: str, sizes: tuple[Any, ...]) -> None:
    given = draw(*sizes)
    single = Given(*(None if t is None else t.float().requires_grad_() for t in given))
    leaves = [t.requires_grad_() for t in given.leaves()]
    want = with_gradients(by_elements(given, True, None), leaves)
    got = with_gradients(by_op(single, True, None, backend, True), single.leaves())
    assert all(e < 2e-6 for e in map(error, got, want))


@every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_inputs_and_outputs_alone(backend: str, dtype: torch.dtype) -> None:
    given = draw(2, 24, 100, 16)
    halves = {name: getattr(given, name).to(dtype) for name in ("u", "delta", "b", "c", "z")}
    single = Given(*(None if t is None else t.float() for t in given))._replace(**halves)
    wide = given._replace(**{name: t.double() for name, t in halves.items()})
    y, state = by_op(single, True, None, backend, False)
    exact, exact_state = by_elements(wide, True, None)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    assert error(y.double(), exact) < torch.finfo(dtype).eps
    assert error(state.double(), exact_state) < 1e-5


@every_backend
@pytest.mark.parametrize("dtype", [F64, C128])
def test_any_split_is_the_whole(backend: str, dtype: torch.dtype) -> None:
    given = draw(2, 10, 140, 3, dtype=dtype)
    whole, state = by_op(given, True, None, backend, False)
    for cuts in ([64], [1, 65, 139], [0, 128, 128]):
        parts, here = [], given.initial_state
        for start, end in zip([0, *cuts], [*cuts, 140], strict=True):
            part = {name: getattr(given, name)[..., start:end] for name in ("u", "delta", "b", "c", "z")}
            y, here = by_op(given._replace(**part, initial_state=here), True, None, backend, False)
            parts.append(y)
        assert error(torch.cat(parts, -1), whole) < 1e-13
        assert error(here, state) < 1e-13


@every_backend
@pytest.mark.parametrize("step", [0.0, 1e-6, 1.0, 80.0])
@pytest.mark.parametrize("rate", [-1e4, -1e-4, 0.0])
def test_extreme_steps_and_rates(backend: str, step: float, rate: float) -> None:
    """A decay that underflows is zero; one of nothing keeps the state as it is."""
    given = draw(1, 9, 70, 2, all_options=False)
    given = given._replace(
        delta=torch.full_like(given.delta, step),
        a=torch.full_like(given.a, rate),
        initial_state=torch.ones(1, 9, 2, dtype=F64),
    )
    single = Given(*(None if t is None else t.float() for t in given))
    for call, bound in ((given, 1e-11), (single, 1e-5)):
        y, state = by_op(call, False, None, backend, False)
        want = by_elements(given, False, None)
        assert error(y.double(), want[0]) < bound
        assert error(state.double(), want[1]) < bound
    if step == 0:
        assert torch.equal(state, torch.ones(1, 9, 2))


@every_backend
def test_growth_is_infinite_where_it_should_be(backend: str) -> None:
    given = draw(1, 3, 5, 2, all_options=False)
    given = Given(*(None if t is None else t.float() for t in given))
    grows = given._replace(a=torch.full((3, 2), 1e3), delta=torch.ones(1, 3, 5))
    _, state = by_op(grows, False, None, backend, False)
    assert not state.isfinite().any()


@every_backend
@pytest.mark.parametrize("where", ["u", "delta", "z"])
def test_nan_stays_in_its_channel(backend: str, where: str) -> None:
    given = draw(2, 20, 70, 3)
    spoilt = getattr(given, where).clone()
    spoilt[1, 13, 40] = math.nan
    y, _ = by_op(given._replace(**{where: spoilt}), True, None, backend, False)
    clean, _ = by_op(given, True, None, backend, False)
    hit = y.isnan()
    assert hit[1, 13, 40]
    assert not hit[1, 13, :40].any()
    hit[1, 13] = False
    assert not hit.any()
    others = torch.ones(2, 20, dtype=torch.bool)
    others[1, 13] = False
    assert torch.equal(y[others], clean[others])


@pytest.mark.skipif("cpu" not in backends("selective_scan"), reason="needs the native library")
@pytest.mark.parametrize("dtype", [F64, C128])
def test_every_instruction_set_and_number_of_threads(dtype: torch.dtype) -> None:
    given = draw(2, 140, 130, 4, 2, dtype=dtype)  # enough for threads
    leaves = [t.requires_grad_() for t in given.leaves()]
    want = with_gradients(by_op(given, True, None, "torch", True), leaves)
    for found in on_every_instruction_set(
        lambda: with_gradients(by_op(given, True, None, "cpu", True), leaves)
    ):
        assert all(e < 1e-12 for e in map(error, found, want))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": torch.ones(2, 3, 4, dtype=F64)}, r"delta must have shape \(B=2, D=3, L=5\)"),
        ({"b": torch.ones(2, 2, 4, 5, dtype=F64)}, r"groups G of b must divide the channels D=3, got G=2"),
        ({"c": torch.ones(2, 4, 1, dtype=F64)}, r"c must have shape \(B=2, N=4, L=5\)"),
        ({"initial_state": torch.ones(2, 3, 3, dtype=F64)}, r"initial_state must have shape"),
    ],
)
def test_shapes_are_named(changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_op(draw(2, 3, 5, 4)._replace(**changes), True, None, None, False)


def test_types_and_limits_are_named() -> None:
    given = draw(2, 3, 5, 4)
    with pytest.raises(TypeError, match=r"b must be one of float64, got torch.complex128"):
        by_op(given._replace(b=given.b.to(C128)), True, None, None, False)
    with pytest.raises(ValueError, match=r"delta_limit must be a pair in ascending order, got \(1, 0\)"):
        by_op(given, True, (1, 0), None, False)
    with pytest.raises(TypeError, match=r"delta_limit must be a pair of numbers or None, got 3"):
        by_op(given, True, 3, None, False)  # type: ignore[arg-type]


def _sample(given: Given, **options: Any) -> Sample:
    names = [name for name, value in given._asdict().items() if value is not None]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return ops.selective_scan(**dict(zip(names, tensors, strict=True)), **options)

    return Sample("selective_scan", function, tuple(given.leaves()))


SAMPLES = {
    "selective_scan": _sample(draw(1, 2, 3, 2), delta_softplus=True),
    "selective_scan-complex-constant": _sample(
        draw(2, 2, 2, 1, 0, dtype=C128), delta_softplus=True, delta_limit=(0.1, 2.0)
    ),
    "selective_scan-channels-last": _sample(
        draw(1, 2, 2, 2, 2, all_options=False)._replace(
            u=real(1, 2, 2), delta=real(1, 2, 2, seed=1).abs(), b=real(1, 2, 2, 2), c=real(1, 2, 2, 2, seed=3)
        ),
        channels_last=True,
    ),
}
