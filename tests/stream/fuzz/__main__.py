"""Fuzzes libsequence_stream: `make fuzz`. Exits with 1 at a finding, whose file it names.

python -m tests.stream.fuzz                             # a million runs, by a loop of our own
python -m tests.stream.fuzz --libfuzzer clang++-14      # by clang's libFuzzer, guided by coverage
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import cpp_compiler

from .build import BUILD, built, write_seeds


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3600.0, help="at most")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--libfuzzer", metavar="CLANG", help="clang++ with libFuzzer")
    given = parser.parse_args()
    by = given.libfuzzer or cpp_compiler.find()
    if by is None:
        parser.error("no C++ compiler; install g++ or clang++")
    fuzzer = built(by, bool(given.libfuzzer))
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        seeds = write_seeds(Path(folder))
        finding = BUILD / "finding.skp"
        if given.libfuzzer:
            (grown := Path(folder) / "grown").mkdir()
            limits = [f"-runs={given.runs}", f"-max_total_time={given.seconds:.0f}", f"-seed={given.seed}"]
            limits += ["-max_len=20000", "-rss_limit_mb=4096", "-print_final_stats=1"]
            command = [str(fuzzer), *limits, f"-exact_artifact_path={finding}", str(grown), folder]
        else:
            command = [str(fuzzer), str(given.runs), str(given.seconds), str(given.seed), str(finding)]
            command += [str(path) for path in seeds]
        if subprocess.run(command, check=False).returncode:
            print(f"FOUND: see above; the file is {finding}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
