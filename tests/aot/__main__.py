"""The command line of the gate; ``triton <unit> ...`` prints one measurement as JSON, for triton_units.py."""

from __future__ import annotations

import json
import sys

from . import __doc__ as usage
from . import gate


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["triton"]:
        from .triton_compiler import measure

        print(json.dumps(measure(arguments[1:])))
    elif arguments in (["write"], ["write", "--all"]):
        gate.write(everything="--all" in arguments)
    elif arguments[:1] == ["check"] and {*arguments[1:]} <= {"--all", *gate.COMPILERS}:
        names = [name for name in gate.COMPILERS if name in arguments] or [*gate.COMPILERS]
        return check(names, everywhere="--all" in arguments)
    else:
        sys.exit(usage)
    return 0


def check(names: list[str], everywhere: bool) -> int:
    failures = 0
    for name in names:
        compiler = gate.COMPILERS[name]
        targets = compiler.TARGETS if everywhere else compiler.FAST_TARGETS
        if reason := compiler.skip_reason():
            found = gate.stale(name)
            print(f"{name}: nothing was compiled: {reason}", *found, sep="\n  ", flush=True)
        else:
            found = gate.complaints(name, targets, everything=True)
            print(
                f"{name} {compiler.version()}, {', '.join(targets)}:",
                *(found or ["within budget"]),
                sep="\n  ",
                flush=True,
            )
        failures += len(found)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
