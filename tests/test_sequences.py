"""Packed sequences, resets, masks and states on request, of every SequenceModule that the library exports."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import (
    DSS,
    GRU,
    LRU,
    S4,
    S4D,
    S5,
    S6,
    Mamba,
    Mamba2,
    MambaLM,
    SequenceDecoder,
    SequenceModel,
    SequenceModule,
)
from sequence_kernels.layers.pools import DownSpectralPool, Pool, Unpool
from sequence_kernels.trees import tensors_of

from .ops.samples import Recorded
from .test_law import (
    WIDTH,
    Factory,
    all_cases,
    causal_cases,
    close,
    forward,
    grows,
    keeps_length,
    layout_of,
    tensors,
)

F64 = torch.float64

#: Empty ones, of one element, and on and beside the edges of chunks of 16 and 32.
LENGTHS = [16, 0, 1, 15, 33, 0, 32, 17]


def lengths_for(module: SequenceModule) -> list[int]:
    """Those; of a spectral pool, which takes whole windows alone, others."""
    whole = any(isinstance(part, DownSpectralPool) for part in module.modules())
    return [2, 8, 34, 20] if whole else LENGTHS


def bounds_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def call(module: SequenceModule, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Any, ...]:
    """Forward on (batch, length, width), whatever the layout of the module."""
    y, *rest = module(x.mT if layout_of(module) else x, state, **kwargs)
    return (y.mT if layout_of(module) else y), *rest


def pools(module: SequenceModule) -> bool:
    return any(isinstance(part, (Pool, Unpool)) for part in module.modules())


def carries(module: SequenceModule) -> bool:
    """Whether the states of sequences of different lengths make one of a batch."""
    return module.causal and not pools(module)


@torch.no_grad()
def states_of(module: SequenceModule, count: int, dtype: torch.dtype = F64) -> Any:
    """States that are not those at the start."""
    state = module.default_state(count)
    if not tensors(state):
        return state
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 7, WIDTH, dtype=F64, generator=generator).to(dtype)
    return call(module, x, state)[1]


def one(state: Any, i: int) -> Any:
    if isinstance(state, Tensor):
        return state[i : i + 1]
    if isinstance(state, (list, tuple)):
        return type(state)(one(part, i) for part in state)
    return state


@all_cases
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-9), (torch.float32, 1e-4)])
def test_packed_sequences_are_as_each_alone(make: Factory, dtype: torch.dtype, tolerance: float) -> None:
    module = make().to(dtype)
    lengths = lengths_for(module)
    torch.manual_seed(1)
    x = torch.randn(1, sum(lengths), WIDTH, dtype=dtype, requires_grad=True)
    state = states_of(module, len(lengths), dtype) if carries(module) else None
    y, after = call(module, x, state, cu_seqlens=bounds_of(lengths))
    assert (after is None) == (state is None)
    alone = x.detach().clone().requires_grad_()
    parts = [
        call(module, part, None if state is None else one(state, i))
        for i, part in enumerate(alone.split(lengths, 1))
    ]
    whole = torch.cat([part for part, _ in parts], 1)
    close(y, whole, tolerance)
    if state is not None:
        more = torch.randn(1, 3 * len(lengths), WIDTH, dtype=dtype)
        goes_on, _ = call(module, more, after, cu_seqlens=bounds_of([3] * len(lengths)))
        for i, (_, end) in enumerate(parts):
            close(goes_on[:, 3 * i : 3 * i + 3], call(module, more[:, 3 * i : 3 * i + 3], end)[0], tolerance)
            if not grows(module):
                close(one(after, i), end, tolerance)
    weight = torch.randn_like(whole)
    parameters = [p for p in module.parameters() if p.requires_grad]
    got = torch.autograd.grad((y * weight).sum(), [x, *parameters], allow_unused=True)
    want = torch.autograd.grad((whole * weight).sum(), [alone, *parameters], allow_unused=True)
    for left, right in zip(got, want, strict=True):
        if right is not None:
            least = (
                1e-6 if dtype == F64 else 1e-3
            )  # a bias of attention's keys has no effect, and no gradient
            scale = max(float(right.abs().max()), least)
            assert float((left - right).abs().max()) <= 10 * tolerance * scale


@all_cases
def test_what_is_not_finite_stays_in_its_sequence(make: Factory) -> None:
    module = make()
    torch.manual_seed(1)
    lengths = lengths_for(module)
    x = torch.randn(1, sum(lengths), WIDTH)
    bounds, longest = bounds_of(lengths), lengths.index(max(lengths))
    bad = x.clone()
    bad[:, bounds[longest] + 3 : bounds[longest] + 9] = torch.nan
    clean, spoiled = (call(module, each, cu_seqlens=bounds)[0] for each in (x, bad))
    ends = [int(call(module, part)[0].shape[1]) for part in x.split(lengths, 1)]
    for i, (left, right) in enumerate(zip(clean.split(ends, 1), spoiled.split(ends, 1), strict=True)):
        assert torch.equal(left, right) == (i != longest)


@all_cases
def test_resets_begin_anew(make: Factory) -> None:
    module = make().double()
    if not keeps_length(module):
        x = torch.randn(2, 12, WIDTH, dtype=F64)
        with pytest.raises(ValueError, match="a window would span two sequences"):
            call(module, x, reset=torch.ones(2, 12, dtype=torch.bool))
        return
    torch.manual_seed(1)
    x = torch.randn(2, 40, WIDTH, dtype=F64)
    reset = torch.zeros(2, 40, dtype=torch.bool)
    cuts: list[list[int]] = [[0, 16, 17, 33], [5, 39]]
    if lengths_for(module) != LENGTHS:
        cuts = [[0, 16, 18, 34], [6, 38]]
    for row, places in enumerate(cuts):
        reset[row, places] = True
    y, _ = call(module, x, reset=reset)
    for row, places in enumerate(cuts):
        for begin, end in pairwise(sorted({0, *places, 40})):
            close(y[row : row + 1, begin:end], call(module, x[row : row + 1, begin:end])[0], 1e-9)


@causal_cases
def test_resets_in_blocks_are_those_in_steps(make: Factory) -> None:
    module = make().double()
    state = None if pools(module) else states_of(module, 2)
    if pools(module):
        return  # the windows of its rows would fill up at different times: refused, see below
    torch.manual_seed(1)
    x = torch.randn(2, 12, WIDTH, dtype=F64)
    reset = torch.rand(2, 12) < 0.3
    y, after = call(module, x, state, reset=reset)
    stepper = None if grows(module) else module.stepper((2,), dtype=F64)
    if stepper is not None:
        stepper.state = state
    for at in range(12):
        step, state = module.step(x[:, at], state, reset=reset[:, at])
        close(y[:, at], step, 1e-9)
        if stepper is not None:
            stepper.reset(reset[:, at])
            close(y[:, at], stepper.step(x[:, at]), 1e-9)
    more = torch.randn(2, 3, WIDTH, dtype=F64)
    close(call(module, more, after)[0], call(module, more, state)[0], 1e-9)
    # What is padding does not count.
    lengths = torch.tensor([0, 9])
    state = states_of(module, 2)
    y, after = call(module, x, state, reset=reset, lengths=lengths)
    alone, end = call(module, x[1:, :9], one(state, 1), reset=reset[1:, :9])
    close(y[1:, :9], alone, 1e-9)
    goes_on = call(module, more, after)[0]
    close(goes_on[:1], call(module, more[:1], one(state, 0))[0], 1e-9)
    close(goes_on[1:], call(module, more[1:], end)[0], 1e-9)


#: But for a kernel that is normalised over the length of each call, padding counted, as ``S4`` says of ``lengths``.
masked_cases = pytest.mark.parametrize(
    "make", [case for case in all_cases.args[1] if "dss-of-each-call" not in case.id]
)


@masked_cases
def test_a_mask_is_as_the_real_elements_alone(make: Factory) -> None:
    module = make().double()
    torch.manual_seed(1)
    runs = [(0, 30), (7, 30), (0, 12), (9, 21), (30, 30)]
    if lengths_for(module) != LENGTHS:
        runs = [(0, 32), (8, 32), (0, 12), (9, 21)]
    long = runs[0][1]
    x = torch.full((len(runs), long, WIDTH), torch.nan, dtype=F64)
    mask = torch.zeros(len(runs), long, dtype=torch.int64)
    for row, (begin, end) in enumerate(runs):
        x[row, begin:end] = torch.randn(end - begin, WIDTH, dtype=F64)
        mask[row, begin:end] = 1
    state = states_of(module, len(runs)) if carries(module) else None
    x.requires_grad_()
    y, after = call(module, x, state, attention_mask=mask)
    for row, (begin, end) in enumerate(runs):
        own = None if state is None else one(state, row)
        want, last = call(module, x[row : row + 1, begin:end].detach(), own)
        if isinstance(module, SequenceDecoder) or keeps_length(module):
            got = y[row : row + 1, begin:end]
        else:
            got = y[row : row + 1, : want.shape[1]]
        close(got, want, 1e-9)
        if state is not None:
            more = torch.randn(1, 3, WIDTH, dtype=F64)
            close(call(module, more, one(after, row))[0], call(module, more, last)[0], 1e-9)
    if keeps_length(module):
        kept = torch.where(mask.bool().unsqueeze(-1), y, 0) if y.dim() == 3 else y
        gradient = torch.autograd.grad(kept.sum(), x)[0]
        assert gradient.isfinite().all()
        assert (gradient[mask == 0] == 0).all()


@causal_cases
def test_states_at_positions(make: Factory) -> None:
    module = make().double()
    torch.manual_seed(1)
    x = torch.randn(2, 6, WIDTH, dtype=F64)
    state = module.default_state(2)
    whole, last = call(module, x, state)
    asked = ([0, 3, 6], [0, 3, 6]), (2, [2, 4, 6]), ([2, 4], [2, 4]), ("all", [1, 2, 3, 4, 5, 6])
    for wanted, places in asked:
        y, after, states = call(module, x, state, states_at=wanted)
        close(y, whole, 1e-9)
        close(after, last, 1e-9)
        assert len(states) == len(places)
        for place, found in zip(places, states, strict=True):
            close(found, forward(module, x[:, :place], state)[1], 1e-9)
    assert call(module, x, states_at=torch.tensor([4]))[1] is None


@causal_cases
def test_gradients_of_states_at_positions(make: Factory) -> None:
    module = make().double()
    torch.manual_seed(1)
    x = torch.randn(2, 5, WIDTH, dtype=F64, requires_grad=True)

    def slopes(states: list[Any]) -> tuple[Tensor, ...]:
        parts = [part for state in states for part in tensors_of(state) if part.requires_grad]
        if not parts:
            return ()
        torch.manual_seed(2)
        weights = [torch.randn(part.shape, dtype=part.dtype) for part in parts]
        leaves = [x, *module.parameters()]
        return torch.autograd.grad(parts, leaves, weights, allow_unused=True, materialize_grads=True)

    before = module.default_state(2)
    got = slopes(call(module, x, before, states_at=2)[2])
    want = slopes([forward(module, x[:, :place], before)[1] for place in (2, 4)])
    for one, other in zip(got, want, strict=True):
        close(one, other, 1e-9)


@pytest.mark.parametrize("make", [S4D, S4], ids=["S4D", "S4"])
def test_every_kth_state_costs_one_call_more(make: Any) -> None:
    """That of the ends of the pieces, whose states are then known."""
    module = make(WIDTH, transposed=False).eval()
    with Recorded() as recorded:
        module(torch.randn(2, 64, WIDTH), states_at=4)
    assert [call.op._opname for call in recorded.calls].count("ssm_conv") == 2


@all_cases
def test_what_does_not_fit_is_refused(make: Factory) -> None:
    module = make()
    x, bounds = torch.randn(1, 12, WIDTH), torch.tensor([0, 5, 12])
    for given, said in (
        (torch.tensor([0, 5, 13]), "cu_seqlens must go from 0 to the number of elements, 12, got 0 .. 13"),
        (torch.tensor([0, 7, 5, 12]), "cu_seqlens must ascend, got 7 before 5"),
        (torch.tensor([0]), r"cu_seqlens must have shape \(sequences \+ 1,\)"),
        (torch.tensor([[0, 12]]), r"cu_seqlens must have shape \(sequences \+ 1,\)"),
    ):
        with pytest.raises(ValueError, match=said):
            call(module, x, cu_seqlens=given)
    with pytest.raises(TypeError, match="cu_seqlens must be one of int32, int64"):
        call(module, x, cu_seqlens=bounds.float())
    with pytest.raises(
        ValueError, match=r"x must be one row of all sequences, \(1, elements, ...\), with cu_"
    ):
        call(module, x.expand(2, -1, -1), cu_seqlens=bounds)
    if module.causal and not grows(module):
        with pytest.raises(ValueError, match=r"reset must have shape \(batch=1\), got \(2,\)"):
            module.step(x[:, 0], reset=torch.ones(2))
    with pytest.raises(ValueError, match="cu_seqlens cannot be given together with reset"):
        call(module, x, cu_seqlens=bounds, reset=torch.zeros(1, 12))
    if "lengths" in (module.takes() or ("lengths",)):
        with pytest.raises(ValueError, match="cu_seqlens cannot be given together with lengths"):
            call(module, x, cu_seqlens=bounds, lengths=torch.tensor([3]))
    with pytest.raises(
        ValueError, match=r"attention_mask must have shape \(batch=1, length=12\), got \(1, 11\)"
    ):
        call(module, x, attention_mask=torch.ones(1, 11))
    with pytest.raises(
        ValueError, match="attention_mask must have one run of real elements a row, but row 0"
    ):
        call(module, x, attention_mask=torch.tensor([[1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]]))
    with pytest.raises(TypeError, match=r"attention_mask must be a .*Tensor, got list"):
        call(module, x, attention_mask=[[1] * 12])
    with pytest.raises((TypeError, ValueError), match=r"no argument 'reset_state'|did you mean"):
        call(module, x, reset_state=bounds)


#: Layers that know a step in time; others refuse any rate but 1.
timed_cases = pytest.mark.parametrize(
    "make",
    [
        c
        for c in causal_cases.args[1]
        if c.id.split("-")[0] in ("S4", "S4D", "DSS", "S5", "LRU", "SequenceModel")
    ],
)


@timed_cases
def test_a_rate_for_each_row(make: Factory) -> None:
    module = make().double()
    if pools(module) or grows(module):
        return
    torch.manual_seed(1)
    x, rate = torch.randn(3, 20, WIDTH, dtype=F64), torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    if any(getattr(part, "l_max", None) for part in module.modules()) and isinstance(module, S4D):
        with pytest.raises(ValueError, match="a kernel cut off at l_max=200 has one length"):
            call(module, x, rate=rate)
        return
    state = states_of(module, 3)
    parameters = [p for p in module.parameters() if p.requires_grad]
    lengths = torch.tensor([20, 7, 0])
    for given in ({}, {"lengths": lengths}):
        y, after = call(module, x, state, rate=rate, **given)
        alone = [
            call(
                module,
                x[i : i + 1],
                one(state, i),
                rate=float(rate[i]),
                **{k: v[i : i + 1] for k, v in given.items()},
            )
            for i in range(3)
        ]
        close(y, torch.cat([part for part, _ in alone]), 1e-9)
        for i, (_, end) in enumerate(alone):
            close(one(after, i), end, 1e-9)
    y, after = call(module, x, state, rate=rate)
    weight = torch.randn_like(y)
    got = torch.autograd.grad((y * weight).sum(), parameters, allow_unused=True)
    whole = torch.cat([call(module, x[i : i + 1], one(state, i), rate=float(rate[i]))[0] for i in range(3)])
    want = torch.autograd.grad((whole * weight).sum(), parameters, allow_unused=True)
    for left, right in zip(got, want, strict=True):
        if right is not None:
            assert float((left - right).abs().max()) <= 1e-8 * max(float(right.abs().max()), 1e-6)
    for at in range(20):
        step, state = module.step(x[:, at], state, rate=rate)
        close(y[:, at], step, 1e-9)
    close(after, state, 1e-9)
    with pytest.raises(ValueError, match=r"rate must be one real number, or one for each row, shape \(3,\)"):
        call(module, x, rate=rate[:2])
    with pytest.raises(ValueError, match="rate must be above 0"):
        call(module, x, rate=-rate)


UNEVEN: dict[str, Factory] = {
    "S4D": lambda: S4D(WIDTH, 8, transposed=False),
    "S4D-real": lambda: S4D(WIDTH, 8, measure="diag-real", channels=2, n_ssm=2),
    "DSS": lambda: DSS(WIDTH, 4),
    "S5": lambda: S5(WIDTH, 8),
    "LRU": lambda: LRU(WIDTH, 5, r_min=0.5),
    "SequenceModel": lambda: SequenceModel(
        WIDTH, 2, layer=[{"_name_": "s4d", "d_state": 4}, "ff"], residual="R"
    ),
}


@pytest.mark.parametrize("make", UNEVEN.values(), ids=UNEVEN)
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-9), (torch.float32, 1e-5)])
def test_a_rate_for_each_element(make: Factory, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(1)
    module = make().to(dtype).eval()
    x = torch.randn(3, 20, WIDTH, dtype=dtype, requires_grad=True)
    rate = (
        torch.randn(3, 20, dtype=dtype).exp() * torch.tensor([1e-3, 1.0, 30.0], dtype=dtype).view(3, 1)
    ).detach()
    rate.requires_grad_()
    start = states_of(module, 3, dtype)
    y, after = call(module, x, start, rate=rate)
    outputs, state = [], start
    for at in range(20):
        step, state = module.step(x[:, at], state, rate=rate[:, at])
        outputs.append(step)
    whole = torch.stack(outputs, 1)
    close(y, whole, tolerance)
    close(after, state, tolerance)
    wrt = [x, rate, *(p for p in module.parameters() if p.requires_grad)]
    weight = torch.randn_like(y)
    got = torch.autograd.grad((y * weight).sum(), wrt, allow_unused=True)
    want = torch.autograd.grad((whole * weight).sum(), wrt, allow_unused=True)
    for left, right in zip(got, want, strict=True):
        if right is not None:
            assert float((left - right).norm()) <= 20 * tolerance * max(float(right.norm()), 1e-6)
    # Parts, and rows that end before.
    first, state = call(module, x[:, :7], start, rate=rate[:, :7])
    second, end = call(module, x[:, 7:], state, rate=rate[:, 7:])
    close(torch.cat((first, second), 1), y, 10 * tolerance)
    close(end, after, 10 * tolerance)
    lengths = torch.tensor([20, 7, 0])
    y, after = call(module, x, start, rate=rate, lengths=lengths)
    close(y[:2, :7], first[:2], 10 * tolerance)
    close(one(after, 1), one(state, 1), 10 * tolerance)
    close(one(after, 2), one(start, 2), tolerance)
    even, _ = call(module, x, start, rate=torch.full((3, 20), 2.0, dtype=dtype))
    close(even, call(module, x, start, rate=2.0)[0], 10 * tolerance)


def test_a_rate_for_each_element_is_refused_where_there_is_none() -> None:
    x, rate = torch.randn(2, 9, WIDTH), torch.ones(2, 9)
    for module in (S4(WIDTH, 8, transposed=False), S4D(WIDTH, 8, disc="bilinear", transposed=False)):
        with pytest.raises(ValueError, match="rate for each element needs a diagonal state matrix"):
            module(x, rate=rate)
    with pytest.raises(ValueError, match=r"rate must be one real number, or one for each row"):
        GRU(WIDTH)(x, rate=rate)
    for other in (GRU(WIDTH), S6(WIDTH)):
        with pytest.raises(ValueError, match="rate must be 1, got one for each row"):
            other(x, rate=rate[:, 0])
    layer = S4D(WIDTH, 8, transposed=False)
    with pytest.raises(ValueError, match=r"rate for each element must be real, of shape \(2, 9\)"):
        layer(x, rate=rate[:, :8])
    with pytest.raises(ValueError, match="rate must be above 0"):
        layer(x, rate=rate - 1)
    with pytest.raises(ValueError, match="rate for each element cannot be given together with reset"):
        layer(x, rate=rate, reset=rate > 2)


def test_a_language_model_s_tokens() -> None:
    torch.manual_seed(0)
    model = MambaLM(17, 16, 2, d_state=4).double().eval()
    lengths = [5, 0, 20, 1]
    tokens = torch.randint(0, 17, (1, sum(lengths)))
    state = model.default_state(len(lengths))
    y, after = model(tokens, state, cu_seqlens=bounds_of(lengths))
    for i, (part, got) in enumerate(zip(tokens.split(lengths, 1), y.split(lengths, 1), strict=True)):
        want, end = model(part, model.default_state(1))
        close(got, want, 1e-9)
        close(one(after, i), end, 1e-9)
    rows = torch.randint(0, 17, (2, 9))
    mask = torch.ones(2, 9)
    mask[0, :4] = 0
    close(model(rows, attention_mask=mask)[0][:1, 4:], model(rows[:1, 4:])[0], 1e-9)
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[1, 3] = True
    close(model(rows, reset=reset)[0][1:, 3:], model(rows[1:, 3:])[0], 1e-9)
    y, _, states = model(rows, states_at=[4])
    close(states[0], model(rows[:, :4], model.default_state(2))[1], 1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: S4D(WIDTH, 4, transposed=False),
        lambda: Mamba(WIDTH, 4),
        pytest.param(lambda: Mamba2(WIDTH, 4, headdim=3), marks=pytest.mark.thorough),
    ],
    ids=["S4D", "Mamba", "Mamba2"],
)
def test_one_graph_serves_all_packed_sequences(make: Callable[[], Any]) -> None:
    layer = make().eval()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    torch._dynamo.utils.counters.clear()
    for lengths in ([5, 20, 1], [7, 0, 33], [64, 3, 2]):
        x, bounds, state = torch.randn(1, sum(lengths), WIDTH), bounds_of(lengths), layer.default_state(3)
        for got, want in zip(*(f(x, state, cu_seqlens=bounds) for f in (compiled, layer)), strict=True):
            close(got, want, 1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_the_tests_can_fail() -> None:
    """A layer that takes packed sequences for one does not pass for one that keeps them apart."""

    class Leaky(S4D):
        def forward(self, x: Tensor, state: Any = None, cu_seqlens: Any = None, **kwargs: Any) -> Any:
            return super().forward(x, state, **kwargs)

    with pytest.raises(AssertionError):
        close(
            Leaky(WIDTH, d_state=8, transposed=False)(
                x := torch.randn(1, 40, WIDTH), cu_seqlens=bounds_of([20, 20])
            )[0],
            S4D(WIDTH, d_state=8, transposed=False)(x)[0],
            0.0,
        )


def test_a_stack_with_pools_says_where_its_sequences_end() -> None:
    torch.manual_seed(0)
    model = SequenceModel(
        WIDTH, 2, layer={"_name_": "s4d", "d_state": 4}, pool={"_name_": "linear", "stride": 2}
    )
    lengths = torch.tensor([9, 0, 4, 21])
    y, _ = model(torch.randn(1, 34, WIDTH), cu_seqlens=bounds_of(lengths.tolist()))
    assert model.lengths(lengths).tolist() == [2, 0, 1, 5]
    assert y.shape[1] == 8
