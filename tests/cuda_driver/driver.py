"""The ops' CUDA implementations on CPU tensors, launched by their own host code on the stand-in for the driver."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .build import Built, build

ORDERS = ("forward", "reverse", "random", "skewed")  # as enum Order of the emulator

raw = torch.ops.sequence_kernels_native
_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


def _extent(tensor: Tensor) -> int:
    """The bytes from a tensor's first element to the end of its last one."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


class Buffer(NamedTuple):
    """Memory that a kernel may touch, and how fine accesses are told apart in it."""

    name: str
    address: int
    size: int
    element_size: int


class Machine(Protocol):
    """Runs kernels by name instead of the emulator; a fault is a RuntimeError. No buffers: accesses are not checked."""

    def launch(
        self,
        kernel: str,
        params: int,
        blocks: int,
        threads: int,
        shared_bytes: int,
        *,
        buffers: list[Buffer],
        order: str,
        seed: int,
    ) -> None: ...


_MACHINE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_uint,
    ctypes.c_uint,
    ctypes.c_uint,
    ctypes.POINTER(ctypes.c_char),
    ctypes.c_uint,
)


class Driver:
    """The stand-in driver and the CUDA library on it; ``driver()`` is the one of this process."""

    def __init__(self, built: Built | None = None) -> None:
        built = built or build()
        self._torch = ctypes.CDLL(str(built.torch_cuda), mode=ctypes.RTLD_GLOBAL)
        self._torch.stand_in_buffer.restype = ctypes.c_bool
        torch.ops.load_library(built.library)
        self._stand_in: Any = None
        try:
            poles = torch.ones(1, 3, dtype=torch.complex64)
            self.run("vandermonde", poles[None], poles, 5, True, 0)
        except RuntimeError as error:
            self.without_driver = str(error)
        self._stand_in = ctypes.CDLL(str(built.driver))
        self._stand_in.stand_in_record.restype = ctypes.c_char_p
        self.whole_record: list[str] = []
        self._schedule = ("forward", 0)

    @contextlib.contextmanager
    def on(self, machine: Machine) -> Iterator[None]:
        """Kernels run on that machine instead of in the emulator."""

        def launch(
            name: bytes, params: int, blocks: int, threads: int, shared: int, message: Any, size: int
        ) -> int:
            order, seed = self._schedule
            try:
                machine.launch(
                    name.decode(),
                    params,
                    blocks,
                    threads,
                    shared,
                    buffers=self._buffers(),
                    order=order,
                    seed=seed,
                )
            except Exception as error:
                text = str(error).encode()[: size - 1]
                ctypes.memmove(message, text, len(text))
                return 1
            return 0

        function = _MACHINE(launch)
        self._stand_in.stand_in_machine(function)
        try:
            yield
        finally:
            self._stand_in.stand_in_machine(None)

    def _buffers(self) -> list[Buffer]:
        found: list[Buffer] = []
        name, data = ctypes.c_char_p(), ctypes.c_void_p()
        size, element = ctypes.c_size_t(), ctypes.c_size_t()
        into = [ctypes.byref(x) for x in (name, data, size, element)]
        while self._torch.stand_in_buffer(ctypes.c_size_t(len(found)), *into):
            assert name.value is not None
            found.append(Buffer(name.value.decode(), data.value or 0, size.value, element.value))
        return found

    def run(
        self, op: str, *arguments: Any, check: bool = False, order: str = "forward", seed: int = 0
    ) -> Any:
        """What an op's CUDA implementation returns; what it allocates is filled with NaN before.

        ``order``, one of ``ORDERS``, and ``seed`` say how threads and blocks take turns between barriers. With
        ``check`` each access is checked: one outside of the op's tensors, or that no barrier orders, raises
        RuntimeError that names the kernel, the block, the thread and the line.
        """
        self._schedule = (order, seed)
        if self._stand_in is not None:
            self._stand_in.stand_in_schedule(ORDERS.index(order), seed)
        implementation = getattr(raw, op).default
        self._torch.stand_in_watch(True, check)
        try:
            names = [argument.name for argument in implementation._schema.arguments]
            for name, argument in zip(names, arguments, strict=True) if check else ():
                if isinstance(argument, Tensor) and argument.numel() > 0:
                    where = (ctypes.c_void_p(argument.data_ptr()), ctypes.c_size_t(_extent(argument)))
                    element = ctypes.c_size_t(min(4, argument.element_size()))
                    self._torch.stand_in_argument(name.encode(), *where, element)
            return implementation.redispatch(_CUDA, *arguments)
        finally:
            self.allocations = self._torch.stand_in_allocations()
            self._torch.stand_in_watch(False, False)
            self._torch.stand_in_shorten(-1, ctypes.c_size_t(0))

    def shorten(self, allocation: int, elements: int) -> None:
        """Let an allocation of the next op that is checked count as so many elements shorter than it is."""
        self._torch.stand_in_shorten(allocation, ctypes.c_size_t(elements))

    def record(self) -> list[str]:
        """The calls since the last time, one a line."""
        lines = self._stand_in.stand_in_record().decode().splitlines()
        self.whole_record += lines
        return lines

    def launches(self) -> list[str]:
        return [line.partition(" ")[2] for line in self.record() if line.startswith("cuLaunchKernel")]

    def fail(self, function: str, error: int) -> None:
        self._stand_in.stand_in_fail(function.encode(), error)

    def contexts(self) -> int:
        return self._stand_in.stand_in_contexts()


driver = functools.cache(Driver)
