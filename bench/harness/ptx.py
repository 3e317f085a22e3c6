"""What our CUDA kernels execute and move, counted in their PTX on a CPU, beside what the operation must cost at least.

Each operation runs on the stand-in GPU of the tests, in a process of its own, which writes the counts as JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.harness.calls import prepare
from bench.harness.declare import BOTH, FORWARD, label
from bench.harness.machine import ROOT
from bench.harness.plan import benches

RECORD = ROOT / "bench" / "ptx.json"
ARCHITECTURE = "sm_80"
OPERATIONS = (
    "cauchy",
    "cauchy_transpose",
    "causal_conv1d",
    "dplr_discretize",
    "dplr_generating",
    "ssd",
    "ssm_conv",
    "ssm_step",
    "vandermonde",
    "vandermonde_transpose",
)
#: What may not grow, and by how much it may.
GATED, SLACK = ("launches", "instructions", "sectors", "shared_passes", "bank_conflicts"), 1.01

Counts = dict[str, dict[str, float]]


def command(options: argparse.Namespace) -> int:
    """Counts, prints the table, and compares with the record or writes it."""
    from tests.aot.nvcc import version
    from tests.ptx import skip_reason as no_ptx
    from tests.stand_in_gpu import skip_reason as no_gpu

    if reason := no_ptx() or no_gpu():
        print(f"error: {reason}")
        return 2
    found = measured(options.op or list(OPERATIONS))
    print(table(found))
    recorded = json.loads(RECORD.read_text())
    if options.record:
        others = recorded["counts"] if options.op and recorded["nvcc"] == version() else {}
        counts = dict(sorted({**others, **found}.items()))
        RECORD.write_text(json.dumps({"nvcc": version(), "counts": counts}, indent=1) + "\n")
        return 0
    if recorded["nvcc"] != version():
        print(f"not held against the record, which is of nvcc {recorded['nvcc']}")
        return 0
    worse = regressions(found, recorded["counts"])
    print("\n".join(worse) or "none has grown")
    return 1 if worse else 0


def measured(operations: list[str]) -> Counts:
    """By operation, shape and mode: the first quick shape."""
    found: Counts = on_stand_in(__name__, *operations)
    return found


def on_stand_in(module: str, *arguments: str, triton: bool = False) -> Any:
    """What that module prints as JSON when it is run on the stand-in GPU, in a process of its own."""
    from tests.stand_in_gpu import environment

    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=environment(Path(cache), triton=triton),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise ValueError(f"cannot count: {done.stderr}")
    return json.loads(done.stdout)


def regressions(found: Mapping[str, Mapping[str, float]], recorded: Mapping[str, Any]) -> list[str]:
    """What is more than was recorded, or is not recorded."""
    return [
        f"{name}: {what} {counts[what]}, recorded {recorded.get(name, {}).get(what, 'nothing')}"
        for name, counts in found.items()
        for what in GATED
        if counts[what] > SLACK * recorded.get(name, {}).get(what, -1)
    ]


COLUMNS = ("launches", "instr.", "float", "tensor", "int.", "memory", "control", "flops", "bytes", "sectors")
COLUMNS += ("shared", "conflicts")


def table(found: Counts) -> str:
    """Instructions of warps in thousands and their kinds in %; flops and global bytes, by what lanes ask for and by
    sectors, as multiples of the floor; passes of shared memory in thousands, and the share of them that conflicts cost.
    """
    rows = [["", *COLUMNS]]
    for name, c in found.items():
        kinds = [
            f"{100 * c[k] / c['instructions']:.0f} %"
            for k in ("float", "tensor", "integer", "memory", "control")
        ]
        asked = c["global_read_bytes"] + c["global_written_bytes"]
        conflicts = 100 * c["bank_conflicts"] / c["shared_passes"] if c["shared_passes"] else 0
        rows.append(
            [
                name,
                f"{c['launches']:.0f}",
                f"{c['instructions'] / 1e3:.0f} k",
                *kinds,
                *(f"{x:.2f} x" for x in (c["flops"] / c["least_flops"], asked / c["least_bytes"])),
                f"{32 * c['sectors'] / c['least_bytes']:.2f} x",
                f"{c['shared_passes'] / 1e3:.0f} k",
                f"{conflicts:.0f} %",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def count(operation: str) -> Iterator[tuple[str, dict[str, float]]]:
    """On the stand-in GPU, where this process has one: what a forward pass does, and what one with gradients does."""
    from sequence_kernels import use_backend
    from tests.ptx.counting import Counting
    from tests.stand_in_gpu.gpu import GPU

    bench = benches()[operation]
    shape = bench.shapes["quick"][0]
    machine = Counting(ARCHITECTURE)
    with use_backend("cuda"), GPU.driver.on(machine):
        for mode in (FORWARD, BOTH) if BOTH in bench.modes else (FORWARD,):
            torch.manual_seed(0)
            call = prepare(bench, bench.wrt, bench.inputs(shape, torch.device("cuda")), mode).call
            machine.counts()
            call()
            cost = bench.cost(shape, mode)
            least = {"least_bytes": cost.bytes, "least_flops": cost.flops}
            yield f"{operation} {label(shape)} {mode}", {**machine.counts(), **least}


if __name__ == "__main__":
    print(json.dumps({name: counts for each in sys.argv[1:] for name, counts in count(each)}))
