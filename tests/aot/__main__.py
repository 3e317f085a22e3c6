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
    found = []
    for name, compiler in gate.COMPILERS.items():
        reason = compiler.skip_reason()
        targets = compiler.TARGETS if everywhere else compiler.FAST_TARGETS
        print(f"{name}: {reason or ', '.join(targets)}", flush=True)
        if reason is None:
            found += gate.complaints(name, targets, everything=True)
    print(*(found or ["every kernel is within its budget"]), sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
