"""Tensors on `cuda` whose memory is the CPU's, and what runs when an op meets one."""

from __future__ import annotations

import threading
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map

from sequence_kernels import native
from sequence_kernels.ops import dispatch
from sequence_kernels.ops.calls import kernel_rule
from sequence_kernels.proofs import judge
from tests.computing import computes
from tests.cuda_driver.build import built
from tests.cuda_driver.driver import Driver

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class OnGpu(Tensor):
    """Looks like a tensor on ``cuda:0``; ``held`` is where its elements are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CUDA,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: None, size: Any, stride: Any) -> OnGpu:
        return OnGpu(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return GPU.run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGpu({self.held})"


class StandInGpu(TorchDispatchMode):
    """Within it new tensors can be on ``cuda``; ``launches`` counts what a GPU would have been asked to run."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.capturing = False
        self.driver: Any = None

    def plug_in(self, *, triton: bool) -> None:
        """For the rest of the process: this mode in every thread, and what torch.cuda says of its only device."""
        self._describe()
        self.__enter__()
        run = threading.Thread.run

        def within(thread: threading.Thread) -> None:
            with self:
                run(thread)

        threading.Thread.run = within  # type: ignore[method-assign]
        if triton:
            self._take_triton_kernels()
        else:
            for implementations in dispatch._implementations.values():
                implementations.pop("triton", None)
        judge.SLOW = 60.0  # the emulator and the interpreter are
        assert native.unavailable("cpu") is None
        self.driver = Driver(built())
        native._reasons["cuda"] = None

    def _describe(self) -> None:
        properties = SimpleNamespace(
            name="stand-in GPU",
            major=9,
            minor=0,
            multi_processor_count=132,
            total_memory=1 << 30,
            shared_memory_per_block_optin=227 << 10,
            L2_cache_size=1 << 20,
        )
        facts = {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "synchronize": lambda device=None: None,
            "is_current_stream_capturing": lambda: self.capturing,
            "get_device_name": lambda device=None: properties.name,
            "get_device_capability": lambda device=None: (properties.major, properties.minor),
            "get_device_properties": lambda device=None: properties,
            "memory_allocated": lambda device=None: 0,
            "max_memory_allocated": lambda device=None: 0,
            "reset_peak_memory_stats": lambda device=None: None,
            "Event": _Event,
            "_exchange_device": lambda index: 0,
            "_maybe_exchange_device": lambda index: 0,
        }
        for name, fact in facts.items():
            setattr(torch.cuda, name, fact)

    def _take_triton_kernels(self) -> None:
        try:
            from triton.runtime.interpreter import GridExecutor
        except ImportError:
            return
        launch = GridExecutor.__call__

        def counted(executor: Any, *args: Any, **kwargs: Any) -> Any:
            self.launches[executor.fn.__name__] += 1
            return launch(executor, *_held(args), **_held(kwargs))

        GridExecutor.__call__ = counted

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func.namespace == "sequence_kernels":
            with self:
                return kernel_rule(func._opname)(*args, **kwargs)
        given = [*args, *kwargs.values()]
        on_gpu = any(
            isinstance(a, OnGpu) for a in (*given, *(i for a in given if type(a) is list for i in a))
        )
        if not on_gpu and "device" not in kwargs:
            return func(*args, **kwargs)
        if func.namespace == "sequence_kernels_native" and on_gpu:
            self.driver.record()
            out = self.driver.run(func._opname, *_held(args))
            self.launches.update(line.split()[0] for line in self.driver.launches())
            return tree_map(_wrapped, out)
        asked = kwargs.get("device")
        goes = on_gpu if asked is None else torch.device(asked).type == "cuda"
        out = func(*_held(args), **_held(kwargs))
        if not goes:
            return out
        if computes(func):
            self.launches[f"torch {func._opname}"] += 1
        return return_and_correct_aliasing(func, args, kwargs, tree_map(_wrapped, out))


def _dispatch(mode: StandInGpu, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    return mode.run(func, args, kwargs or {})


#: Not in the class, where torch would wrap it in what loads torch.compile: as long a time as to load torch.
StandInGpu.__torch_dispatch__ = _dispatch  # type: ignore[method-assign]


class _Event:
    """A moment: everything that was queued before it is done."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: _Event) -> float:
        return 1e3 * (end.at - self.at)


def _held(given: Any) -> Any:
    """Of an op's arguments, which are no deeper than lists."""
    if isinstance(given, (list, tuple)):
        return type(given)([_held(a) for a in given])
    if isinstance(given, dict):
        return {name: _held(a) for name, a in given.items()}
    if isinstance(given, OnGpu):
        return given.held
    return CPU if isinstance(given, torch.device) and given.type == "cuda" else given


def _wrapped(out: Any) -> Any:
    """On the GPU; a pending conjugation or negation is carried out, as a wrapper has none."""
    return OnGpu(out.resolve_conj().resolve_neg()) if isinstance(out, Tensor) else out


GPU = StandInGpu()
