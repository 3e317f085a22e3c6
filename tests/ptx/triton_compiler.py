"""Compiles launches of Triton kernels to PTX, in a process of its own that does not interpret them.

The parent writes pickled ``Launch``es to its standard input and reads pickled ``Compiled`` ones, or texts of errors.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from typing import Any, NamedTuple

from tests.aot.digest import ROOT


class Launch(NamedTuple):
    """A kernel, by its module and name, and its arguments: a tensor stands as ``torch.dtype``, a size as 0, or as 1 or
    16 where Triton may count on that (``specialised``)."""

    module: str
    kernel: str
    target: str
    arguments: dict[str, Any]


class Compiled(NamedTuple):
    """``passed``: the arguments that the compiled kernel takes, in their order."""

    ptx: str
    shared_bytes: int
    warps: int
    passed: list[str]


def no_cubin(backend: Any = None, stages: dict[str, Any] | None = None, *_: Any) -> tuple[str, str]:
    """Triton asks this for its cache's key, and then calls it with the stages: the PTX is not assembled."""
    if stages is not None:
        stages["cubin"] = lambda ptx, metadata: b""
    return "PTX alone", "PTX alone"


def specialised(source: Any, parameters: Any, arguments: dict[str, Any]) -> None:
    """As Triton compiles what is launched: a size of 1 is a constant, one that 16 divides, here 16, is known to be."""
    for position, parameter in enumerate(parameters):
        value = arguments[parameter.name]
        if parameter.is_constexpr or type(value) is not int:
            continue
        if value == 1:
            source.signature[parameter.name] = "constexpr"
            source.constants[(position,)] = 1
        elif value == 16:
            source.attrs[(position,)] = [["tt.divisibility", 16]]


def made_of(launch: Launch) -> Compiled:
    """The launch as it would be compiled for that target ("cuda 80")."""
    import importlib

    import torch
    import triton

    from tests.aot.triton_compiler import _source, target

    triton.knobs.runtime.add_stages_inspection_hook = no_cubin
    function = getattr(importlib.import_module(launch.module), launch.kernel)
    given = {
        k: torch.empty(0, dtype=v) if isinstance(v, torch.dtype) else v for k, v in launch.arguments.items()
    }
    source, options = _source(function, given)
    specialised(source, function.params, launch.arguments)
    made = triton.compile(source, target=target(launch.target), options=options)
    passed = [name for name, kind in source.signature.items() if kind != "constexpr"]
    return Compiled(made.asm["ptx"], made.metadata.shared, made.metadata.num_warps, passed)


class Worker:
    """The process, from the first launch on."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def compile(self, launch: Launch) -> Compiled:
        if self._process is None:
            command = [sys.executable, "-m", "tests.ptx.triton_compiler"]
            environment = {**os.environ, "TRITON_INTERPRET": "0"}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)  # type: ignore[call-overload]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(tuple(launch), self._process.stdin)
        self._process.stdin.flush()
        answer = pickle.load(self._process.stdout)
        if isinstance(answer, str):
            raise RuntimeError(f"Triton cannot compile {launch.kernel}: {answer}")
        return Compiled(*answer)


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a compiler prints is no answer
    with contextlib.suppress(EOFError):
        while True:
            launch = pickle.load(sys.stdin.buffer)
            try:
                answer: Compiled | str = made_of(Launch(*launch))
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            pickle.dump(tuple(answer) if isinstance(answer, Compiled) else answer, answers)
            answers.flush()


if __name__ == "__main__":
    main()
