"""Which implementation of an op serves a call, and why.

An op has one implementation a backend: ``torch`` (plain torch, everywhere: the tests' oracle), ``cpu`` (C++),
``cuda`` and ``triton``. Unless a caller names one, the first of the device's order that can serve the call is taken.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch

from .. import native

BACKENDS = ("torch", "cpu", "cuda", "triton")

#: The devices that each backend's kernels run on.
_DEVICES = {"cpu": ("cpu",), "cuda": ("cuda",), "triton": ("cuda",)}

#: What is tried in turn when nobody asks for a backend. CUDA and Triton join when they have been run on a GPU.
_PREFERENCE = {"cpu": ("cpu", "torch"), "cuda": ("torch",)}

Unavailable = Callable[[str, torch.dtype], "str | None"]
Function = TypeVar("Function", bound=Callable[..., Any])


class BackendUnavailableError(RuntimeError):
    """The backend asked for cannot serve the call; the message says which requirement failed and what to do."""


class Implementation(NamedTuple):
    run: Callable[..., Any]
    unavailable: Unavailable


_implementations: dict[str, dict[str, Implementation]] = {}
_explanations: dict[str, Callable[..., str]] = {}
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
    others register theirs by ``implement`` and are imported now.
    """
    for backend in BACKENDS:
        module = f"{package}.{'reference' if backend == 'torch' else backend}"
        if importlib.util.find_spec(module) is None:
            continue
        if backend == "triton":
            _implement_in_triton(module, ops)
        else:
            importlib.import_module(module)


def _implement_in_triton(module: str, ops: Sequence[str]) -> None:
    def missing(device: str, dtype: torch.dtype) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return (
                "triton is not installed; `pip install triton`, or install torch with CUDA, which brings it"
            )
        return None

    for op in ops:

        def run(*args: Any, op: str = op) -> Any:
            with torch.cuda.device_of(args[0]):  # Triton launches on the current device
                return getattr(importlib.import_module(module), op)(*args)

        implement(op, "triton", unavailable=missing)(run)


def implementation(op: str, backend: str) -> Callable[..., Any]:
    """The function that was registered for the op and the backend."""
    return _implementations[op][backend].run


def nearest(op: str, backend: str) -> str:
    """The backend for an op that works for another one, which has that backend: the same, or plain torch."""
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
    return _missing(op, backend, device, dtype)


def _missing(op: str, backend: str, device: str, dtype: torch.dtype) -> str | None:
    if backend not in _implementations[op]:
        have = ", ".join(sorted(_implementations[op]))
        return f"{op} has no {backend!r} implementation; it has: {have}"
    return _implementations[op][backend].unavailable(device, dtype)


@torch.compiler.assume_constant_result
def _serving(op: str, device: str, dtype: torch.dtype) -> str:
    chosen, refused = _first(op, device, dtype)
    for backend, reason in refused.items():
        if backend in native.LIBRARIES and native.unavailable(backend) == reason:
            _warn_that_it_is_slow(reason)
    return chosen


@functools.cache
def _first(op: str, device: str, dtype: torch.dtype) -> tuple[str, dict[str, str]]:
    """The first backend of the device's order that can serve, and why those before it cannot."""
    refused: dict[str, str] = {}
    for backend in _PREFERENCE.get(device, ("torch",)):
        reason = _unavailable(op, backend, device, dtype)
        if reason is None:
            return backend, refused
        refused[backend] = reason
    return "torch", refused


@functools.cache
def _warn_that_it_is_slow(reason: str) -> None:
    """Once for each reason: a library that is missing costs speed, and nothing else tells."""
    warnings.warn(
        f"sequence_kernels computes with plain torch, which is slower: {reason}", RuntimeWarning, stacklevel=2
    )


@torch.compiler.assume_constant_result
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
        return _serving(op, tensor.device.type, tensor.dtype)
    return _require(op, _known(asked), tensor.device.type, tensor.dtype)


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
    kind = torch.device(device).type
    chosen, others = reasons(op, kind, dtype)
    lines = [f"{op} on {kind}, {dtype}: {chosen}", *(f"  {name}: {why}" for name, why in others.items())]
    if shape:
        lines.append(_explanations[op](chosen, **shape))
    return "\n".join(lines)


def reasons(op: str, device: str, dtype: torch.dtype = torch.float32) -> tuple[str, dict[str, str]]:
    """The backend that would serve the op for tensors of that device type and dtype, and why not each other one."""
    chosen, _ = _first(op, device, dtype)
    others = {
        backend: _unavailable(op, backend, device, dtype) or "able, if it is asked for"
        for backend in BACKENDS
        if backend != chosen
    }
    return chosen, others
