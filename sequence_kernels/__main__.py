"""`python -m sequence_kernels`: the doctor; `... prove` proves the GPU kernels, `... tune` times them, `... stream` has
the flags for C programs."""

from __future__ import annotations

import argparse
import sys

from . import doctor, prove, stream, tune


def main() -> int:
    """Carry the command out; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sequence_kernels", description=doctor.__doc__)
    doctor.add_arguments(parser)
    commands = parser.add_subparsers(metavar="command")
    prove.add_arguments(commands.add_parser("prove", help=prove.__doc__, description=prove.__doc__))
    tune.add_arguments(commands.add_parser("tune", help=tune.__doc__, description=tune.__doc__))
    stream.add_arguments(commands.add_parser("stream", help=stream.__doc__, description=stream.__doc__))
    given = parser.parse_args()
    return int(given.command(given))


if __name__ == "__main__":
    sys.exit(main())
