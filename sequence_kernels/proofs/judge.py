"""Carries a proof out, once for each unit: in a thread of its own, where nothing of the caller's is at work."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import machine, native
from .case import Case, widened
from .ledger import Ledger, Unit, Verdict, standard_root

#: Relative errors, norm-wise, of each result. A few times those that the emulator shows, where TF32 products, of
#: factors of 11 bits, reach 7e-3 in a gradient, and bfloat16 ones 7e-3.
TOLERANCES = {"float64": 1e-11, "float32": 2e-5, "tf32": 2e-2, "float16": 5e-3, "bfloat16": 2e-2}

#: A small call that takes so many seconds, at best of three, is none to be served by, whatever it computes.
SLOW = 1.0

#: What errors say that are not the kernel's fault: they pass, and no verdict comes of them.
_PASSING = ("out of memory", "aoti_torch_", "captur", "compiler", "busy or unavailable", "No space left")

_THREAD = "proof of kernels"

_known: dict[Unit, Verdict] = {}


class NotNowError(RuntimeError):
    """There is no verdict, and none can be had now; the message says why."""


class LostDeviceError(RuntimeError):
    """A kernel left the GPU unusable for the rest of the process."""


class Proof(NamedTuple):
    """``cases`` of one precision, and by op's name the ``kernels`` to prove and plain torch, which is ``exact``."""

    cases: Callable[[], Iterable[Case]]
    kernels: Callable[[str], Callable[..., Any]]
    exact: Callable[[str], Callable[..., Any]]


def on_record(unit: Unit) -> Verdict | None:
    """The verdict, if there is one; nothing is proven."""
    if unit not in _known:
        found = _ledger(unit.device).read(unit.name)
        if found is None:
            return None
        _known[unit] = found
    return _known[unit]


def verdict(unit: Unit, proof: Proof) -> Verdict:
    """The verdict, after a proof if there is none yet.

    Raises NotNowError during the capture of a CUDA graph, and where the GPU's memory, a compiler or the like is missing
    for a proof; LostDeviceError where the proof cost the GPU.
    """
    found = on_record(unit)
    if found is not None:
        return found
    if threading.current_thread().name == _THREAD:
        raise NotNowError(f"{unit} are not proven yet, and another proof calls them")
    if torch.cuda.is_current_stream_capturing():
        raise NotNowError(
            f"{unit} are not proven yet, and cannot be while a CUDA graph is captured: call the model once before, or "
            "run `python -m sequence_kernels prove`"
        )
    return _at_work().proof_of(unit, proof).result()


def folder(device: torch.device) -> Path | None:
    """Where verdicts for this build on the GPU lie; None where they cannot be kept."""
    return _ledger(device).folder


def record(unit: Unit, said: str) -> Verdict:
    """Put it on record that the kernels failed, as somebody else has found."""
    found = _verdict(unit, said, None, 0.0)
    forget(unit)
    _ledger(unit.device).write(unit.name, found)
    return found


def forget(unit: Unit) -> None:
    """Prove it again when it is wanted next."""
    _known.pop(unit, None)
    _ledger(unit.device).forget(unit.name)


class _AtWork:
    """The proofs that a process carries out: one at a time, each for all who want it.

    In a thread of its own, as modes, transforms, tracers, autocast and streams belong to threads. Whoever waits may be
    interrupted; the proof goes on, and is there for the next who wants it.
    """

    def __init__(self) -> None:
        self._proofs: dict[Unit, Future[Verdict]] = {}
        self._table, self._turn = threading.Lock(), threading.Lock()

    def proof_of(self, unit: Unit, proof: Proof) -> Future[Verdict]:
        with self._table:
            if unit not in self._proofs:
                self._proofs[unit] = Future()
                threading.Thread(target=self._work, args=(unit, proof), name=_THREAD).start()
            return self._proofs[unit]

    def _work(self, unit: Unit, proof: Proof) -> None:
        result = self._proofs[unit]
        try:
            with self._turn:
                result.set_result(on_record(unit) or _proven(unit, proof))
        except BaseException as error:
            result.set_exception(error)
        finally:
            with self._table:
                del self._proofs[unit]


_by_process: dict[int, _AtWork] = {}


def _at_work() -> _AtWork:
    """A forked process has its own: it has not the threads of the other one."""
    return _by_process.setdefault(os.getpid(), _AtWork())


def _proven(unit: Unit, proof: Proof) -> Verdict:
    ledger = _ledger(unit.device)
    with ledger.turn(unit.name) as left:
        found = ledger.read(unit.name)  # another process was first
        if found is None:
            if left:
                found = _verdict(
                    unit, f"{left} ended before the proof did; the command below tries it again", None, 0.0
                )
            else:
                found = prove(unit, proof)
            ledger.write(unit.name, found)
        _known[unit] = found
        if not found.passed and not _works(unit.device):
            raise LostDeviceError(
                f"{unit} left {unit.device} unusable in this process ({found.said}). They will not be tried again: "
                "start the program anew"
            )
    return found


def prove(unit: Unit, proof: Proof) -> Verdict:
    """Carry the proof out here and now, and put nothing on record."""
    tolerance = TOLERANCES[unit.precision]
    started, worst, said = time.perf_counter(), 0.0, ""
    with torch.no_grad():
        for case in proof.cases():
            error, seconds, said = _try(unit, proof, case)
            worst = max(worst, error)
            if not said and not error <= tolerance:
                said = (
                    f"case {case.name!r} has a relative error of {error:.1e}, and {tolerance:.0e} is allowed"
                )
            if not said and seconds > SLOW:
                said = f"case {case.name!r} took {seconds:.1f} s"
            if said:
                break
    return _verdict(unit, said, worst, time.perf_counter() - started)


def _try(unit: Unit, proof: Proof, case: Case) -> tuple[float, float, str]:
    """The largest error of a result, or of an argument afterwards, the time of the call, and what it raised."""
    kernel, device = proof.kernels(case.op), unit.device
    exact = widened(case.args)
    wanted = _tensors(proof.exact(case.op)(*exact), exact)
    fastest = float("inf")
    for _ in range(3):  # the first may have to compile, others to wait for a GPU that is shared
        try:
            args = tuple(a.to(device, copy=True) if isinstance(a, Tensor) else a for a in case.args)
            torch.full((1 << 18,), torch.nan).to(device)  # dropped: what the kernels allocate next holds NaN
            torch.cuda.synchronize(device)
        except Exception as raised:
            raise NotNowError(f"{unit} cannot be proven now: {raised}") from raised
        started = time.perf_counter()
        try:
            results = kernel(*args)
            torch.cuda.synchronize(device)
        except Exception as raised:  # whatever else it is, the kernels are not used
            if isinstance(raised, (OSError, torch.OutOfMemoryError)) or any(
                p in str(raised) for p in _PASSING
            ):
                raise NotNowError(f"{unit} cannot be proven now: {raised}") from raised
            return float("inf"), 0.0, f"case {case.name!r} raised {raised}"
        fastest = min(fastest, time.perf_counter() - started)
        if fastest <= SLOW:
            break
    got = [t.cpu() for t in _tensors(results, args)]
    return max(_error(g, w) for g, w in zip(got, wanted, strict=True)), fastest, ""


def _tensors(results: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """Those that a call gave, and those that it was given: it writes into none of these but the op's own state."""
    results = results if isinstance(results, (tuple, list)) else (results,)
    return [t for t in (*results, *args) if isinstance(t, Tensor)]


def _error(got: Tensor, wanted: Tensor) -> float:
    if got.shape != wanted.shape:
        return float("inf")
    exact = wanted if wanted.is_floating_point() or wanted.is_complex() else wanted.double()
    got = got.to(exact.dtype)
    wrong = torch.where(got == exact, 0, got - exact)  # an infinite one is right if it is the same
    if not wrong.any():
        return 0.0
    error = float(wrong.norm()) / max(float(torch.where(exact.isfinite(), exact, 0).norm()), 1e-30)
    return error if error == error else float("inf")


def _works(device: torch.device) -> bool:
    try:
        return torch.ones(1).to(device).cpu().item() == 1
    except RuntimeError:
        return False


def _verdict(unit: Unit, said: str, error: float | None, seconds: float) -> Verdict:
    """``error``: None, as JSON has no infinity, where there is no number."""
    day = datetime.now(timezone.utc).date().isoformat()
    error = None if error == float("inf") else error
    return Verdict(not said, said, error, round(seconds, 3), torch.cuda.get_device_name(unit.device), day)


@functools.cache
def _ledger(device: torch.device) -> Ledger:
    major, minor = torch.cuda.get_device_capability(device)
    place = {
        "GPU": torch.cuda.get_device_name(device),
        "capability": f"{major}.{minor}",
        "driver": machine.driver(),
        "torch": torch.__version__,
        "triton": machine.version("triton"),
        "triton's interpreter": os.environ.get("TRITON_INTERPRET"),
        "build": _build(),
    }
    return Ledger(standard_root(), place)


@functools.cache
def _build() -> str:
    """A hash of the compiled kernels, of the Python in which Triton's are written, and of what judges them."""
    found = hashlib.sha256(json.dumps(native.built_with("cuda"), sort_keys=True).encode())
    package = Path(__file__).parents[1]
    for folder in ("ops", "proofs"):
        for source in sorted((package / folder).rglob("*.py")):
            found.update(source.read_bytes())
    return found.hexdigest()
