"""What each operation would take on GPUs that are not at hand, at the sizes of a model: counts of some blocks of every
launch, run as PTX on a CPU, and the calculation of ``predict``.

An operation runs on the stand-in GPU of the tests, in a process of its own, which writes its launches as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from bench.harness.calls import prepare
from bench.harness.declare import BOTH, FORWARD, Bench, Shape, label
from bench.harness.machine import ROOT
from bench.harness.plan import benches
from bench.harness.predict import GPUS, H200, LATENCIES, Gpu, Prediction, Work, predict
from bench.harness.ptx import ARCHITECTURE, on_stand_in

RECORD = ROOT / "bench" / "predictions.json"
BACKWARD = "backward"
#: Blocks of a launch that run.
SAMPLE = 2
#: Of each operation, the shapes of a model on a GPU.
SHAPES: Mapping[str, tuple[Shape, ...]] = {
    "ssm_conv": tuple(
        {"B": 16, "H": 512, "N": 32, "L": 16384, "dtype": dtype} for dtype in ("bfloat16", "float32")
    ),
    "ssm_step": ({"B": 512, "H": 1024, "N": 32}, {"B": 512, "H": 1024, "N": 32, "R": 1}),
    "vandermonde": ({"H": 1024, "N": 32, "L": 16384},),
    "vandermonde_transpose": ({"H": 1024, "N": 32, "L": 16384},),
    "cauchy": ({"V": 4, "H": 1024, "N": 32, "L": 8193, "z": "imaginary"},),
    "cauchy_transpose": ({"V": 4, "H": 1024, "N": 32, "L": 2049},),
    "dplr_generating": ({"H": 1024, "N": 32, "L": 8193, "dtype": "complex64"},),
    "dplr_discretize": ({"H": 1024, "N": 32, "R": 1},),
    "diagonal_discretize": ({"H": 1024, "N": 32},),
    "causal_conv1d": tuple(
        {"B": 8, "D": 1536, "W": 4, "L": 2048, "layout": layout} for layout in ("channels", "elements")
    ),
    "selective_scan": ({"B": 8, "L": 2048, "D": 1536, "N": 16},),
    "selective_step": tuple(
        {"B": batch, **sizes}
        for batch in (64, 512)
        for sizes in ({"H": 1536, "P": 1, "N": 16}, {"H": 24, "P": 64, "N": 128})
    ),
    # Of rank 1 a head has two blocks of different work: with 511 heads one of each is in the sample.
    "ssm_chunk": ({"H": 512, "N": 32, "R": 0, "T": 32}, {"H": 511, "N": 32, "R": 1, "T": 32}),
    "ssd": ({"B": 8, "L": 2048, "H": 24, "P": 64, "N": 128},),
    "gated_rms_norm": ({"R": 16384, "C": 1536},),
}
#: Those that have kernels of one backend only.
ONLY = {"gated_rms_norm": "triton"}
#: A share of the floor may be so much less than the recorded one, a count by so much of itself more.
SLACK = 0.01
GATED = ("instructions", "block_sectors", "sectors", "shared_passes", "barriers")

Launches = dict[str, list[dict[str, Any]]]


def _nvcc() -> str:
    from tests.aot.nvcc import version

    return version()


def _triton() -> str:
    from tests.aot.triton_units import version

    return version()


#: By backend, of the compiler; what another one makes is not held against the record.
VERSIONS = {"cuda": _nvcc, "triton": _triton}


def command(options: argparse.Namespace) -> int:
    """Counts, prints the tables, and compares with the record or writes it."""
    from tests.ptx import skip_reason as no_ptx
    from tests.ptx import triton_skip_reason as no_triton
    from tests.stand_in_gpu import skip_reason as no_gpu

    if reason := no_ptx() or no_triton() or no_gpu():
        print(f"error: {reason}")
        return 2
    return max(held_to_record(backend, options) for backend in VERSIONS if options.backend in (None, backend))


def operations(backend: str) -> list[str]:
    return [op for op in SHAPES if ONLY.get(op, backend) == backend]


def held_to_record(backend: str, options: argparse.Namespace) -> int:
    found: Launches = {}
    for operation in options.op or operations(backend):
        if operation in operations(backend):
            found |= counted(backend, operation)
    for gpu in GPUS:
        print(f"{gpu.name}, {backend}\n{table(gpu, found)}\n")
    now = {gpu.name: {name: share(gpu, launches) for name, launches in found.items()} for gpu in GPUS}
    counts = {name: totals(launches) for name, launches in found.items()}
    record = json.loads(RECORD.read_text())
    recorded, version = record[backend], VERSIONS[backend]()
    if options.record:
        if options.op and recorded["version"] == version:  # the others stay
            now = {gpu: recorded["shares"][gpu] | shares for gpu, shares in now.items()}
            counts = recorded["counts"] | counts
        record[backend] = {"version": version, "shares": now, "counts": counts}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        return 0
    if recorded["version"] != version:
        print(f"not held against the record, whose compiler is {recorded['version']}, not {version}")
        return 0
    worse = [*regressions(now, recorded["shares"]), *grown(counts, recorded["counts"])]
    print("\n".join(worse) or "none is slower")
    return 1 if worse else 0


def counted(backend: str, operation: str) -> Launches:
    """By operation, shape and mode: its launches."""
    launches: Launches = on_stand_in(__name__, backend, operation, triton=backend == "triton")
    return launches


def regressions(now: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """Shares that are less than was recorded, or are not recorded."""
    return [
        f"{name} on {gpu}: {100 * part:.1f} % of the floor's rate, recorded {recorded[gpu].get(name, 'nothing')}"
        for gpu, shares in now.items()
        for name, part in shares.items()
        if part < recorded[gpu].get(name, 2) - SLACK
    ]


def totals(launches: list[dict[str, Any]]) -> dict[str, float]:
    """What may not grow, of all launches together."""
    return {what: round(sum(each["counts"][what] for each in launches)) for what in GATED}


def grown(now: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """Counts that are more than was recorded; what is not recorded, ``regressions`` says."""
    return [
        f"{name}: {what} {counts[what]}, recorded {recorded[name][what]}"
        for name, counts in now.items()
        for what in GATED
        if name in recorded and counts[what] > (1 + SLACK) * recorded[name][what]
    ]


def work_of(launch: Mapping[str, Any], gpu: Gpu) -> Work:
    """With the registers that ptxas gives the kernel for this GPU."""
    registers, shared_bytes = launch["resources"][gpu.architecture]
    return Work(
        launch["blocks"],
        launch["threads"],
        registers,
        shared_bytes,
        launch["cycles"][gpu.name],
        launch["counts"],
    )


def seconds(gpu: Gpu, launches: list[dict[str, Any]]) -> float:
    """Of the launches one after another."""
    return sum(predict(gpu, work_of(launch, gpu)).seconds for launch in launches)


def floor(gpu: Gpu, launches: list[dict[str, Any]]) -> float:
    """Of the bytes that the operation must move."""
    return float(launches[0]["least_bytes"]) / gpu.memory


def share(gpu: Gpu, launches: list[dict[str, Any]]) -> float:
    return round(floor(gpu, launches) / seconds(gpu, launches), 4)


COLUMNS = (
    "time",
    "of floor",
    "bound by",
    "blocks",
    "a mp.",
    "in flight",
    "bytes",
    "instr.",
    "tensor",
    "shared",
    "barriers",
)


def table(gpu: Gpu, found: Launches) -> str:
    """An operation, and below it its launches: time in us, the floor's share of it; blocks, and those that a
    multiprocessor holds; KB that are on their way to it; MB of memory; millions of warps' instructions, Gflop of tensor
    cores, millions of passes of shared memory, barriers of a block."""
    rows = [("", *COLUMNS)]
    for name, launches in found.items():
        total, least = seconds(gpu, launches), floor(gpu, launches)
        rows.append((name, f"{1e6 * total:.1f}", f"{100 * least / total:.0f} %", *[""] * (len(COLUMNS) - 2)))
        for launch in launches:
            predicted, c = predict(gpu, work_of(launch, gpu)), launch["counts"]
            rows.append(
                ("  " + launch["kernel"], f"{1e6 * predicted.seconds:.1f}", "", *cells(launch, predicted, c))
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def cells(launch: Mapping[str, Any], predicted: Prediction, c: Mapping[str, float]) -> tuple[str, ...]:
    return (
        predicted.bound,
        str(launch["blocks"]),
        str(predicted.resident),
        f"{predicted.in_flight / 1e3:.1f}",
        f"{32e-6 * c['block_sectors']:.1f}",
        f"{1e-6 * c['instructions']:.1f}",
        f"{1e-9 * c['tensor_flops']:.1f}",
        f"{1e-6 * c['shared_passes']:.1f}",
        f"{c['barriers'] / launch['blocks']:.0f}",
    )


def launches_of(backend: str, operation: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """On the stand-in GPU, where this process has one: of a forward pass, and of the backward pass by itself."""
    bench = benches()[operation]
    for shape in SHAPES[operation]:
        for mode, launches in sampled(backend, bench, shape).items():
            cost = bench.cost(shape, FORWARD).bytes
            if mode == BACKWARD:
                cost = bench.cost(shape, BOTH).bytes - cost
            yield (
                f"{operation} {label(shape)} {mode}",
                [{**launch, "least_bytes": cost} for launch in launches],
            )


@contextlib.contextmanager
def sampling(backend: str) -> Iterator[Any]:
    """The machine that samples the backend's launches."""
    from tests.ptx import on_ptx
    from tests.ptx.counting import Sampling, TritonSampling
    from tests.stand_in_gpu.gpu import GPU

    given = latencies(H200), SAMPLE, tuple(gpu.architecture for gpu in GPUS)
    with contextlib.ExitStack() as stack:
        if backend == "cuda":
            machine = Sampling(ARCHITECTURE, *given)
            stack.enter_context(GPU.driver.on(machine))
            yield machine
            return
        of_triton = TritonSampling(ARCHITECTURE.replace("sm_", "cuda "), *given)
        for path in sorted((ROOT / "sequence_kernels" / "ops").glob("*/triton.py")):
            module = importlib.import_module(f"sequence_kernels.ops.{path.parent.name}.triton")
            stack.enter_context(on_ptx(module, of_triton))
        yield of_triton


def sampled(backend: str, bench: Bench, shape: Shape) -> dict[str, list[dict[str, Any]]]:
    """By mode. Once for each GPU, whose latencies differ, and with them the cycles of a block."""
    from sequence_kernels import use_backend

    runs = {}
    with use_backend(backend), sampling(backend) as machine:
        inputs = bench.inputs(shape, torch.device("cuda"))
        machine.launches.clear()
        call = prepare(
            bench, bench.wrt, inputs, BOTH if BOTH in bench.modes else FORWARD
        ).call  # runs it forwards
        forward = len(machine.launches)
        for gpu in GPUS:
            machine.launches.clear()
            machine.timing.latencies = latencies(gpu)
            call()
            runs[gpu.name] = list(machine.launches)
    launches = [
        {**first._asdict(), "cycles": {name: run[k].cycles for name, run in runs.items()}}
        for k, first in enumerate(runs[H200.name])
    ]
    modes = {FORWARD: launches[:forward], BACKWARD: launches[forward:]}
    return {mode: some for mode, some in modes.items() if some}


def latencies(gpu: Gpu) -> Any:
    from tests.ptx.file import Latencies

    return Latencies(**LATENCIES, global_=round(gpu.latency * gpu.hertz))


if __name__ == "__main__":
    print(json.dumps(dict(launches_of(*sys.argv[1:]))))
