"""State-space duality over packed sequences of random lengths, M on average, against a dense batch of as many."""

from __future__ import annotations

import math

from bench import ssd
from bench._packed import DENSE, cost_of_rows, dense, packed
from bench.harness.declare import FORWARD, Bench, Cost, Counted, Peer, grid

BENCH = Bench(
    entry="ops.ssd_packed",
    shapes={
        "quick": grid(L=2048, M=256, H=4, P=64, N=64),
        "full": grid(L=8192, M=(1024, 64), H=24, P=64, N=128),
        "cuda": grid(L=65536, M=(1024, 64), H=24, P=64, N=128),
    },
    inputs=packed(ssd.inputs),
    run=ssd.ours,
    cost=cost_of_rows(ssd.cost),
    counted=(
        # a row of 512: 5 heads with 7 x, 7 y and a dt, 11 of b and of c; 5 of a and of d; products of 5 x 7 x 11 states
        Counted(
            {"L": 512, "M": 256, "H": 5, "P": 7, "N": 11},
            FORWARD,
            Cost(4 * (512 * (5 * 15 + 22) + 10), 4 * 512 * 5 * 77, 0, 512 * 5),
        ),
    ),
    wrt=("x", "dt", "a", "b", "c", "d"),
    peers=(Peer(DENSE, dense(ssd.ours, ("x", "dt", "b", "c")), tolerance=math.inf),),
)
