"""Proves all kernels on the GPUs that are here: `python -m sequence_kernels prove`."""

from __future__ import annotations

import argparse
import json
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

import torch

from . import machine, proofs
from .ops import dispatch

#: What runs the proofs of the units that are named behind it.
CHILD = (sys.executable, "-m", "sequence_kernels", "prove", "--child")

#: A child that says nothing for so many seconds hangs; Triton's compiler takes seconds for a kernel.
PATIENCE = 300.0


def units() -> dict[proofs.Unit, proofs.Proof]:
    """All that can be proven on the GPUs of this machine."""
    found: dict[proofs.Unit, proofs.Proof] = {}
    for index in range(torch.cuda.device_count()):
        found |= dispatch.units(torch.device("cuda", index))
    return found


def in_children(
    wanted: Sequence[proofs.Unit], patience: float = PATIENCE
) -> Iterator[tuple[proofs.Unit, proofs.Verdict]]:
    """Prove each anew; a kernel that kills its process, or hangs, costs a child."""
    left = {_key(unit): unit for unit in wanted}
    for unit in wanted:
        proofs.forget(unit)
    while left:
        at, why = None, ""
        with subprocess.Popen([*CHILD, *left], stdout=subprocess.PIPE, text=True) as child:
            while line := _line(child, patience if at else PATIENCE):
                at, verdict = line
                if verdict is not None:
                    yield left.pop(at), verdict
                    at = None
            if child.poll() is None and at is not None:
                why = f"said nothing for {patience:.0f} s"
                child.kill()
        if at is not None:
            unit = left.pop(at)
            yield unit, proofs.record(unit, why or f"ended its process: {_ending(child.returncode)}")
        elif left and child.returncode not in (0, _LOST):
            raise RuntimeError(f"the proofs' process could not work: {_ending(child.returncode)}")


def _line(child: subprocess.Popen[str], patience: float) -> tuple[str, proofs.Verdict | None] | None:
    """What the child says next: it begins a proof, or has a verdict. None: it has ended, or says nothing."""
    assert child.stdout is not None
    if not select.select([child.stdout], [], [], patience)[0]:
        return None
    text = child.stdout.readline()
    if not text:
        child.wait()
        return None
    said = json.loads(text)
    return said["unit"], None if said["verdict"] is None else proofs.Verdict(**said["verdict"])


def _ending(status: int) -> str:
    return signal.strsignal(-status) or str(status) if status < 0 else f"exit status {status}"


#: The exit status of a child whose GPU a kernel made unusable.
_LOST = 3


def as_child(keys: Sequence[str]) -> int:
    """Prove the units, and say so a line each."""
    known = {_key(unit): (unit, proof) for unit, proof in units().items()}
    for key in keys:
        _say(key, None)
        unit, proof = known[key]
        allow_tf32(unit)
        try:
            verdict = proofs.verdict(unit, proof)
        except proofs.LostDeviceError:
            found = proofs.on_record(unit)
            assert found is not None
            _say(key, found)
            return _LOST
        _say(key, verdict)
    return 0


def allow_tf32(unit: proofs.Unit) -> None:
    """As the user of those kernels has set it."""
    torch.backends.cuda.matmul.fp32_precision = "tf32" if unit.precision == "tf32" else "ieee"


def _say(key: str, verdict: proofs.Verdict | None) -> None:
    print(json.dumps({"unit": key, "verdict": verdict and verdict._asdict()}), flush=True)


def _key(unit: proofs.Unit) -> str:
    return f"{unit.name}-{unit.device}"


_ROW = "{:<16} {:<7} {:<9} {:>8} {:>7}  {}"


def table(found: Mapping[proofs.Unit, proofs.Verdict]) -> list[str]:
    """For people: a line a unit, below a heading."""
    return [_ROW.format("kernels", "backend", "precision", "error", "s", "verdict")] + [
        _row(unit, verdict) for unit, verdict in found.items()
    ]


def _row(unit: proofs.Unit, verdict: proofs.Verdict) -> str:
    said = f"proven, {verdict.date}" if verdict.passed else f"FAILED, {verdict.date}: {verdict.said}"
    return _ROW.format(*unit[:3], f"{verdict.error:.1e}", f"{verdict.seconds:.2f}", said)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--child", nargs="+", metavar="UNIT", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    parser.set_defaults(command=command)


def command(given: argparse.Namespace) -> int:
    """0 if all kernels are proven, 1 if one failed, 2 if there is nothing to prove."""
    if given.child:
        return as_child(given.child)
    wanted = list(units())
    if not wanted:
        chosen = dispatch.reasons("ssm_conv", torch.device("cuda"))[2]
        print("there are no kernels to prove here:")
        print("\n".join(f"  {backend}: {chosen[backend]}" for backend in dispatch.PROVEN_FIRST))
        return 2
    found: dict[proofs.Unit, proofs.Verdict] = {}
    if not given.json:
        for name, version in machine.versions().items():
            print(f"{name}: {version or 'none'}")
        print(f"GPU: {torch.cuda.get_device_name(0)}\n{table({})[0]}")
    for unit, verdict in in_children(wanted):
        found[unit] = verdict
        if not given.json:
            print(_row(unit, verdict), flush=True)
    if given.json:
        print(json.dumps({_key(unit): verdict._asdict() for unit, verdict in found.items()}, indent=1))
    return 0 if all(verdict.passed for verdict in found.values()) else 1
