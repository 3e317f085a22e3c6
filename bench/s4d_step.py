"""Stepping an S4D layer, against ESPnet's S4 in its diagonal mode."""

from __future__ import annotations

from bench._steps import Step, step_bench, step_targets
from bench.harness.declare import FORWARD, Cost, Counted
from sequence_kernels import S4D, ops
from sequence_kernels.layers.s4 import S4


def prepared(layer: S4) -> Step:
    system = layer.system()
    parameters = system.step_parameters()
    return lambda state, u: ops.ssm_step(state, u, *parameters)


BENCH = step_bench(
    "S4D",
    lambda d_model, d_state: S4D(d_model, d_state, transposed=False),
    prepared,
    rank=0,
    targets=step_targets("S4D", kernel=5, layer=3),
    mode="diag",
    measure="diag-lin",
    disc="zoh",
    counted=(
        Counted({"B": 1, "H": 2, "N": 3, "part": "kernel"}, FORWARD, Cost(16 * 6 + 24 * 6 + 16, 14 * 6)),
    ),
)
