"""The selective scan of packed sequences of random lengths, M on average, against a dense batch of as many elements."""

from __future__ import annotations

import math

from bench import selective_scan
from bench._packed import DENSE, cost_of_rows, dense, packed
from bench.harness.declare import FORWARD, Bench, Cost, Counted, Peer, grid

BENCH = Bench(
    entry="ops.selective_scan_packed",
    shapes={
        "quick": grid(L=4096, M=512, D=64, N=16),
        "full": grid(L=16384, M=(1024, 64), D=512, N=16),
        "cuda": grid(L=65536, M=(1024, 64), D=1536, N=16),
    },
    inputs=packed(selective_scan.inputs),
    run=selective_scan.ours,
    cost=cost_of_rows(selective_scan.cost),
    counted=(
        # a row of 512: 3 channels of u, delta, z and y; 4 of b and of c; a; d and delta_bias; the state
        Counted(
            {"L": 512, "M": 256, "D": 3, "N": 4},
            FORWARD,
            Cost(4 * (512 * (12 + 8) + 12 + 6 + 12), 512 * (7 * 12 + 8 * 3), 0, 512 * (12 + 9)),
        ),
    ),
    wrt=("u", "delta", "a", "b", "c", "d", "z", "delta_bias"),
    peers=(Peer(DENSE, dense(selective_scan.ours, ("u", "delta", "b", "c", "z")), tolerance=math.inf),),
)
