"""The example of long sequences, on short ones: it learns, and goes on with another number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

ROOT = Path(__file__).parents[2]


def run(folder: Path, processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    example = str(ROOT / "examples" / "long_sequence.py")
    return subprocess.run(
        [*command, example, "--length", "4096", "--runs", str(folder), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def losses(folder: Path) -> list[float]:
    return json.loads((folder / "long_sequence" / "history.json").read_text())["losses"]


@pytest.mark.thorough
def test_it_resumes_with_another_number_of_processes(tmp_path: Path) -> None:
    """Training in two processes and then in one is training in one."""
    for folder, processes, arguments in (
        (tmp_path / "parts", 2, ("--steps", "20")),
        (tmp_path / "parts", 1, ("--steps", "40", "--resume")),
        (tmp_path / "whole", 1, ("--steps", "40")),
    ):
        ended = run(folder, processes, *arguments)
        assert ended.returncode == 0, ended.stderr
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-3)
    assert sum(losses(tmp_path / "parts")[-10:]) / 10 < 0.5
    assert (tmp_path / "parts" / "long_sequence" / "training_curve.png").read_bytes()[:4] == b"\x89PNG"
