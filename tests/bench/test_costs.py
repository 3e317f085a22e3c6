"""The floors that operations state, against the counts by hand that stand beside them."""

from __future__ import annotations

import pytest

from bench.harness.ceilings import floor
from bench.harness.declare import Cost
from bench.harness.plan import benches
from sequence_kernels import ops

BENCHES = benches()


@pytest.mark.parametrize("op", sorted(op for op in BENCHES if BENCHES[op].counted))
def test_cost_is_the_count_by_hand(op):
    for count in BENCHES[op].counted:
        assert BENCHES[op].cost(count.shape, count.mode) == count.cost


def test_every_op_is_counted_by_hand():
    counted = {bench.entry for bench in BENCHES.values() if bench.counted}
    missing = {f"ops.{op}" for op in ops.operations() if not op.endswith(("_backward", "_"))} - counted
    assert missing == {"ops.causal_conv1d_channels_last"}  # measured as a layout of causal_conv1d


@pytest.mark.parametrize("op", sorted(BENCHES))
def test_every_shape_has_a_cost_and_backward_costs_more(op):
    bench = BENCHES[op]
    for shape in bench.every_shape().values():
        costs = [bench.cost(shape, mode) for mode in bench.modes]
        assert all(cost.bytes > 0 and cost.flops > 0 for cost in costs)
        assert len(costs) == 1 or (costs[1].flops > costs[0].flops and costs[1].bytes > costs[0].bytes)


def test_floor_is_the_slowest_of_the_three_resources():
    rates = {"copy": 100.0, "sgemm": 1000.0, "reciprocal": 10.0, "exp": 5.0}
    assert floor(Cost(bytes=200, flops=100), rates) == (2.0, "copy")
    assert floor(Cost(bytes=1, flops=3000), rates) == (3.0, "sgemm")
    assert floor(Cost(bytes=1, flops=1, reciprocals=10, transcendentals=15), rates) == (4.0, "special")
