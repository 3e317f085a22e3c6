"""A machine for the stand-in driver that runs the kernels' PTX."""

from __future__ import annotations

import functools
from pathlib import Path

from tests.cuda_driver import Buffer
from tests.cuda_emulator import build as emulator

from . import nvcc
from .file import File, Timing, Traffic

ROOT, CSRC = emulator.ROOT, nvcc.CSRC


def skip_reason() -> str | None:
    """Why the CUDA kernels' PTX cannot be run here; None if it can."""
    return emulator.skip_reason() or nvcc.skip_reason()


def sources() -> list[Path]:
    """The .cu files of csrc/."""
    return sorted(CSRC.glob("*/*.cu"))


@functools.cache
def source_of(kernel: str) -> Path:
    """The one that has the kernel."""
    return next(path for path in sources() if kernel in nvcc.kernels_of(path))


class Ptx:
    """Kernels of csrc/ as nvcc compiles them for one architecture, each file when it is first needed."""

    def __init__(self, architecture: str = "sm_80") -> None:
        self.architecture = architecture
        self.files: dict[Path, File] = {}
        self.executed = 0
        self.traffic: Traffic | None = None  # counted if there is one
        self.timing: Timing | None = None

    def file(self, source: Path) -> File:
        if source not in self.files:
            text = nvcc.compiled(source, self.architecture).read_text()
            self.files[source] = File(text)
        return self.files[source]

    def launch(
        self,
        kernel: str,
        params: int,
        blocks: int,
        threads: int,
        shared_bytes: int,
        *,
        buffers: list[Buffer],
        order: str = "forward",
        seed: int = 0,
    ) -> None:
        """As ``cuda_driver.Machine``."""
        self.executed += self.file(source_of(kernel)).run(
            kernel,
            params,
            (blocks, 1, 1),
            (threads, 1, 1),
            shared_bytes,
            order,
            seed,
            list(buffers),
            traffic=self.traffic,
            timing=self.timing,
        )


of_architecture = functools.cache(Ptx)
