"""``write`` measures everything and writes the budget; ``triton <target> ...`` prints one measurement as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from . import budget, nvcc


def measure_triton(targets: tuple[str, ...]) -> tuple[str, budget.Measurement]:
    """Triton's version and the measurement, from a process that compiles and does not interpret."""
    with tempfile.TemporaryDirectory() as cache:
        settings = {"TRITON_INTERPRET": "0", "TRITON_DUMP_PTXAS_LOG": "1", "TRITON_CACHE_DIR": cache}
        environment = {**os.environ, **settings}
        command = [sys.executable, "-m", "tests.aot", "triton", *targets]
        done = subprocess.run(
            command, env=environment, cwd=nvcc.ROOT, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"compiling the Triton kernels failed:\n{done.stderr}")
    version, measured = json.loads(done.stdout.splitlines()[-1])
    return version, measured


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["triton"]:
        import triton

        from .triton_compiler import measure

        print(json.dumps([triton.__version__, measure(arguments[1:])]))
    elif arguments == ["write"]:
        from .triton_launches import TARGETS

        version, measured = measure_triton(TARGETS)
        tools = {"nvcc": nvcc.version(), "triton": version}
        budget.write(tools, {"nvcc": nvcc.measure(), "triton": measured})
    else:
        sys.exit(str(__doc__))


if __name__ == "__main__":
    main(sys.argv[1:])
