"""Tables, README, targets, comparisons, plots and GPU stages from made-up results."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys

import pytest

from bench.harness import cli, compare, gpu, readme, targets
from bench.harness.declare import BOTH, DEFAULT, KEEPS
from bench.harness.machine import ROOT
from bench.harness.plan import benches
from bench.harness.results import RECORDED, Run, load, load_all
from bench.harness.stats import Summary, ratio, verdict
from bench.harness.tables import document, significant, summary, table
from tests import stand_in_gpu
from tests.ptx import nvcc
from tests.ptx.machine import sources

from . import toy


@pytest.fixture
def results(tmp_path):
    """A function that writes a results file of the given pairs and returns its path."""

    def write(*pairs, day=1, kind="two-core-toy"):
        path = tmp_path / f"{kind}-{day}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in toy.lines(*pairs, day=day, kind=kind)))
        return path

    return write


def test_numbers_have_three_digits():
    assert [significant(x) for x in (0.012345, 0.5, 1.0, 12.345, 99.96, 123.4, 12345)] == [
        "0.0123", "0.500", "1.00", "12.3", "100", "123", "12345",
    ]  # fmt: skip
    assert significant(0) == "0"


def test_a_table_lines_up():
    lines = table(["work", "ms"], [["a", "1"], ["longer", "10"]]).splitlines()
    assert lines == ["| work   |  ms |", "| ------ | --: |", "| a      |   1 |", "| longer |  10 |"]


def test_the_report_is_the_same_every_time_and_says_what_matters(results):
    path = results(toy.pair(), toy.pair(peer="slow", faster=0.5), toy.pair(shape="L64", foreign=0.5))
    text = document(load(path))
    assert text == document(load(path))
    for part in (
        "commit 0123456789ab",
        "torch 2.13.0",
        "copy 10.0 GB/s",
        "80% (copy)",
        "3.00",
        "2.70–3.30",
        "0.500",
    ):
        assert part in text
    assert "Other programs used more than 10% of our cores during 1 of 3 measurements" in text
    assert "| default, disturbed |" in text


def test_the_report_command_writes_tables_and_pictures(results, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pairs = [toy.pair(shape=f"L{n}", mode=mode) for n in (32, 64) for mode in ("forward", BOTH)]
    path = results(*pairs)
    assert cli.main(["report", str(path), "--out", str(tmp_path / "a")]) == 0
    assert cli.main(["report", str(path), "--out", str(tmp_path / "b")]) == 0
    names = {file.name for file in (tmp_path / "a" / path.stem).iterdir()}
    assert names == {"report.md", "speedup.png", "roofline.png", "memory.png", "length-toy.png"}
    for name in names:
        one, two = (tmp_path / side / path.stem / name for side in "ab")
        assert one.read_bytes() == two.read_bytes()
    assert "length-toy.png" in capsys.readouterr().out


def test_no_results_file_is_refused_with_the_reason(tmp_path, capsys):
    other = tmp_path / "x.jsonl"
    other.write_text('{"kind": "pair"}\n')
    assert cli.main(["report", str(other)]) == 2
    assert "is no results file: its first line is no run header" in capsys.readouterr().out


def test_the_readme_table_shows_both_allocators_for_the_largest_shape(results):
    small = {"cost": {"bytes": 1, "flops": 1, "reciprocals": 0, "transcendentals": 0}}
    pairs = [
        toy.pair(faster=8),
        toy.pair(faster=5, allocator=KEEPS),
        toy.pair(faster=7, mode=BOTH),
        toy.pair(peer=None),
    ]
    (row,) = summary(load(results(toy.pair(shape="L8", faster=99, **small), *pairs))).splitlines()[2:]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "toy L32",
        "added",
        "8.00",
        "5.00",
        "7.00",
        "",
    ]


def test_the_readme_is_rewritten_between_its_markers_only(results, tmp_path, capsys):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    folder = results(toy.pair()).parent
    assert readme.regenerate(page, folder)
    text = page.read_text()
    assert text.startswith(f"before\n{readme.BEGIN}\n")
    assert text.endswith(f"\n{readme.END}\nafter\n")
    assert "old" not in text
    assert "toy L32" in text
    assert not readme.regenerate(page, folder)
    results(toy.pair(faster=4), day=2)
    assert readme.regenerate(page, folder)  # a newer run changes it
    page.write_text("no markers\n")
    assert cli.main(["report", "--readme", "--readme-file", str(page)]) == 2
    assert "has no line <!-- bench:begin -->" in capsys.readouterr().out
    assert page.read_text() == "no markers\n"


def test_our_readme_agrees_with_the_recorded_results():
    page = ROOT / "README.md"
    if "| work " not in page.read_text().partition(readme.BEGIN)[2].partition(readme.END)[0]:
        pytest.skip("README.md has no benchmark table yet: run `python -m bench report --readme`")
    assert readme.replaced(page.read_text(), readme.section(load_all([RECORDED]))) == page.read_text(), (
        "README.md and bench/results disagree; run `python -m bench report --readme`"
    )


def test_every_target_of_the_kernel_convolution_and_step_issues_is_listed(capsys):
    rows = targets.rows(benches(), [])
    assert {row.verdict for row in rows} == {"not measured yet"}
    count = {issue: sum(row.target.issue == issue for row in rows) for issue in (5, 6, 7)}
    assert count[5] >= 8
    assert count[6] >= 36
    assert count[7] >= 11
    assert cli.main(["targets", str(RECORDED)]) == 0
    assert f"{len(rows)} targets:" in capsys.readouterr().out


def test_every_target_names_a_shape_and_a_peer_that_exist():
    for op, bench in benches().items():
        peers = {peer.name for peer in bench.peers}
        for target in bench.targets:
            assert target.shape in bench.every_shape(), (op, target)
            assert target.mode in bench.modes, (op, target)
            assert target.against in peers | set(targets.CEILINGS), (op, target)


def test_targets_take_the_newest_value_and_say_what_falls_short(results):
    old = load(results(toy.pair(faster=9), day=1))
    new = load(
        results(
            toy.pair(faster=70, foreign=0.6), toy.pair(faster=1.5), toy.pair(peer=None, shape="L64"), day=2
        )
    )
    rows = {row.target.work: row for row in targets.rows({"toy": toy.TOY}, [old, new])}
    assert rows["scaling"].measured == 1.5
    assert rows["scaling"].verdict == "FALLS SHORT"
    assert rows["scaling, memory"].measured == 5
    assert rows["scaling, memory"].verdict == "met"
    assert rows["scaling, bandwidth"].measured == pytest.approx(0.8)  # 8 MB in 1 ms of 10 GB/s
    assert rows["scaling, longer"].verdict == "not measured yet"
    noisy = load(results(toy.pair(faster=60, foreign=0.6), day=4))
    assert targets.rows({"toy": toy.TOY}, [new, noisy])[0].measured == 1.5
    alone = load(results(toy.pair(faster=50), day=3))
    alone.header["threads"] = 1  # of two cores: no answer to a promise for the machine
    assert targets.rows({"toy": toy.TOY}, [new, alone])[0].measured == 1.5
    text = targets.listing(list(rows.values()))
    assert "4 targets: 2 met, 1 fall short, 1 not measured yet." in text
    assert "80%" in text
    assert "1.50x" in text


def test_two_files_are_compared_by_their_ratios(results):
    old = load(results(toy.pair(faster=3), toy.pair(shape="L64"), day=1))
    new = load(results(toy.pair(faster=6, ours=9e-3), toy.pair(shape="L64", faster=3.1), day=2))
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in compare.of_files(old, new).splitlines()[2:]
    ]
    assert rows[0][-4:] == ["3.00", "6.00", "2.00", "faster"]
    assert rows[1][-1] == "no difference"


def test_two_files_are_compared_alike_in_both_directions_and_not_where_disturbed(results):
    old = load(results(toy.pair(), toy.pair(shape="L64", foreign=0.6), toy.pair(shape="L128"), day=1))
    new = load(results(toy.pair(), toy.pair(shape="L64", faster=9), toy.pair(shape="L8"), day=2))
    forth, back = (compare.of_files(*runs).splitlines()[2:] for runs in ((old, new), (new, old)))
    assert len(forth) == len(back) == 2
    for rows, side in ((forth, "old"), (back, "new")):
        assert "no difference" in rows[0]
        assert f"disturbed in the {side} file: not compared" in rows[1]


def launches(*ratios, spread=0.05):
    return [Summary(ratio, ratio * (1 - spread), ratio * (1 + spread), 11) for ratio in ratios]


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ((1.3, 1.2, 1.4, 1.3, 1.25), "faster"),
        ((0.7, 0.8, 0.75, 0.7, 0.7), "SLOWER"),
        ((1.3, 1.2, 1.4, 1.3, 1.05), "no difference"),  # one launch within its own spread
        ((1.3, 1.2, 0.7, 1.3, 1.3), "no difference"),
        ((1.06, 1.06, 1.06, 1.06, 1.06), "no difference"),  # too little to be one
    ],
)
def test_a_difference_is_one_where_all_launches_agree(ratios, said):
    assert verdict(launches(*ratios)) == said


def test_noise_is_no_difference():
    """A program compared with itself, where each launch has luck of its own, and rounds are disturbed: 500 times."""
    draw = random.Random(0)

    def launch():
        luck = draw.gauss(1, 0.05)
        sides = [[s * draw.lognormvariate(0, 0.3) for _ in range(11)] for s in (1.0, luck)]
        return ratio(*sides)

    found = [verdict([launch() for _ in range(compare.LAUNCHES)]) for _ in range(500)]
    assert found == ["no difference"] * 500


@pytest.mark.parametrize("green", [True, False])
def test_a_tree_with_red_tests_is_refused(tmp_path, green):
    folder = tmp_path / "tests" / "ops" / "toy"
    folder.mkdir(parents=True)
    (folder / "test_toy.py").write_text(f"def test_toy():\n    assert {green}\n")
    if green:
        compare.require_green("new", tmp_path, ["toy"])
    else:
        with pytest.raises(compare.RefusedError, match="the tests of new are red"):
            compare.require_green("new", tmp_path, ["toy"])


def test_what_is_no_commit_is_refused(capsys):
    assert cli.main(["compare", "no-such-commit", "HEAD", "--op", "ssm_step"]) == 2
    assert "neither a results file nor a commit" in capsys.readouterr().out


@pytest.mark.thorough
@pytest.mark.parametrize("launched", [1, compare.LAUNCHES])
def test_two_trees_are_timed_in_turn(launched, monkeypatch):
    """The same tree on both sides: the ratio is about 1, and all launches together pass no verdict on noise."""
    from bench.harness.plan import Job

    monkeypatch.setattr(compare, "LAUNCHES", launched)
    job = Job("ssm_step", "B1-H256-N32-R1", "forward", DEFAULT, "cpu", "quick")
    row = compare.of_trees([job], ROOT, ROOT).splitlines()[2]
    *_, faster, _, said = (cell.strip() for cell in row.strip("|").split("|"))
    assert 0.3 < float(faster) < 3
    if launched > 1:
        assert said.removesuffix(", disturbed") == "no difference"


def test_what_ends_a_comparison_takes_its_worktrees_away(monkeypatch, capsys):
    def worktrees():
        return subprocess.check_output(["git", "worktree", "list"], cwd=ROOT, text=True)

    seen, before = [], worktrees()
    handler = signal.getsignal(signal.SIGTERM)

    def build(name, tree):
        seen.append(worktrees())
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(compare, "build", build)
    try:
        assert cli.main(["compare", "HEAD", "HEAD", "--op", "ssm_step"]) == 130
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert len(seen) == 1
    assert len(seen[0].splitlines()) == len(before.splitlines()) + 2
    assert worktrees() == before
    assert "building HEAD" in capsys.readouterr().err


def stages(log, **codes):
    """GPU stages that note their names in `log` and exit with the given codes."""
    script = "import sys, time; open(sys.argv[1], 'a').write(sys.argv[2]); time.sleep(float(sys.argv[4])); "
    script += "sys.exit(int(sys.argv[3]))"
    return [
        gpu.Stage(
            name,
            lambda out, n=name, c=code: (sys.executable, "-c", script, str(log), n, str(c[0]), str(c[1])),
            0.5,
        )
        for name, code in codes.items()
    ]


def test_gpu_stages_go_on_where_they_were(tmp_path):
    log = tmp_path / "log"
    done = gpu.run(stages(log, tests=(0, 0), bench=(3, 0)), tmp_path / "out", 60)
    assert done["tests"]["status"] == "passed"
    assert done["bench"]["reason"] == "exit status 3"
    done = gpu.run(stages(log, tests=(0, 0), bench=(0, 0)), tmp_path / "out", 60)
    assert {stage["status"] for stage in done.values()} == {"passed"}
    assert log.read_text() == "testsbenchbench"
    assert json.loads((tmp_path / "out" / "stages.json").read_text()) == done


def test_gpu_stages_keep_to_their_time_and_say_what_is_missing(tmp_path):
    done = gpu.run(stages(tmp_path / "log", slow=(0, 30)), tmp_path / "out", 1)
    assert done["slow"]["status"] == "out of time"
    skipped = gpu.Stage("none", lambda out: (), 1.0, lambda: "compute-sanitizer is not installed")
    assert gpu.run([skipped], tmp_path / "out", 1)["none"]["reason"] == "compute-sanitizer is not installed"


def test_a_gpu_stage_that_is_out_of_time_may_say_how_far_it_came_and_leaves_no_children(tmp_path):
    script = "trap 'echo so far; sleep 60' INT; sleep 60 & sleep 60"
    gpu_run = gpu.run([gpu.Stage("tests", lambda out: ("sh", "-c", script), 1.0)], tmp_path, 1)
    assert gpu_run["tests"]["status"] == "out of time"
    assert gpu_run["tests"]["seconds"] < 20
    assert (tmp_path / gpu.LOG).read_text() == "== tests ==\nso far\n"


def test_the_profile_is_of_what_is_farthest_from_the_roofline(tmp_path):
    def pair(shape, ours):
        return {
            "op": "ssm_step",
            "shape": shape,
            "allocator": "default",
            "cost": COST,
            "ours_s": {"median": ours},
        }

    rates = {"copy": 1e9, "sgemm": 1e12, "reciprocal": 1e9, "exp": 1e9}
    done = Run(tmp_path, {}, {"default": rates}, [pair("near", 1e-3), pair("far", 1e-2), pair("mid", 2e-3)])
    assert gpu.slowest(done) == ("ssm_step", "far")
    assert gpu.slowest(Run(tmp_path, {})) is None


COST = {"bytes": 1e6, "flops": 0, "reciprocals": 0, "transcendentals": 0}


@pytest.mark.thorough
@pytest.mark.skipif(stand_in_gpu.skip_reason() is not None, reason=str(stand_in_gpu.skip_reason()))
def test_the_gpu_command_from_end_to_end_on_the_stand_in(tmp_path):
    """What passes is not done again, what is cut off leaves what it had, what is missing says so."""
    environment = stand_in_gpu.environment(tmp_path / "cache", triton=False)

    def gpu_command(*names):  # a build would take minutes, and leave a library in this tree
        stages = [argument for name in names for argument in ("--stage", name)]
        where = ["--minutes", "5", "--out", str(tmp_path / "out")]
        command = [sys.executable, "-m", "bench", "gpu", *where, *stages]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        return done.stdout, json.loads((tmp_path / "out" / "stages.json").read_text())

    gpu_command("proofs")
    again, stages = gpu_command("proofs", "tests", "sanitizer", "tune", "bench", "profile")
    printed = dict(
        re.findall(r"^== (\w+) ==\n(.*?)(?=^== |\Z)", (tmp_path / "out" / gpu.LOG).read_text(), re.M | re.S)
    )
    assert stages["proofs"]["status"] == "passed"
    assert "proven, 20" in printed["proofs"]
    assert stages["sanitizer"]["reason"] == "compute-sanitizer is not installed"
    assert stages["profile"]["reason"] == "Nsight Compute (ncu) is not installed"
    assert printed["tests"].count("passed")
    assert json.loads((tmp_path / "out" / "choices.json").read_text())["rows"]
    assert stages["bench"]["status"] in ("out of time", "failed", "passed")
    assert len(list((tmp_path / "out").iterdir())) <= 8
    assert "proofs: passed before" in again


def test_nsight_compute_looks_at_every_kernel_of_ours():
    kernels = [kernel for source in sources() for kernel in nvcc.kernels_of(source)]
    assert kernels
    assert [kernel for kernel in kernels if not re.search(gpu.ours(), kernel)] == []
    assert not re.search(gpu.ours(), "ampere_sgemm_32x32_sliced1x4_nn")


def test_a_gpu_stage_gets_its_environment(tmp_path):
    script = "import os, sys; sys.exit(os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'] != '1')"
    stage = gpu.Stage(
        "sanitizer", lambda out: (sys.executable, "-c", script), 1.0, environment=gpu.STAGES[3].environment
    )
    assert gpu.run([stage], tmp_path / "out", 60)["sanitizer"]["status"] == "passed"


def test_without_a_gpu_the_gpu_command_says_so(tmp_path, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert cli.main(["gpu", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("there is no CUDA device here") == len(gpu.STAGES)


def test_help_names_every_command():
    text = subprocess.check_output([sys.executable, "-m", "bench", "--help"], cwd=ROOT, text=True)
    for name in ("list", "run", "compare", "report", "targets", "gpu"):
        assert name in text
