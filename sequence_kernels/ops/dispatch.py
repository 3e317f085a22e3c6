"""Which implementation of an op serves a call, and why.

An op has one implementation a backend: ``torch`` (plain torch, everywhere: the tests' oracle), ``cpu`` (C++),
``cuda`` and ``triton``. Unless a caller names one, the first of the device's order that can serve the call is taken; on
a GPU, the first that has proven itself there (sequence_kernels/proofs).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from .. import choices, internals, native, proofs

BACKENDS = ("torch", "cpu", "cuda", "triton")

#: The devices that each backend's kernels run on.
_DEVICES = {"cpu": ("cpu",), "cuda": ("cuda",), "triton": ("cuda",)}

#: The kernels are tested with it and with the newest (docs/testing.md).
OLDEST_TRITON = (3, 6)

#: Those that must have proven themselves on a device before they are chosen for it.
PROVEN_FIRST = ("cuda", "triton")

#: What is tried in turn when nobody asks for a backend.
_PREFERENCE = {"cpu": ("cpu", "torch"), "cuda": ("cuda", "triton", "torch")}

Unavailable = Callable[[str, torch.dtype], "str | None"]
Function = TypeVar("Function", bound=Callable[..., Any])


class BackendUnavailableError(RuntimeError):
    """The backend asked for cannot serve the call; the message says which requirement failed and what to do."""


class Implementation(NamedTuple):
    run: Callable[..., Any]
    unavailable: Unavailable


_implementations: dict[str, dict[str, Implementation]] = {}
_explanations: dict[str, Callable[..., str]] = {}
_packages: dict[str, str] = {}
_cast: set[str] = set()
_sizes: dict[tuple[str, torch.device, torch.dtype, bool], choices.BySize] = {}
_thread = threading.local()


def implement(
    op: str, backend: str, *, unavailable: Unavailable | None = None
) -> Callable[[Function], Function]:
    """Decorator: the function is the given backend's implementation of the op.

    ``unavailable(device_type, dtype)`` returns None when it can serve such tensors, else one sentence that says what is
    missing and what to do. It is asked once for each pair. By default the backend's compiled library must be there,
    if it has one.
    """

    def library_missing(device: str, dtype: torch.dtype) -> str | None:
        return native.unavailable(backend) if backend in native.LIBRARIES else None

    def decorate(function: Function) -> Function:
        _implementations.setdefault(op, {})[backend] = Implementation(
            function, unavailable or library_missing
        )
        forget()
        return function

    return decorate


def forget() -> None:
    """Ask again which implementations can serve: one has been added, or a library has come or gone."""
    _unavailable.cache_clear()
    _first.cache_clear()
    _sizes.clear()
    choices.forget()
    able.cache_clear()


def implement_natively(op: str, *libraries: str) -> None:
    """Each library's native op of that name takes the op's arguments as they are, with contiguous tensors."""

    @functools.cache
    def kernel() -> Callable[..., Any]:
        return getattr(torch.ops.sequence_kernels_native, op).default

    def run(*args: Any) -> Any:
        return kernel()(*[a.contiguous() if isinstance(a, torch.Tensor) else a for a in args])

    for library in libraries:
        implement(op, library)(run)


def find_implementations(package: str, *ops: str) -> None:
    """Register what the package has: a module named after a backend holds the ops' implementations for it.

    ``reference`` is plain torch. ``triton`` has a function of each op's name and is imported at the first call; the
    others register theirs by ``implement`` and are imported now. ``proof``, imported when it is wanted, has the
    ``cases`` that prove the kernels on a GPU.
    """
    _packages.update(dict.fromkeys(ops, package))
    for backend in BACKENDS:
        module = f"{package}.{'reference' if backend == 'torch' else backend}"
        if importlib.util.find_spec(module) is None:
            continue
        if backend == "triton":
            _implement_in_triton(module, ops)
        else:
            importlib.import_module(module)


def _triton_missing(device: str, dtype: torch.dtype) -> str | None:
    """Without importing Triton, under whatever name it was installed."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return "triton is not installed; `pip install triton`, or install torch with CUDA, which brings it"
    version = re.search(
        r"^__version__ = ['\"]((\d+)\.(\d+).*)['\"]", Path(spec.origin).read_text(), re.MULTILINE
    )
    if version is not None and (int(version[2]), int(version[3])) < OLDEST_TRITON:
        oldest = "{}.{}".format(*OLDEST_TRITON)
        return (
            f"triton {version[1]} is too old: the kernels need {oldest}, which torch 2.10 brings, or newer; install "
            f"such a torch, or `pip install 'triton>={oldest}'`"
        )
    return None


def _implement_in_triton(module: str, ops: Sequence[str]) -> None:
    for op in ops:

        def run(*args: Any, op: str = op) -> Any:
            with torch.cuda.device_of(args[0]):  # Triton launches on the current device
                return getattr(importlib.import_module(module), op)(*args)

        implement(op, "triton", unavailable=_triton_missing)(run)


def implementation(op: str, backend: str) -> Callable[..., Any]:
    """The function that was registered for the op and the backend."""
    return _implementations[op][backend].run


def nearest(op: str, backend: str, tensor: torch.Tensor) -> str:
    """The backend for an op that works for another one, which has that backend: one of its own choice or, where the
    other one's was asked for by ``use_backend``, the same or plain torch."""
    if getattr(_thread, "backend", None) is None:
        served = _serving(op, tensor.device, tensor.dtype)
        return served if not _sizes or torch.compiler.is_compiling() else _of_its_size(served, op, tensor)
    return backend if backend in _implementations[op] else "torch"


def runs_on(backend: str, device: str) -> bool:
    """True where the backend's kernels take tensors of that device type."""
    return backend == "torch" or device in _DEVICES[backend]


@functools.cache
def _unavailable(op: str, backend: str, device: str, dtype: torch.dtype) -> str | None:
    """Why the backend cannot serve the op for tensors of that device and dtype; None if it can."""
    if not runs_on(backend, device):
        return (
            f"backend {backend!r} does not run on {device!r} tensors; move the tensors or use backend='torch'"
        )
    reason = _missing(op, backend, device, dtype)
    if reason is None and backend in PROVEN_FIRST and not torch.cuda.is_available():
        return "there is no GPU here that torch can use"
    return reason


def _missing(op: str, backend: str, device: str, dtype: torch.dtype) -> str | None:
    if backend not in _implementations[op]:
        have = ", ".join(sorted(_implementations[op]))
        return f"{op} has no {backend!r} implementation; it has: {have}"
    return _implementations[op][backend].unavailable(device, dtype)


@internals.constant_for_compiler
def _serving(op: str, device: torch.device, dtype: torch.dtype) -> str:
    on_cpu = device.type == "cpu"
    dtype = dtype if on_cpu else _after_autocast(op, device, dtype)
    try:
        chosen, warned = _first(op, device, dtype, not on_cpu and _tf32(device, dtype))
    except proofs.NotNowError as error:
        _warn_once(f"sequence_kernels computes {op} with plain torch: {error}")
        return "torch"
    for warning in warned:
        _warn_once(warning)
    return chosen


def _tf32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch lets kernels round float32 numbers to 11 bits before they multiply them on tensor cores."""
    return (
        device.type == "cuda"
        and dtype.to_real() == torch.float32
        and torch.backends.cuda.matmul.fp32_precision == "tf32"
    )


def _of_its_size(served: str, op: str, tensor: torch.Tensor) -> str:
    """What has been measured to be the fastest for so many elements, where that is known."""
    device = tensor.device
    if device.type == "cpu":
        return served
    dtype = _after_autocast(op, device, tensor.dtype)
    found = _sizes.get((op, device, dtype, _tf32(device, dtype)))
    return found.backend(tensor.numel(), torch.is_grad_enabled()) if found else served


def _measured(op: str, device: torch.device, dtype: torch.dtype) -> choices.Measured | None:
    """What is known of the op's times on the device."""
    if device.type != "cuda" or _unprovable(op, "cuda") is not None:
        return None
    return choices.measured(op, unit(op, "cuda", device, dtype).precision, device)


@functools.cache
def _first(op: str, device: torch.device, dtype: torch.dtype, tf32: bool) -> tuple[str, tuple[str, ...]]:
    """The first backend of the device's order that can serve, and what is to be said of those before it.

    Where times are known that is the order, and all that are the fastest at some size are asked for.
    """
    missing: list[str] = []
    failed: list[str] = []
    serving: list[str] = []
    measured = _measured(op, device, dtype)
    order = measured.overall if measured else _PREFERENCE.get(device.type, ("torch",))
    for backend in order:
        if serving and (measured is None or backend not in measured.ever_fastest()):
            continue
        reason = _unavailable(op, backend, device.type, dtype) or _unprovable(op, backend)
        if reason is not None:
            if backend in native.LIBRARIES and native.unavailable(backend) == reason:
                missing.append(f"sequence_kernels computes with plain torch, which is slower: {reason}")
            continue
        if backend not in PROVEN_FIRST:
            serving.append(backend)
            continue
        asked = unit(op, backend, device, dtype)
        found = proofs.verdict(asked, proof(op, backend, asked.precision))
        if found.passed:
            serving.append(backend)
            continue
        failed.append(
            f"sequence_kernels does not use {asked} on {found.gpu}: "
            f"{found.said}. `python -m sequence_kernels prove` makes a report to send us"
        )
    chosen = serving[0] if serving else "torch"
    if measured and serving:
        _sizes[op, device, dtype, tf32] = choices.by_size(measured, serving)
    return chosen, (*failed, *(missing if chosen == "torch" else ()))


def unit(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> proofs.Unit:
    """What has to be proven before the backend serves the op for tensors of that device and dtype.

    Where its kernels do not compute in the precision of the tensors, that is float32.
    """
    kind = "tf32" if _tf32(device, dtype) else str(dtype.to_real()).removeprefix("torch.")
    return proofs.Unit(family(op), backend, kind if kind in _proofs(op).PRECISIONS else "float32", device)


def units(device: torch.device) -> dict[proofs.Unit, proofs.Proof]:
    """All that can be proven on a GPU."""
    found: dict[proofs.Unit, proofs.Proof] = {}
    for op, backends in _implementations.items():
        for backend in PROVEN_FIRST:
            if backend not in backends or _unavailable(op, backend, device.type, torch.float32):
                continue
            if _unprovable(op, backend) is None:
                for kind in _proofs(op).PRECISIONS:
                    found.setdefault(proofs.Unit(family(op), backend, kind, device), proof(op, backend, kind))
    return found


def family(op: str) -> str:
    """The directory that the op and those of the same kernels stand in; its own name if it has none."""
    return _packages.get(op, op).rpartition(".")[2]


def proof(op: str, backend: str, kind: str) -> proofs.Proof:
    """The proof for the backend's kernels of the op's directory."""
    return proofs.Proof(
        functools.partial(proof_cases, op, kind),
        functools.partial(implementation, backend=backend),
        functools.partial(implementation, backend="torch"),
    )


def proof_cases(op: str, kind: str) -> list[proofs.Case]:
    """The calls that prove the kernels of the op's directory."""
    return list(_proofs(op).cases(getattr(torch, "float32" if kind == "tf32" else kind)))


def workloads(op: str, kind: str) -> list[proofs.Workload]:
    """The calls of the op that are timed to choose among its kernels."""
    found = _proofs(op).workloads(getattr(torch, "float32" if kind == "tf32" else kind))
    return [workload for workload in found if workload.op == op]


def _proofs(op: str) -> Any:
    """The module ``proof`` of the op's directory: ``PRECISIONS``, and ``cases`` and ``workloads`` of a dtype."""
    return importlib.import_module(f"{_packages[op]}.proof")


def _unprovable(op: str, backend: str) -> str | None:
    if backend not in PROVEN_FIRST:
        return None
    package = _packages.get(op)
    if package is not None and importlib.util.find_spec(f"{package}.proof") is not None:
        return None
    return f"{op} has no cases that would prove its kernels: able, if it is asked for"


@functools.cache
def _warn_once(text: str) -> None:
    """What costs speed is said once, as nothing else tells."""
    warnings.warn(text, RuntimeWarning, stacklevel=2)


@internals.constant_for_compiler
def _require(op: str, backend: str, device: str, dtype: torch.dtype) -> str:
    reason = _unavailable(op, backend, device, dtype)
    if reason is not None:
        raise BackendUnavailableError(f"{op}(backend={backend!r}): {reason}")
    return backend


def _known(backend: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be None or one of {BACKENDS}, got {backend!r}")
    return backend


@functools.cache
def able(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> Callable[..., Any]:
    """``implementation``, after the backend's library has been loaded: an exported graph has not come by ``choose``.

    Raises BackendUnavailableError where that fails. On which devices the backend's kernels run, they know themselves.
    """
    reason = _missing(op, _known(backend), device.type, dtype)
    if reason is not None:
        raise BackendUnavailableError(f"{op}(backend={backend!r}): {reason}")
    return implementation(op, backend)


def choose(op: str, backend: str | None, tensor: torch.Tensor) -> str:
    """The backend that serves the op for tensors like this one.

    The argument wins over ``use_backend``, which wins over the device's order of preference. Raises
    BackendUnavailableError when the backend that was asked for cannot serve the call.
    """
    asked = backend if backend is not None else getattr(_thread, "backend", None)
    if asked is None:
        served = _serving(op, tensor.device, tensor.dtype)
        return served if not _sizes or torch.compiler.is_compiling() else _of_its_size(served, op, tensor)
    return _require(op, _known(asked), tensor.device.type, tensor.dtype)


def follows_autocast(op: str) -> None:
    """What autocast casts to its dtype on the way to the op's kernels is what ``choose`` is asked with."""
    _cast.add(op)


def _after_autocast(op: str, device: torch.device, dtype: torch.dtype) -> torch.dtype:
    if op not in _cast or dtype == torch.float64 or not torch.is_autocast_enabled(device.type):
        return dtype
    return torch.get_autocast_dtype(device.type)


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Context manager: in this thread, ops called without ``backend=`` use the named backend (None: choose freely)."""
    if name is not None:
        _known(name)
    previous = getattr(_thread, "backend", None)
    _thread.backend = name
    try:
        yield
    finally:
        _thread.backend = previous


def operations() -> tuple[str, ...]:
    """The names of all ops, in alphabetical order."""
    return tuple(sorted(_implementations))


def explains(op: str) -> Callable[[Function], Function]:
    """Decorator: ``function(backend, **shape)`` says what else is chosen for a call of that shape."""

    def decorate(function: Function) -> Function:
        _explanations[op] = function
        return function

    return decorate


def explain(
    op: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, **shape: Any
) -> str:
    """Say which backend would serve the op for tensors of that device and dtype, and why not the others.

    For ``ssm_conv`` also how a layer would convolve, given ``batch``, ``length``, ``size`` (real entries of a head's
    state), ``dense`` (A) and ``state`` (whether one is carried).
    """
    if op not in _implementations:
        raise ValueError(f"op must be one of {operations()}, got {op!r}")
    if shape and op not in _explanations:
        raise TypeError(f"nothing depends on the shape for {op}, got {', '.join(shape)}")
    where = torch.device(device)
    chosen, proven, others = reasons(op, where, dtype)
    said = f"{chosen} ({proven})" if proven else chosen
    lines = [f"{op} on {where}, {dtype}: {said}", *(f"  {name}: {why}" for name, why in others.items())]
    if shape:
        lines.append(_explanations[op](chosen, **shape))
    return "\n".join(lines)


def reasons(
    op: str, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[str, str | None, dict[str, str]]:
    """The backend that would serve the op on the device, what is known of its proof, and why not each other one.

    Nothing is proven for the answer.
    """
    if device == torch.device("cuda") and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    refused = {b: reason for b in BACKENDS if (reason := _refused(op, b, device, dtype))}
    measured = None if device.index is None else _measured(op, device, dtype)
    order = measured.overall if measured else _PREFERENCE.get(device.type, ("torch",))
    chosen = next(b for b in order if b not in refused)
    others = {b: refused.get(b, "able, if it is asked for") for b in BACKENDS if b != chosen}
    said = [_said_of_times(measured, chosen)] if measured else []
    if chosen in PROVEN_FIRST:
        said.append(_said(proofs.on_record(unit(op, chosen, device, dtype))))
    return chosen, "; ".join(said) or None, others


def _said_of_times(measured: choices.Measured, chosen: str) -> str:
    sizes = [
        f"{ranked.forward[0]} at {size} elements"
        for size, ranked in measured.sizes
        if ranked.forward[0] != chosen
    ]
    return ", ".join((f"chosen by measuring on {measured.gpu}, {measured.date}", *sizes))


def _refused(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    reason = _unavailable(op, backend, device.type, dtype) or _unprovable(op, backend)
    if reason is None and backend in PROVEN_FIRST:
        verdict = proofs.on_record(unit(op, backend, device, dtype))
        if verdict is not None and not verdict.passed:
            return f"failed its proof on {verdict.gpu}, {verdict.date}: {verdict.said}"
    return reason


def _said(verdict: proofs.Verdict | None) -> str:
    if verdict is None:
        return "once it is proven here: at the first call, or by `python -m sequence_kernels prove`"
    return f"proven on {verdict.gpu}, {verdict.date}"
