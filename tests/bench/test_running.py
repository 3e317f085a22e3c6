"""Plans, measuring processes, allocator settings, interruption; the command line from outside."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from bench.__main__ import main as bench_main
from bench.harness import cli
from bench.harness import run as running
from bench.harness.declare import DEFAULT, KEEPS
from bench.harness.machine import ROOT
from bench.harness.plan import Job, UsageError, plan
from bench.harness.progress import Progress, clock
from bench.harness.results import load
from bench.harness.run import environment, run

from . import toy

STEP = ("--op", "ssm_step", "--shape", "B1-H256-N32-R1")


def test_a_plan_takes_every_shape_mode_and_allocator():
    jobs = plan({"toy": toy.TOY}, "quick")
    assert len(jobs) == 2 * 2 * 2
    assert [job.allocator for job in jobs] == [DEFAULT] * 4 + [KEEPS] * 4  # one process each
    assert {job.shape for job in plan({"toy": toy.TOY}, "full")} == {"L8", "L32", "L64"}
    assert {job.shape for job in plan({"toy": toy.TOY}, "quick", shapes=["L64"])} == {"L64"}
    assert {(job.shape, job.allocator) for job in plan({"toy": toy.TOY}, "quick", "cuda")} == {
        ("L128", DEFAULT)
    }


def test_a_plan_for_targets_takes_what_they_speak_of():
    jobs = plan({"toy": toy.TOY}, "targets")
    assert [(job.shape, job.mode, job.allocator, job.against) for job in jobs] == [
        ("L32", "forward", DEFAULT, ("added",)),
        ("L64", "forward", DEFAULT, ("added",)),
    ]
    assert plan({"toy": toy.TOY}, "targets", "cuda") == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ops": ["tyo"]}, "--op 'tyo' does not exist; expected one of: toy"),
        ({"shapes": ["L9"]}, "--shape 'L9' does not exist; expected one of: L128, L32, L64, L8"),
        (
            {"against": ["nobody"]},
            "--against 'nobody' does not exist; expected one of: absent, added, slow, wrong",
        ),
    ],
)
def test_wrong_names_are_answered_with_the_valid_ones(given, message):
    with pytest.raises(UsageError, match=message):
        plan({"toy": toy.TOY}, "quick", **given)


def test_the_command_line_says_so_too(capsys):
    assert cli.main(["run", "--op", "vandermond"]) == 2
    assert (
        "expected one of: activation, backbone, backbone_step, cauchy, cauchy_transpose"
        in capsys.readouterr().out
    )
    assert cli.main(["run", "--op", "ssm_step", "--shape", "B3"]) == 2
    assert "B16-H256-N32" in capsys.readouterr().out
    assert cli.main(["gpu", "--stage", "lunch"]) == 2
    assert "expected one of: bench, build, profile, proofs, sanitizer, tests, tune" in capsys.readouterr().out


def test_what_is_not_here_is_a_sentence(capsys, tmp_path):
    assert cli.main(["run", "--backend", "cpp"]) == 2
    assert "--backend 'cpp' does not exist; expected one of: " in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert cli.main(["compare", "HEAD", "HEAD", "--device", "cuda"]) == 2
        assert "torch sees no CUDA device here" in capsys.readouterr().out
    out = tmp_path / "r.jsonl"
    out.write_text("results of yesterday")
    assert cli.main(["run", *STEP, "--out", str(out)]) == 2
    assert "r.jsonl exists; go on with it by --resume" in capsys.readouterr().out
    assert out.read_text() == "results of yesterday"


def test_list_names_operations_shapes_and_peers(capsys):
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    for word in (
        "vandermonde",
        "H32-N32-L1024 (quick)",
        "against torch naive",
        "sequence_kernels.ops.ssm_conv",
    ):
        assert word in printed


FAULTS = """
import resource, torch
for i in range(16):
    torch.ones(64 << 18)
    if i == 11:  # the heap has settled
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.thorough
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the settings are glibc's")
def test_the_allocator_settings_differ_in_page_faults():
    """64 MiB made and freed again: by default the 16384 pages come anew each time, else they are kept."""
    faults = {
        name: int(subprocess.check_output([sys.executable, "-c", FAULTS], env=environment(name), text=True))
        for name in (DEFAULT, KEEPS)
    }
    assert faults[KEEPS] < 100
    assert faults[DEFAULT] > 10_000


def test_the_environment_of_a_setting_replaces_what_was_there():
    base = {"PATH": "/bin", "MALLOC_MMAP_MAX_": "7"}
    assert environment(DEFAULT, base) == {"PATH": "/bin"}
    assert environment(KEEPS, base)["MALLOC_MMAP_MAX_"] == "0"
    assert environment(DEFAULT, base, threads=1)["OMP_NUM_THREADS"] == "1"
    with pytest.raises(ValueError, match="expected one of"):
        environment("generous")


def quiet(total: int) -> Progress:
    return Progress(total, io.StringIO())


@pytest.mark.thorough
def test_a_run_measures_in_child_processes_and_resumes(tmp_path, monkeypatch):
    out = tmp_path / "r.jsonl"
    jobs = [
        Job("ssm_step", "B1-H256-N32-R1", "forward", allocator, "cpu", "quick")
        for allocator in (DEFAULT, KEEPS)
    ]
    run(jobs[:1], out, toy.header(), quiet(1))
    first = out.read_text()
    run(jobs, out, toy.header(), quiet(2), resume=True)
    assert out.read_text().startswith(first)
    done = load(out)
    handed = []  # to a measuring process; what one does with its jobs was seen above
    monkeypatch.setattr(running, "_spawn", lambda jobs, *others: handed.append(jobs) or [])
    for foreign, left in ((0.0, []), (0.9, [jobs[:1]])):  # what was disturbed is measured once more
        records = map(json.loads, first.splitlines())
        seen = [{**record, "foreign": foreign} if record["kind"] == "pair" else record for record in records]
        (tmp_path / "seen.jsonl").write_text("".join(json.dumps(record) + "\n" for record in seen))
        run(jobs[:1], tmp_path / "seen.jsonl", toy.header(), quiet(1), resume=True)
        assert handed == left
        assert (tmp_path / "seen.jsonl").read_text().count('"pair"') == first.count('"pair"')
    assert {pair["allocator"] for pair in done.pairs} == {DEFAULT, KEEPS}
    assert set(done.ceilings) == {DEFAULT, KEEPS}
    assert all(rate > 0 for rates in done.ceilings.values() for rate in rates.values())
    assert {"torch naive", "torch dense"} <= {pair["peer"] for pair in done.pairs}
    assert all(pair["ours_bytes"] is None for pair in done.pairs if pair["allocator"] == KEEPS)


@pytest.mark.thorough
def test_a_process_that_dies_costs_its_job_alone(tmp_path):
    jobs = [
        Job("ssm_step", "no such shape", "forward", DEFAULT, "cpu", "quick"),
        Job("ssm_step", "B1-H256-N32-R1", "forward", DEFAULT, "cpu", "quick", against=("torch naive",)),
    ]
    run(jobs, tmp_path / "r.jsonl", toy.header(), quiet(2))
    done = load(tmp_path / "r.jsonl")
    assert [skip["shape"] for skip in done.skips if skip["peer"] is None] == ["no such shape"]
    assert "ended early (exit status 1" in done.skips[0]["reason"]
    assert done.pairs
    assert "KeyError" in (tmp_path / "r.log").read_text()


@pytest.mark.thorough
def test_ctrl_c_keeps_what_was_measured(tmp_path):
    out = tmp_path / "r.jsonl"
    command = [sys.executable, "-m", "bench", "run", *STEP, "--op", "ssm_conv", "--shape"]
    command += ["B8-H16-N32-L1024-float32", "--out", str(out)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # A shell starts what runs in its background with SIGINT ignored, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    limit = time.monotonic() + 120
    while time.monotonic() < limit and not (out.exists() and '"kind": "pair"' in out.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "what was measured until here is kept" in printed
    assert "| ssm_step" in printed or "### ssm_step" in printed
    assert load(out).pairs
    assert not _children_of(process.pid)


def _children_of(parent: int) -> list[int]:
    if not sys.platform.startswith("linux"):
        return []
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        try:
            command = open(f"/proc/{name}/cmdline").read()  # noqa: PTH123, SIM115
            status = open(f"/proc/{name}/stat").read()  # noqa: PTH123, SIM115
        except OSError:
            continue
        if "bench.harness.worker" in command and int(status.rsplit(")", 1)[1].split()[1]) in (parent, 1):
            found.append(int(name))
    return found


@pytest.mark.thorough
def test_ranks_against_one_process(capsys):
    assert cli.main(["ranks", "--length", "64", "--pairs", "2", "--layer", "s4d"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| s4d | ")
    assert cli.main(["ranks", "--ranks", "1"]) == 2
    assert "--ranks 1" in capsys.readouterr().out


def test_progress_says_how_much_is_left():
    stream, times = io.StringIO(), iter([0.0, 10.0, 20.0])
    bar = Progress(4, stream, lambda: next(times))
    bar.begin("ceilings")
    for name in ("a", "b", "c"):
        bar.step(name)
    assert stream.getvalue().splitlines() == [
        "[........................] 0/4 ceilings",
        "[........................] 0/4 a",
        "[######..................] 1/4 b, 0:30 left",
        "[############............] 2/4 c, 0:20 left",
    ]
    assert clock(125) == "2:05"


def test_the_header_tells_no_host_and_no_path():
    from bench.harness.machine import header

    text = json.dumps(header(torch.device("cpu"), "quick"))
    assert os.uname().nodename not in text
    assert str(ROOT) not in text
    assert {"machine", "versions", "commit", "time", "threads"} <= json.loads(text).keys()


def test_what_is_not_installed_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pytest_benchmark" else find(name)
    )
    assert bench_main() == 2
    assert "lacks pytest_benchmark; pip install" in capsys.readouterr().err
