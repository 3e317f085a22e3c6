"""Stepping an S4 layer in O(N), against ESPnet's S4 with its dense matrix, its most accurate mode."""

from __future__ import annotations

from typing import cast

from bench._steps import ESPNET, Step, step_bench, step_targets
from bench.harness.declare import FORWARD, Cost, Counted, Target
from sequence_kernels import S4, ops
from sequence_kernels.ssm.dplr import DPLRSystem


def prepared(layer: S4) -> Step:
    system = cast(DPLRSystem, layer.system())
    parameters = system.step_parameters()
    return lambda state, u: ops.ssm_step(state, u, *parameters)


BENCH = step_bench(
    "S4",
    lambda d_model, d_state: S4(d_model, d_state, transposed=False),
    prepared,
    rank=1,
    targets=(
        *step_targets("S4", kernel=10, layer=4),
        Target(7, "preparing an S4 layer to step, and a step", "B1-H256-N32-prepare", ESPNET, 20),
    ),
    mode="nplr",
    measure="legs",
    counted=(
        Counted(
            {"B": 1, "H": 2, "N": 3, "part": "layer"}, FORWARD, Cost(16 * 6 + 40 * 6 + 16 + 32, 22 * 6 + 16)
        ),
    ),
)
