"""The floors that operations state, against counts by hand on shapes small enough to count."""

from __future__ import annotations

import pytest

from bench.harness.ceilings import floor
from bench.harness.declare import BOTH, FORWARD, Cost
from bench.harness.plan import benches

# (operation, shape, mode, bytes, flops, reciprocals, transcendentals); each sum spells out what is counted
BY_HAND = [
    # 1 pole, 4 positions: split 2 x 2, so 4 complex exponentials; v and x read, 4 floats written; each position one
    # complex product's real part added up (4), each row of the split one complex product (6)
    ("vandermonde", {"H": 1, "N": 1, "L": 4}, FORWARD, 8 + 8 + 4 * 4, 4 * 4 + 2 * 6, 0, 4 * 3),
    # and backward: g, v, x read, dv, dx written; two moments
    ("vandermonde", {"H": 1, "N": 1, "L": 4}, BOTH, 32 + 16 + 32, 28 + 2 * 28, 0, 12 + 12),
    # 2 heads, 3 poles, 5 positions: split 2 x 4
    (
        "vandermonde_transpose",
        {"H": 2, "N": 3, "L": 5},
        FORWARD,
        4 * 10 + 8 * 6 + 8 * 6,
        4 * 30 + 6 * 12,
        0,
        3 * 6 * 6,
    ),
    # 2 weights of 1 x 3 poles, 5 nodes: 15 pairs of 7 + 2 * 8 operations
    (
        "cauchy",
        {"V": 2, "H": 1, "N": 3, "L": 5, "z": "imaginary"},
        FORWARD,
        8 * (6 + 3 + 5 + 10),
        15 * (7 + 16),
        15,
        0,
    ),
    (
        "cauchy",
        {"V": 2, "H": 1, "N": 3, "L": 5, "z": "general"},
        BOTH,
        8 * (6 + 3 + 5 + 10) + 8 * (6 + 3 + 5 + 10 + 6 + 3),
        15 * (9 + 16) + 15 * (9 + 3 + 32),
        30,
        0,
    ),
    (
        "cauchy_transpose",
        {"V": 2, "H": 1, "N": 3, "L": 5},
        FORWARD,
        8 * (10 + 5 + 3 + 6),
        15 * (7 + 16),
        15,
        0,
    ),
    # 2 poles of 1 head, 1 term: w, b and p read, a - 1, b', p' and q written, dt of 8 bytes; 22 + 12 and 30 a pole
    (
        "dplr_discretize",
        {"H": 1, "N": 2, "R": 1},
        FORWARD,
        8 * (3 * 2 + 4 * 2) + 8,
        2 * (30 + 22 + 12),
        2,
        0,
    ),
    # 15 pairs of 7 + 4 products * 8 operations, and 5 outputs; c, p, b, w, the output, and t, which is real
    (
        "dplr_generating",
        {"H": 1, "N": 3, "L": 5, "dtype": "complex64"},
        FORWARD,
        8 * (4 * 3 + 5) + 4 * 5,
        15 * (7 + 32) + 5 * 40,
        15 + 5,
        0,
    ),
    # and backward: the products again, the squares of the reciprocals, and two moments of the four products
    (
        "dplr_generating",
        {"H": 1, "N": 3, "L": 5, "dtype": "complex128"},
        BOTH,
        3 * (16 * (4 * 3 + 5) + 8 * 5),
        15 * (7 + 32) + 5 * 40 + 15 * (7 + 32 + 3 + 2 * 32) + 5 * 100,
        2 * (15 + 5),
        0,
    ),
    # 1 sequence of 64, 1 head, 1 pair (2 states): two chunks of 32. An output takes 32 + 2 multiply-adds, an input 2,
    # a chunk and pair a complex multiply-add (8); taps 32, e_out 64, e_in 64, six powers of 2 floats
    (
        "ssm_conv",
        {"B": 1, "H": 1, "N": 1, "L": 64, "dtype": "float32"},
        FORWARD,
        4 * 128 + 4 * (32 + 64 + 64 + 12),
        2 * 64 * (34 + 2) + 2 * 8,
        0,
        0,
    ),
    (
        "ssm_conv",
        {"B": 1, "H": 1, "N": 1, "L": 64, "dtype": "bfloat16"},
        BOTH,
        2 * (128 + 192) + 3 * 4 * 172,
        3 * (2 * 64 * 36 + 16),
        0,
        0,
    ),
    # transforms of 8 real points: u, k and y, at 2.5 * 8 * 3; 5 complex products, 4 skips
    ("fft_conv", {"B": 1, "H": 1, "L": 4}, FORWARD, 4 * (4 + 4 + 4 + 1), 3 * 60 + 5 * 6 + 4 * 2, 0, 0),
    # 2 x 3 x 5 states read and written; a, b, c; u and y; d
    (
        "ssm_step",
        {"B": 2, "H": 3, "N": 5},
        FORWARD,
        16 * 30 + 3 * 8 * 15 + 2 * 4 * 6 + 4 * 3,
        14 * 30 + 3 * 6,
        0,
        0,
    ),
    (
        "ssm_step",
        {"B": 2, "H": 3, "N": 5, "R": 1},
        FORWARD,
        16 * 30 + 5 * 8 * 15 + 2 * 4 * 6 + 4 * 3,
        22 * 30 + 3 * 6,
        0,
        0,
    ),
    ("s4d_step", {"B": 1, "H": 2, "N": 3, "part": "kernel"}, FORWARD, 16 * 6 + 24 * 6 + 16, 14 * 6, 0, 0),
    (
        "s4_step",
        {"B": 1, "H": 2, "N": 3, "part": "layer"},
        FORWARD,
        16 * 6 + 40 * 6 + 16 + 32,
        22 * 6 + 16,
        0,
        0,
    ),
]


@pytest.mark.parametrize(("op", "shape", "mode", "moved", "flops", "reciprocals", "transcendentals"), BY_HAND)
def test_cost_is_the_count_by_hand(op, shape, mode, moved, flops, reciprocals, transcendentals):
    assert benches()[op].cost(shape, mode) == Cost(moved, flops, reciprocals, transcendentals)


@pytest.mark.parametrize("op", sorted(benches()))
def test_every_shape_has_a_cost_and_backward_costs_more(op):
    bench = benches()[op]
    for shape in bench.every_shape().values():
        costs = [bench.cost(shape, mode) for mode in bench.modes]
        assert all(cost.bytes > 0 and cost.flops > 0 for cost in costs)
        assert len(costs) == 1 or (costs[1].flops > costs[0].flops and costs[1].bytes > costs[0].bytes)


def test_floor_is_the_slowest_of_the_three_resources():
    rates = {"copy": 100.0, "sgemm": 1000.0, "reciprocal": 10.0, "exp": 5.0}
    assert floor(Cost(bytes=200, flops=100), rates) == (2.0, "copy")
    assert floor(Cost(bytes=1, flops=3000), rates) == (3.0, "sgemm")
    assert floor(Cost(bytes=1, flops=1, reciprocals=10, transcendentals=15), rates) == (4.0, "special")
