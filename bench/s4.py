"""The S4 layer (diagonal plus low rank), against ESPnet's with the same parameters."""

from __future__ import annotations

from bench._layers import layer_bench, layer_targets, state_target
from sequence_kernels import S4

BENCH = layer_bench(
    "S4",
    lambda d_model, d_state: S4(d_model, d_state, transposed=False),
    dense=True,
    targets=(*layer_targets("S4", ssm=40, layer=15, later=24, memory=20), state_target()),
    mode="nplr",
    measure="legs",
)
