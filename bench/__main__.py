"""`python -m bench`: see bench/harness/cli.py."""

from __future__ import annotations

import importlib.util
import sys


def main() -> int:
    """The command line's exit status; 2, and a sentence, where what the benchmarks are made of is not installed."""
    needed = ("matplotlib", "numpy", "pytest", "pytest_benchmark", "torch")
    lacking = [name for name in needed if importlib.util.find_spec(name) is None]
    if lacking:
        has = "pip install -e '.[bench]'"
        print(
            f"error: python -m bench lacks {', '.join(lacking)}; {has} brings what it needs", file=sys.stderr
        )
        return 2
    from bench.harness import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
