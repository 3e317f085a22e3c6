"""Times CUDA, Triton and torch on this GPU, and keeps what is the fastest: `python -m sequence_kernels tune`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import choices, machine, proofs, prove
from .ops import dispatch

#: A sample takes at least so many milliseconds, of calls one after another, and is the best of so many.
LEAST, SAMPLES = 2.0, 5

#: Of a call that takes longer one sample does.
LONG = 500.0


class Job(NamedTuple):
    """A call to be timed with a backend; ``precision`` is that of its unit of proofs."""

    workload: proofs.Workload
    precision: str
    backend: str

    def row(self, forward: float, both: float | None) -> choices.Row:
        shape, op, elements, _ = self.workload
        return choices.Row(op, self.precision, shape, elements, self.backend, forward, both)

    def names(self, row: choices.Row) -> bool:
        return self.row(row.forward, row.both) == row


def jobs(device: torch.device, ops: Iterable[str]) -> Iterator[Job]:
    """All that can be timed of these ops on the GPU: kernels that are proven there, and plain torch."""
    units, passed = dispatch.units(device), {}
    for op in ops:
        own = [unit for unit in units if unit.family == dispatch.family(op)]
        for unit in own:
            if unit not in passed:
                passed[unit] = proofs.verdict(unit, units[unit]).passed
        for precision in dict.fromkeys(unit.precision for unit in own):
            proven = [unit.backend for unit in own if unit.precision == precision and passed[unit]]
            for workload in dispatch.workloads(op, precision):
                yield from (Job(workload, precision, backend) for backend in (*proven, "torch"))


def timed(job: Job, device: torch.device) -> choices.Row | None:
    """Milliseconds of a call, and with gradients; None where the GPU has not the memory."""
    prove.allow_tf32(job.precision)
    try:
        args = [a.to(device) if isinstance(a, Tensor) else a for a in job.workload.make()]
        op = getattr(torch.ops.sequence_kernels, job.workload.op).default
        with torch.no_grad():
            forward = least(lambda: op(*args, job.backend), device)
        if job.workload.op.endswith("_"):  # in place: it has no gradient
            return job.row(forward, None)
        leaves = [a.requires_grad_() if isinstance(a, Tensor) and _continuous(a) else a for a in args]
        wanted = [a for a in leaves if isinstance(a, Tensor) and a.requires_grad]
        return job.row(forward, least(lambda: _differentiated(op(*leaves, job.backend), wanted), device))
    except torch.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()


def _continuous(a: Tensor) -> bool:
    return a.is_floating_point() or a.is_complex()


def _differentiated(results: Any, wanted: list[Tensor]) -> None:
    results = [r for r in (results if isinstance(results, (tuple, list)) else [results]) if r.requires_grad]
    torch.autograd.grad(results, wanted, [torch.ones_like(r) for r in results], allow_unused=True)


def least(call: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds of a call, by the GPU's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample(calls: int) -> float:
        start.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / calls

    call()  # Triton compiles, allocators grow
    found = sample(1)
    if found > LONG:
        return found
    calls = max(1, round(LEAST / max(found, 1e-3)))
    return min(sample(calls) for _ in range(SAMPLES))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = dispatch.operations()
    parser.add_argument("--device", type=int, default=0, help="the GPU's number (default: 0)")
    parser.add_argument(
        "--ops", nargs="+", choices=names, default=names, metavar="OP", help="these ops alone"
    )
    parser.add_argument("--again", action="store_true", help="also what has been measured before")
    parser.add_argument("--out", type=Path, help="write the table there too, to be shared")
    parser.set_defaults(command=command)


def command(given: argparse.Namespace) -> int:
    """0 when all is measured, 2 where there is nothing to measure; what was measured before an interruption is kept."""
    if not torch.cuda.is_available():
        print("there is no GPU here that torch can use")
        return 2
    device = torch.device("cuda", given.device)
    kept = choices.path(device)
    old = choices.read(kept)
    rows = list(old.rows) if old is not None else []
    if given.again:
        rows = [row for row in rows if row.op not in given.ops]
    about = {
        **machine.versions(),
        "gpu": torch.cuda.get_device_name(device),
        "driver": machine.driver(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    print(f"{about['gpu']}: proving kernels that are not proven yet")
    found = list(jobs(device, given.ops))
    for done, job in enumerate(found, 1):
        row = next((row for row in rows if job.names(row)), None)
        if row is None and (row := timed(job, device)) is not None:
            rows.append(row)
            for file in (kept, given.out):
                _keep(file, choices.Table(about, tuple(rows)))
        _show(done, len(found), job, row)
    dispatch.forget()
    _keep(given.out, choices.Table(about, tuple(rows)))
    print(f"dispatch chooses by {kept}" if kept is not None else "there is no cache folder: nothing is kept")
    return 0 if found else 2


def _keep(file: Path | None, table: choices.Table) -> None:
    if file is not None:
        proofs.write_at_once(file, choices.written(table))


def _show(done: int, of: int, job: Job, row: choices.Row | None) -> None:
    """A line a call; on a terminal the bar below stays where it is."""
    times = "too little memory" if row is None else f"{row.forward:.3f} ms"
    times += "" if row is None or row.both is None else f", with gradients {row.both:.3f} ms"
    clear = "\r\x1b[K" if sys.stdout.isatty() else ""
    print(
        f"{clear}{job.workload.op} {job.precision} {job.workload.shape}, {job.backend}: {times}", flush=True
    )
    if sys.stdout.isatty():
        full = 40 * done // of
        print(f"[{'#' * full}{' ' * (40 - full)}] {done}/{of}", end="\n" if done == of else "", flush=True)
