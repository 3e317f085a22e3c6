"""Calls of the native ops by hand with arguments that their fronts refuse: ``python -m tests.ops.hostile``.

Every op is called as the samples call it, with one argument spoiled at a time: other shapes, dtypes, strides and
devices, indices and counts out of range. What is read lies right before a page that must not be touched, so that a read
past the end ends the process. The last line that was printed is then the call. Prints "survived" at the end.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import math
import mmap
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sequence_kernels import S4, native, ops, use_backend

from .samples import SAMPLES

PREFIX = "sequence_kernels_native::"
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.int32, torch.int64, torch.bool),
)
NUMBERS = (-(2**63), -(2**32), -3, -2, -1, 0, 1, 2, 3, 64, 1 << 16, 2**31, 2**32 + 1, 2**40, 2**62, 2**63 - 1)

#: Good calls of an op that are spoiled.
MOST = 3

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Guarded:
    """Memory whose end a page follows that cannot be read or written."""

    def __init__(self) -> None:
        self._mapped: list[tuple[int, int]] = []

    def copy(self, tensor: Any) -> Any:
        """The same sizes, strides and values, in such memory; what is no tensor on the CPU itself."""
        if not isinstance(tensor, Tensor) or tensor.device.type != "cpu" or tensor.numel() == 0:
            return tensor
        span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        size, page = span * tensor.element_size(), mmap.PAGESIZE
        room = -(-size // page) * page
        at = _libc.mmap(
            None, room + page, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANON, -1, 0
        )
        if at in (None, ctypes.c_void_p(-1).value):
            raise MemoryError
        self._mapped.append((at, room + page))
        _libc.mprotect(at + room, page, 0)
        memory = (ctypes.c_char * size).from_address(at + room - size)
        flat = torch.frombuffer(memory, dtype=tensor.dtype)
        flat.copy_(tensor.detach().as_strided((span,), (1,)))
        return flat.as_strided(tensor.shape, tensor.stride())

    def free(self) -> None:
        for at, size in self._mapped:
            _libc.munmap(at, size)
        self._mapped.clear()


class Recorder:
    """Stands before a native op, and keeps what it is called with."""

    def __init__(self, packet: Any, calls: list[tuple[Any, tuple[Any, ...]]]) -> None:
        self._packet, self._calls = packet, calls

    @property
    def default(self) -> Recorder:
        return self

    def __call__(self, *arguments: Any) -> Any:
        kept = (
            a.detach().clone(memory_format=torch.preserve_format) if isinstance(a, Tensor) else a
            for a in arguments
        )
        self._calls.append((self._packet.default, tuple(kept)))
        return self._packet.default(*arguments)


def recorded() -> list[tuple[Any, tuple[Any, ...]]]:
    """Good calls of every native op."""
    calls: list[tuple[Any, tuple[Any, ...]]] = []
    assert native.unavailable("cpu") is None
    packets = torch.ops.sequence_kernels_native
    for name in native_ops():
        setattr(packets, name, Recorder(getattr(packets, name), calls))
    with use_backend("cpu"):
        for sample in SAMPLES.values():
            if ops.dispatch._unavailable(sample.op, "cpu", "cpu", torch.float64) is not None:
                continue
            single = (t.to(torch.complex64 if t.is_complex() else torch.float32) for t in sample.tensors)
            inputs = [t.requires_grad_() for t in single]
            result = sample.function(*inputs)
            results = result if isinstance(result, tuple) else (result,)
            torch.autograd.grad(results, inputs, [torch.ones_like(r) for r in results])
        layer = S4(4, 4, transposed=False).eval()
        stepper = layer.stepper((2,))
        stepper.step(torch.randn(2, 4))
        state = torch.randn(3, 2, 2, dtype=torch.cfloat)
        a, b = torch.randn(2, 2, 2, dtype=torch.cfloat)
        c, state_indices = torch.randn(1, 2, 2, dtype=torch.cfloat), torch.tensor([2, -1])
        ops.ssm_step_(state, torch.randn(2, 2), a, b, c, state_indices=state_indices)
        packets.received(torch.randn(2, 3, 4).mT, torch.empty(0, 4, 0), torch.randn(2, 5), native.build())
    return calls


def native_ops() -> list[str]:
    """The ops that the library for CPU tensors defines, but for the one without tensors."""
    names = (n for n in torch._C._dispatch_get_all_op_names() if n.startswith(PREFIX))
    return sorted({n.removeprefix(PREFIX) for n in names} - {"limit_instruction_set"})


def spoiled(value: Any) -> Iterator[Any]:
    """Values that are wrong where ``value`` is right, mostly."""
    yield None
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (*NUMBERS, value + 1, 2 * value)
    elif isinstance(value, float):
        yield from (math.nan, math.inf, -value)
    elif isinstance(value, Tensor):
        yield from _tensors(value)


def _tensors(value: Tensor) -> Iterator[Tensor]:
    yield value.to("meta")
    yield from (value.real.to(d) if value.is_complex() and not d.is_complex else value.to(d) for d in DTYPES)
    yield value.sum().to(value.dtype)
    yield value.unsqueeze(0).contiguous()
    for dim, size in enumerate(value.shape):
        for other in (0, 1, size - 1, size + 1, 2 * size):
            shape = list(value.shape)
            shape[dim] = max(other, 0)
            yield value.new_zeros(shape)
        if value.numel():
            yield value.select(dim, 0).contiguous()
            yield value.narrow(dim, 0, 1).expand(value.shape)
            yield value.narrow(dim, 0, 1).expand([*value.shape[:dim], 1 << 40, *value.shape[dim + 1 :]])
            yield value.repeat_interleave(2, dim).unflatten(dim, (size, 2)).select(dim + 1, 0)
            if value.dim() > 1:
                yield value.new_zeros([1 << 40 if d == dim else 0 for d in range(value.dim())])
    if value.dim() > 1:
        yield value.mT.contiguous().mT
    if value.dtype == torch.int64:
        for number in NUMBERS:
            yield torch.full_like(value, number)
            if value.numel():
                one = value.clone()
                one.view(-1)[-1] = number
                yield one


def described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return str(value)
    text = f"{tuple(value.shape)} {value.stride()} {value.dtype} {value.device}"
    shown = value.dtype == torch.int64 and 0 < value.numel() < 64 and value.device.type == "cpu"
    return f"{text} {value.tolist()}" if shown else text


def main() -> None:
    """Call them all."""
    good = recorded()
    missing = set(native_ops()) - {op._schema.name.removeprefix(PREFIX) for op, _ in good}
    assert not missing, f"no good call of {missing} is known"
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seen: collections.Counter[Any] = collections.Counter()
    memory, once = Guarded(), Guarded()
    for op, arguments in good:
        seen[op] += 1
        if seen[op] > MOST:
            continue
        if not op._schema.is_mutable:  # what is only read need not be copied again
            arguments = tuple(once.copy(a) for a in arguments)
        for i, value in enumerate(arguments):
            for wrong in spoiled(value):
                call = [*arguments[:i], wrong, *arguments[i + 1 :]]
                print(op, op._schema.arguments[i].name, described(wrong), flush=True)
                with contextlib.suppress(
                    RuntimeError, NotImplementedError, TypeError, ValueError, MemoryError
                ):
                    op(*(memory.copy(a) if op._schema.is_mutable or a is wrong else a for a in call))
                memory.free()
        once.free()
    print("survived", flush=True)


if __name__ == "__main__":
    main()
