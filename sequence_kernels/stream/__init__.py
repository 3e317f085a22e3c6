"""Says where libsequence_stream is, which runs saved steps from C (docs/c-library.md): `python -m sequence_kernels
stream`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import native

_DIRECTORY = Path(__file__).parent


def library() -> Path:
    """The shared library. Raises FileNotFoundError where it was not built."""
    return _built("lib/libsequence_stream.so")


def include() -> Path:
    """The directory of ``sequence_stream.h``. Raises FileNotFoundError where it was not built."""
    return _built("include/sequence_stream.h").parent


def compile_flags() -> list[str]:
    """What a C compiler must know."""
    return [f"-I{include()}"]


def link_flags() -> list[str]:
    """What a linker must know. The program then finds the library here when it runs."""
    folder = library().parent
    return [f"-L{folder}", f"-Wl,-rpath,{folder}", "-lsequence_stream"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `python -m sequence_kernels stream`."""
    parser.add_argument("--cflags", action="store_true", help="for the C compiler")
    parser.add_argument("--libs", action="store_true", help="for the linker")
    parser.set_defaults(command=run)


def run(given: argparse.Namespace) -> int:
    """Print the flags that were asked for, or where the library is."""
    flags = (compile_flags() if given.cflags else []) + (link_flags() if given.libs else [])
    print(*(flags or [str(library())]))
    return 0


def _built(name: str) -> Path:
    path = _DIRECTORY / name
    if not path.exists():
        raise FileNotFoundError(
            f"{path.name} was not built when sequence_kernels was installed; {native.how_to_build('cpu')}"
        )
    return path
