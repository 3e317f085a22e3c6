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
    elif arguments in (["check"], ["check", "--all"]):
        return check(everywhere="--all" in arguments)
    else:
        sys.exit(usage)
    return 0


def check(everywhere: bool) -> int:
    failures = 0
    for name, compiler in gate.COMPILERS.items():
        targets = compiler.TARGETS if everywhere else compiler.FAST_TARGETS
        if reason := compiler.skip_reason():
            found = gate.stale(name)
            print(f"{name}: nothing was compiled: {reason}", *found, sep="\n  ", flush=True)
        else:
            found = gate.complaints(name, targets, everything=True)
            print(f"{name}, {', '.join(targets)}:", *(found or ["within budget"]), sep="\n  ", flush=True)
        failures += len(found)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
