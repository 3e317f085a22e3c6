"""libsequence_stream by ctypes."""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from sequence_kernels import stream

OK, UNREADABLE, NOT_A_PROGRAM, OTHER_VERSION, CUT_OFF, DAMAGED, INVALID, NO_MEMORY, ARGUMENT = range(9)
INPUTS, OUTPUTS, STREAMS, STATE_BYTES, VOCABULARY = range(5)

_SIGNATURES = {
    "text": (c_char_p, c_int),
    "open": (c_int, c_char_p, c_int64, POINTER(c_void_p)),
    "open_bytes": (c_int, c_void_p, c_size_t, c_int64, POINTER(c_void_p)),
    "close": (None, c_void_p),
    "size": (c_int64, c_void_p, c_int),
    "step": (c_int, c_void_p, c_int64, c_void_p, c_void_p, c_void_p),
    "step_tokens": (c_int, c_void_p, c_int64, c_void_p, c_void_p, c_void_p),
    "block": (c_int, c_void_p, c_int64, c_int64, c_void_p, c_void_p),
    "reset": (c_int, c_void_p, c_int64),
    "read_state": (c_int, c_void_p, c_int64, c_void_p, c_size_t),
    "write_state": (c_int, c_void_p, c_int64, c_void_p, c_size_t),
    "limit_instruction_set": (c_int, c_int),
}


@functools.cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(stream.library()))
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(loaded, f"sequence_stream_{name}")
        function.restype, function.argtypes = result, arguments
    return loaded


def call(name: str, *arguments: object) -> int:
    return int(getattr(library(), f"sequence_stream_{name}")(*arguments))


class FailedError(Exception):
    """Its one argument is the status."""


def checked(name: str, *arguments: object) -> None:
    if status := call(name, *arguments):
        raise FailedError(status)


def pointer(tensor: Tensor | None) -> int | None:
    assert tensor is None or tensor.is_contiguous()
    return None if tensor is None else tensor.data_ptr()


class Model:
    """An open file, from a path or bytes."""

    def __init__(self, what: Path | bytes, streams: int = 1) -> None:
        self.handle = c_void_p()
        if isinstance(what, bytes):
            checked("open_bytes", what, len(what), streams, byref(self.handle))
        else:
            checked("open", str(what).encode(), streams, byref(self.handle))

    def __del__(self) -> None:
        library().sequence_stream_close(self.handle)

    def size(self, which: int) -> int:
        return call("size", self.handle, which)

    def _room(self, rows: int) -> Tensor:
        return torch.full((rows, self.size(OUTPUTS)), torch.nan)

    def step(self, x: Tensor, streams: Tensor | None = None) -> Tensor:
        y = self._room(len(x))
        checked("step", self.handle, len(x), pointer(streams), pointer(x), pointer(y))
        return y

    def step_tokens(self, tokens: Tensor, streams: Tensor | None = None) -> Tensor:
        y = self._room(len(tokens))
        checked("step_tokens", self.handle, len(tokens), pointer(streams), pointer(tokens), pointer(y))
        return y

    def block(self, x: Tensor, stream: int = 0) -> Tensor:
        y = self._room(len(x))
        checked("block", self.handle, stream, len(x), pointer(x), pointer(y))
        return y

    def reset(self, stream: int = -1) -> None:
        checked("reset", self.handle, stream)

    def state(self, stream: int = 0) -> bytes:
        state = bytes(self.size(STATE_BYTES))
        checked("read_state", self.handle, stream, state, len(state))
        return state

    def set_state(self, state: bytes, stream: int = 0) -> None:
        checked("write_state", self.handle, stream, state, len(state))
