"""`pytest bench --benchmark-only`: every operation, shape, mode and contender under pytest-benchmark.

For times of one side that other pytest-benchmark tools can read. Ratios that can be believed come from
`python -m bench run`, which interleaves the two sides.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch

from bench.harness.calls import prepare
from bench.harness.declare import BOTH, Peer, label
from bench.harness.plan import benches
from bench.harness.worker import missing
from sequence_kernels.ops import BACKENDS, BackendUnavailableError, use_backend

KNOWN = benches()


class Case(NamedTuple):
    op: str
    shape: str
    mode: str
    contender: str

    def __str__(self) -> str:
        return "/".join(self).replace(" ", "_")


def cases(shapes: str) -> list[Case]:
    """Every operation with our backends and all peers."""
    return [
        Case(name, label(shape), mode, contender)
        for name, bench in KNOWN.items()
        for shape in bench.chosen(shapes)
        for mode in bench.modes
        for contender in (*(f"ours {backend}" for backend in BACKENDS), *(peer.name for peer in bench.peers))
    ]


def test_speed(case: Case, benchmark: Any) -> None:
    bench = KNOWN[case.op]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = bench.every_shape()[case.shape]
    ours = {f"ours {name}": Peer(name, bench.run, bench.setup, bench.restart) for name in BACKENDS}
    contender = {**ours, **{peer.name: peer for peer in bench.peers}}[case.contender]
    reason = missing(bench.entry) or contender.unavailable(device.type) or contender.serves(shape)
    if not contender.quick and case.shape in map(label, bench.chosen("quick")):
        reason = reason or "left out of quick shapes: slow, or slow to compile"
    if reason:
        pytest.skip(reason)
    benchmark.group = f"{case.op} {case.shape} {case.mode}"
    benchmark.extra_info.update(case._asdict())
    torch.manual_seed(0)
    inputs = bench.inputs(shape, device)
    wrt = bench.wrt if contender.wrt is None else contender.wrt
    around = use_backend(contender.name) if case.contender in ours else nullcontext()
    with torch.set_grad_enabled(case.mode == BOTH), around:
        try:
            call = prepare(contender, wrt, inputs, case.mode).call
        except BackendUnavailableError as error:
            pytest.skip(str(error))

        def synchronised() -> None:
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()

        benchmark(synchronised)
