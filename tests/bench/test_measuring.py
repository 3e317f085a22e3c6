"""Statistics, interleaving, calls and the same-answer check."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from bench.harness import memory, worker
from bench.harness.calls import Prepared, difference, prepare
from bench.harness.clock import CpuClock, Sampler, interleave
from bench.harness.declare import BOTH, DEFAULT, FORWARD, Peer, grid, label
from bench.harness.plan import Job
from bench.harness.stats import Summary, quantile, ratio

from .toy import TOY, added, inputs, scaled, wrong, wrong_gradient


def test_quantiles_interpolate_between_order_statistics():
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([1, 2, 3, 4], 0.5) == 2.5
    assert quantile([0, 10], 0.2) == 2
    assert Summary.of([5, 1, 2, 3, 4, 0]) == Summary(median=2.5, q20=1, q80=4, n=6)
    with pytest.raises(ValueError, match="at least one"):
        Summary.of([])


def test_a_ratio_is_the_median_of_the_rounds_and_lies_inside_their_spread():
    found = ratio([1, 1, 2], [4, 4, 8])
    assert found == Summary(median=4, q20=4, q80=4, n=3)  # a machine that slows down leaves the ratio alone
    assert ratio([1, 2, 4], [4, 4, 4]).median == 2
    assert ratio([1, 2, 4], [4, 4, 4]).q80 > 2.5
    crossed = ratio([1, 2, 3, 4, 100], [1, 90, 3, 4, 5])  # the medians' ratio is 4 / 3, and no round's
    assert crossed.q20 <= crossed.median == 1 <= crossed.q80
    with pytest.raises(ValueError, match="expected 3"):
        ratio([1, 2, 3], [1])


def test_rounds_alternate_the_order_of_the_two_sides():
    order = []

    def sampler(name):
        return lambda: order.append(name) or float(len(order))

    samples = interleave({"a": sampler("a"), "b": sampler("b")}, seconds=0, least=4)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert samples == {"a": [1, 4, 5, 8], "b": [2, 3, 6, 7]}


@pytest.mark.parametrize(("seconds", "rounds"), [(0, 3), (9.5, 10), (1000, 20)])
def test_rounds_stop_after_the_time_but_not_before_the_least(seconds, rounds):
    times = []
    samples = interleave(
        {"a": lambda: times.append(1) or 1.0}, seconds, least=3, most=20, now=lambda: len(times)
    )
    assert len(samples["a"]) == rounds


def test_long_rounds_are_fewer_where_a_few_are_enough():
    times = []
    call = {"a": lambda: times.append(1) or 1.0}
    samples = interleave(call, 0.3, least=9, now=lambda: len(times), fewest=2)
    assert len(samples["a"]) == 3  # ten times 0.3 have passed
    assert len(interleave(call, 1e-9, least=9, now=lambda: len(times), fewest=2)["a"]) == 2


class FakeClock:
    """Every call takes the same time; counts calls."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.counts = seconds, []

    def block(self, call, count):
        self.counts.append(count)
        return self.seconds


@pytest.mark.parametrize(
    ("seconds", "count", "untimed"), [(1e-5, 200, 1), (1e-3, 2, 1), (0.5, 1, 0), (1e-9, 1000, 1)]
)
def test_short_calls_are_timed_in_blocks_after_a_warm_up(seconds, count, untimed):
    calls, clock = [], FakeClock(seconds)
    sampler = Sampler(lambda: calls.append(1), clock)
    clock.counts.clear()
    assert sampler() == seconds
    assert clock.counts == [count]
    assert len(calls) == untimed


def test_the_clock_divides_by_the_count():
    calls = []
    assert CpuClock().block(lambda: calls.append(1), 5) > 0
    assert len(calls) == 5


def test_shapes_are_named_by_their_sizes():
    assert [label(shape) for shape in grid(H=8, L=(1, 2), z="odd")] == ["H8-L1-odd", "H8-L2-odd"]


def prepared(run, mode=BOTH):
    torch.manual_seed(0)
    x = inputs({"L": 8}, torch.device("cpu"))
    with torch.set_grad_enabled(mode == BOTH):
        return prepare(Peer("tried", run), ("x", "factor"), x, mode)


def test_both_modes_return_outputs_and_gradients_by_name():
    both = prepared(scaled)
    assert both.names == ("output 0", "x", "factor")
    output, to_x, to_factor = both.call()
    cotangent = torch.randn(8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(to_x, 3 * cotangent)
    torch.testing.assert_close(to_factor, (cotangent * output / 3).sum())
    assert prepared(scaled, FORWARD).names == ("output 0",)


def test_the_answers_of_both_sides_are_compared():
    assert difference(prepared(scaled), prepared(added)) < 1e-6
    assert difference(prepared(scaled), prepared(wrong)) == pytest.approx(0.1 / 3.1, rel=1e-3)
    assert difference(prepared(scaled, FORWARD), prepared(wrong_gradient, FORWARD)) < 1e-6
    assert difference(prepared(scaled), prepared(wrong_gradient)) > 0.1
    nan = prepared(lambda x: scaled(x) * float("nan"))
    assert not difference(prepared(scaled), nan) <= 1


def test_no_number_among_gradients_is_a_difference():
    def answers(*numbers):
        return Prepared(lambda: tuple(map(torch.tensor, numbers)), ("y", "x"), lambda: None)

    assert math.isnan(difference(answers(1.0, math.nan), answers(1.0, 2.0)))
    assert difference(answers(1.0, 2.0), answers(1.0, 2.0)) == 0


def emitted(mode, effort="quick", shape="L8", **options):
    records = []
    worker.measure(Job("toy", shape, mode, DEFAULT, "cpu", effort, **options), TOY, records.append)
    return records


def test_a_peer_with_another_answer_is_not_timed():
    records = {record["peer"]: record for record in emitted(BOTH)}
    assert records["added"]["kind"] == "pair"
    assert records["added"]["ratio"]["median"] > 0
    assert "another answer" in records["wrong"]["reason"]
    assert "another answer" in records["wrong gradient"]["reason"]
    assert {record["kind"] for record in emitted(FORWARD) if record["peer"] == "wrong gradient"} == {"pair"}


def test_absent_and_slow_peers_are_skipped_with_the_reason():
    records = {record["peer"]: record for record in emitted(FORWARD)}
    assert records["absent"]["reason"] == "not on cpu today"
    assert "slow" in records["slow"]["reason"]
    assert json.loads(json.dumps(records["added"])) == records["added"]


def test_alone_we_are_still_timed():
    (record,) = [r for r in emitted(FORWARD, against=("absent",)) if r["kind"] == "pair"]
    assert record["peer"] is None
    assert record["ours_s"]["median"] > 0


def test_what_does_not_exist_yet_is_skipped():
    assert worker.missing("ops.vandermonde") is None
    assert "does not exist yet" in worker.missing("ops.no_such_op")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident peaks need Linux")
def test_peak_memory_sees_what_a_call_holds():
    found = memory.peak(lambda: torch.ones(16 << 18), torch.device("cpu"))
    if found is None:
        pytest.skip("this system does not reset resident peaks")
    assert 15 << 20 < found < 24 << 20


def test_a_carried_state_is_put_back_before_answers_are_compared():
    def counting(x):
        x["count"] = x["count"] + x["x"]
        return x["count"]

    def put_back(x):
        x["count"] = torch.zeros(8)

    torch.manual_seed(0)
    x = {"x": torch.randn(8), "count": torch.zeros(8)}
    carried = prepare(Peer("carried", counting, restart=put_back), (), x, FORWARD)
    carried.call()
    assert difference(prepare(Peer("once", lambda x: x["x"]), (), x, FORWARD), carried) == 0
