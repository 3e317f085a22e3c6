"""Proves all kernels on the GPUs that are here: `python -m sequence_kernels prove`."""

from __future__ import annotations

import argparse
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from . import machine, proofs
from .ops import dispatch

#: What runs the proofs of the units that are named behind it.
CHILD = (sys.executable, "-m", "sequence_kernels", "prove", "--child")

#: A child that says nothing for so many seconds hangs; it says something at each call, before Triton compiles for it.
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
    """Prove each anew; a kernel that kills its process, or hangs, costs a child.

    Raises RuntimeError where proofs cannot be carried out, for want of memory or the like.
    """
    left = {_key(unit): unit for unit in wanted}
    while left:
        with subprocess.Popen([*CHILD, *left], stdout=subprocess.PIPE, text=True) as child:
            at, why = None, ""
            for said in _said_by(child, patience):
                at = said["unit"]
                if "error" in said:
                    raise RuntimeError(said["error"])
                if "verdict" in said:
                    yield left.pop(at), proofs.Verdict(**said["verdict"])
                    at = None
            if child.poll() is None:
                why = f"said nothing for {patience:.0f} s"
                child.kill()
        if at is not None and (why or child.returncode < 0):
            unit = left.pop(at)
            yield unit, proofs.record(unit, why or f"ended its process: {_ending(child.returncode)}")
        elif left and child.returncode not in (0, _LOST):
            raise RuntimeError(f"the proofs' process could not work: {why or _ending(child.returncode)}")


def _said_by(child: subprocess.Popen[str], patience: float) -> Iterator[dict[str, Any]]:
    """What the child says, a line each, until it ends or says nothing for too long."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    started = False
    while True:
        try:
            line = lines.get(timeout=patience if started else PATIENCE)
        except queue.Empty:
            return
        if not line:
            child.wait()
            return
        started = True
        yield json.loads(line)


def _ending(status: int) -> str:
    return signal.strsignal(-status) or str(status) if status < 0 else f"exit status {status}"


#: The exit status of a child whose GPU a kernel made unusable.
_LOST = 3


def as_child(keys: Sequence[str]) -> int:
    """Prove the units anew, and say so: a line at each call, which may have to compile, and one for each verdict."""
    known = {_key(unit): (unit, proof) for unit, proof in units().items()}
    for key in keys:
        unit, proof = known[key]
        allow_tf32(unit.precision)
        proofs.forget(unit)
        try:
            found = proofs.verdict(unit, proof._replace(kernels=_heard(key, proof.kernels)))
        except proofs.LostDeviceError:
            lost = proofs.on_record(unit)
            assert lost is not None
            _say(unit=key, verdict=lost._asdict())
            return _LOST
        except Exception as error:
            _say(unit=key, error=str(error))
            return 1
        _say(unit=key, verdict=found._asdict())
    return 0


def _heard(key: str, kernels: Callable[[str], Callable[..., Any]]) -> Callable[[str], Callable[..., Any]]:
    def kernel(op: str) -> Callable[..., Any]:
        _say(unit=key)
        return kernels(op)

    return kernel


def allow_tf32(precision: str) -> None:
    """As the user of kernels for that precision has set it."""
    torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def _key(unit: proofs.Unit) -> str:
    return f"{unit.name}-{unit.device}"


_ROW = "{:<19} {:<7} {:<9} {:>8} {:>7}  {}"


def table(found: Mapping[proofs.Unit, proofs.Verdict]) -> list[str]:
    """For people: a line a unit, below a heading."""
    return [_ROW.format("kernels", "backend", "precision", "error", "s", "verdict")] + [
        _row(unit, verdict) for unit, verdict in found.items()
    ]


def _row(unit: proofs.Unit, verdict: proofs.Verdict) -> str:
    said = f"proven, {verdict.date}" if verdict.passed else f"FAILED, {verdict.date}: {verdict.said}"
    error = "-" if verdict.error is None else f"{verdict.error:.1e}"
    return _ROW.format(*unit[:3], error, f"{verdict.seconds:.2f}", said)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--child", nargs="+", metavar="UNIT", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    parser.add_argument("--missing", action="store_true", help="only what is not proven yet")
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
    if given.missing:
        found = {u: v for u in wanted if (v := proofs.on_record(u)) and v.passed}
        wanted = [unit for unit in wanted if unit not in found]
    for unit, verdict in in_children(wanted):
        found[unit] = verdict
        if not given.json:
            print(_row(unit, verdict), flush=True)
    if given.json:
        print(json.dumps({_key(unit): verdict._asdict() for unit, verdict in found.items()}, indent=1))
    return 0 if all(verdict.passed for verdict in found.values()) else 1
