"""The S4D layer, against ESPnet's S4 in its diagonal mode with the same parameters."""

from __future__ import annotations

from bench._layers import layer_bench, layer_targets
from sequence_kernels import S4D

BENCH = layer_bench(
    "S4D",
    lambda d_model, d_state: S4D(d_model, d_state, transposed=False),
    dense=False,
    targets=layer_targets("S4D", ssm=30, layer=8, later=14, memory=5),
    mode="diag",
    measure="diag-lin",
    disc="zoh",
)
