"""Predictions: what a multiprocessor holds, which part of a launch takes the longest, and the recorded shares."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from bench.harness import predictions
from bench.harness.predict import GPUS, H200, RTX_4090, Work, predict, resident
from sequence_kernels import ops
from sequence_kernels.ops import dispatch
from tests.ptx import skip_reason, triton_skip_reason

NO_TOOLS = skip_reason() or triton_skip_reason()
NOTHING = dict.fromkeys(
    ("block_sectors", "sectors", "instructions", "doubles", "integer", "tensor_flops", "shared_passes"), 0.0
)
WORK = Work(132, 128, 64, 10 << 10, 0, {**NOTHING, "global_read_bytes": 0})


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [
        ({}, 8),  # 4 warps of 64 * 32 registers: 8192 of 65536
        ({"registers": 65}, 7),  # 72 * 32 registers a warp
        ({"shared_bytes": 100 << 10}, 2),
        ({"threads": 1024, "registers": 32}, 2),
        ({"threads": 32, "registers": 16, "shared_bytes": 0}, 32),
        ({"threads": 33, "registers": 16, "shared_bytes": 0}, 32),
        ({"threads": 1024, "registers": 255}, 1),
    ],
)
def test_blocks_of_a_multiprocessor(changes: dict[str, int], blocks: int) -> None:
    assert resident(H200, replace(WORK, **changes)) == blocks


def test_an_rtx_4090_has_less_shared_memory_and_fewer_threads() -> None:
    assert resident(RTX_4090, replace(WORK, shared_bytes=40 << 10)) == 2
    assert resident(RTX_4090, replace(WORK, threads=1024, registers=32)) == 1


CYCLES = H200.hertz * 132  # of all multiprocessors, a second


@pytest.mark.parametrize(
    ("part", "counts", "seconds"),
    [
        ("memory", {"block_sectors": 1e9}, 32e9 / 4.3e12),
        ("cache", {"sectors": 1e9}, 32e9 / 5.5e12),
        ("issue", {"instructions": 1e9}, 1e9 / 4 / CYCLES),
        ("float64", {"doubles": 1e9}, 1e9 / 2 / CYCLES),
        ("integers", {"integer": 1e9}, 1e9 / 2 / CYCLES),
        ("tensor", {"tensor_flops": 1e12}, 1e12 / 2560 / CYCLES),
        ("shared", {"shared_passes": 1e9}, 1e9 / CYCLES),
    ],
)
def test_a_launch_takes_as_long_as_its_slowest_part(
    part: str, counts: dict[str, float], seconds: float
) -> None:
    found = predict(H200, replace(WORK, counts={**WORK.counts, **counts}))
    assert found.bound == part
    assert found.seconds == pytest.approx(seconds + H200.launch)


def test_a_path_is_waited_for_once_a_wave() -> None:
    work = replace(WORK, cycles=1755.0, blocks=132 * 8)  # a microsecond; as many blocks as are held at once
    assert predict(H200, work).seconds == pytest.approx(1e-6 + H200.launch)
    assert predict(H200, replace(work, blocks=132 * 8 + 1)).seconds == pytest.approx(2e-6 + H200.launch)


def test_what_is_in_flight() -> None:
    """8 blocks, each of which loads 1000 bytes in a microsecond, of which each is on its way for 0.6."""
    read = {**WORK.counts, "global_read_bytes": 132_000.0}
    assert predict(H200, replace(WORK, cycles=1755.0, counts=read)).in_flight == pytest.approx(8 * 600)


def test_a_smaller_share_is_worse() -> None:
    recorded = {"H200": {"op": 0.9}}
    assert predictions.regressions({"H200": {"op": 0.895}}, recorded) == []
    (worse,) = predictions.regressions({"H200": {"op": 0.885}}, recorded)
    assert worse == "op on H200: 88.5 % of the floor's rate, recorded 0.9"
    (worse,) = predictions.regressions({"H200": {"other": 0.9}}, recorded)
    assert "recorded nothing" in worse


def test_what_grows_by_more_than_a_hundredth_is_worse() -> None:
    recorded = {"op": dict.fromkeys(predictions.GATED, 1000)}
    assert predictions.grown({"op": {**recorded["op"], "sectors": 1010}}, recorded) == []
    assert predictions.grown({"op": {**recorded["op"], "sectors": 1011}}, recorded) == [
        "op: sectors 1011, recorded 1000"
    ]


@pytest.mark.parametrize("backend", predictions.VERSIONS)
def test_every_op_with_kernels_is_predicted(backend: str) -> None:
    """What works in place, or on another layout, has the kernels of the other op; adjoints are in its backward pass."""
    found = {op for op in ops.operations() if backend in dispatch._implementations[op]}
    of_their_own = {op for op in found if not op.endswith(("_", "_backward", "_channels_last"))}
    assert of_their_own == set(predictions.operations(backend))


@pytest.mark.parametrize("backend", predictions.VERSIONS)
def test_every_operation_is_recorded(backend: str) -> None:
    recorded = json.loads(predictions.RECORD.read_text())[backend]["shares"]
    assert set(recorded) == {gpu.name for gpu in GPUS}
    for shares in recorded.values():
        assert {name.split()[0] for name in shares} == set(predictions.operations(backend))


def test_the_kernels_in_cuda_are_fast_enough() -> None:
    recorded = json.loads(predictions.RECORD.read_text())["cuda"]["shares"]["H200"]
    assert recorded["ssm_conv B16-H512-N32-L16384-bfloat16 forward"] >= 0.85
    assert recorded["ssm_step B512-H1024-N32 forward"] >= 0.8
    assert recorded["ssm_step B512-H1024-N32-R1 forward"] >= 0.8


@pytest.mark.thorough
@pytest.mark.parametrize("backend", predictions.VERSIONS)
@pytest.mark.skipif(NO_TOOLS is not None, reason=str(NO_TOOLS))
def test_no_prediction_is_slower(backend: str) -> None:
    if json.loads(predictions.RECORD.read_text())[backend]["version"] != predictions.VERSIONS[backend]():
        pytest.skip("the record is of another compiler")
    done = subprocess.run(
        [sys.executable, "-m", "bench", "predict", "--backend", backend],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none is slower" in done.stdout
