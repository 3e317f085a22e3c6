"""Programs as files, for the C library (csrc/stream/file.h has the layout)."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from .program import Panels, Program, packed_panels

_MAGIC = b"\x89SKP\r\n\x1a\n"
_VERSION = 1
_HEADER = "<8sIIQII7q"
_CHECKED = struct.calcsize("<8sII")  # where what the checksum is of begins
_STORAGES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}

#: How the weights of linear maps may be stored; all other numbers keep their bits.
WEIGHTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def save(
    path: str | os.PathLike[str], program: Program, d_model: int, weights: str, embedding: Tensor | None
) -> None:
    """Write a finished program. ``embedding`` (tokens, d_model): makes rows of tokens."""
    if sys.byteorder != "little":
        raise RuntimeError("programs are little endian, and this machine is not")
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    numbers, panels, place = program.packed, list(program.panels), 0
    if embedding is not None:
        rows = packed_panels(embedding.to(program.dtype))
        found = (at.begin for at in panels if torch.equal(numbers[at.begin : at.end], rows))
        place = next(found, len(numbers))  # the map to scores may be the same
        if place == len(numbers):
            panels.append(Panels(place, place + len(rows)))
            numbers = torch.cat((numbers, rows))
    runs = [(run, _STORAGES[run.dtype]) for run in _stored(numbers, panels, WEIGHTS[weights])]
    sizes = (d_model, program.width, program.state_size, len(program.code), len(numbers))
    vocabulary = 0 if embedding is None else len(embedding)
    body = b"".join(
        (
            _bytes(program.code),
            *(struct.pack("<qq", storage, len(run)) for run, storage in runs),
            *(_bytes(run) + bytes(-run.nbytes % 8) for run, _ in runs),
        )
    )
    size = struct.calcsize(_HEADER) + len(body)

    def header(checksum: int) -> bytes:
        width = program.dtype.itemsize
        return struct.pack(
            _HEADER, _MAGIC, _VERSION, checksum, size, width, len(runs), *sizes, vocabulary, place
        )

    whole = header(0)[_CHECKED:] + body
    Path(path).write_bytes(header(zlib.crc32(whole))[:_CHECKED] + whole)


def _stored(numbers: Tensor, panels: list[Panels], linear: torch.dtype) -> Iterator[Tensor]:
    """The numbers in runs, each in the type that it is stored in: float64 only where float32 does not hold it."""
    edges = sorted({0, len(numbers), *(edge for at in panels for edge in at)})
    begins = {at.begin for at in panels if at.begin < at.end}
    for begin, end in pairwise(edges):
        run = numbers[begin:end]
        if begin in begins and linear is torch.bfloat16:
            yield run.bfloat16()
        else:
            narrow = run.float()
            yield narrow if torch.equal(narrow.to(run.dtype), run) else run


def _bytes(tensor: Tensor) -> bytes:
    tensor = tensor.contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes) if tensor.nbytes else b""
