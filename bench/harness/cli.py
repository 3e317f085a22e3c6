"""The command line: list, run, compare, report, targets, ptx, predict, ranks, stream, gpu."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.harness import compare, gpu, predictions, ptx, ranks, readme, stream, tables, targets
from bench.harness.declare import DEFAULT, KEEPS, label
from bench.harness.machine import ROOT, header
from bench.harness.plan import ALLOCATORS, UsageError, benches, plan
from bench.harness.progress import Progress
from bench.harness.results import LOCAL, RECORDED, Run, load, load_all
from bench.harness.run import run
from sequence_kernels.ops import BACKENDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _require_device_and_backend(options)
        return int(options.command(options))
    except KeyboardInterrupt:
        print("\ninterrupted")
        return 130
    except (
        UsageError,
        readme.MarkersMissingError,
        compare.RefusedError,
        FileNotFoundError,
        ValueError,
    ) as error:
        print(f"error: {error}")
        return 2


def _require_device_and_backend(options: argparse.Namespace) -> None:
    """Refuse what is not here before anything is measured."""
    backend, device = getattr(options, "backend", None), getattr(options, "device", "cpu")
    if backend is not None and backend not in BACKENDS:
        raise UsageError(f"--backend {backend!r} does not exist; expected one of: {', '.join(BACKENDS)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda: torch sees no CUDA device here (`python -m sequence_kernels` says why)"
        )


def _list(options: argparse.Namespace) -> int:
    for name, bench in benches().items():
        quick = {label(shape) for shape in bench.chosen("quick")}
        shapes = ", ".join(f"{shape}{' (quick)' if shape in quick else ''}" for shape in bench.every_shape())
        print(f"{name}  [{', '.join(bench.modes)}]  sequence_kernels.{bench.entry}")
        print(f"    shapes: {shapes}")
        for peer in bench.peers:
            reason = peer.unavailable("cuda" if torch.cuda.is_available() else "cpu")
            print(f"    against {peer.name}{f': skipped, {reason}' if reason else ''}")
    return 0


def _run(options: argparse.Namespace) -> int:
    allocators = (options.allocator,) if options.allocator else ALLOCATORS
    jobs = plan(
        benches(),
        options.effort,
        options.device,
        options.op,
        options.shape,
        options.backend,
        options.against,
        allocators,
        options.patience,
    )
    head = header(torch.device(options.device), options.effort, options.threads)
    day = head["time"].replace(":", "")
    out = options.out or (RECORDED / head["machine"]["kind"] if options.record else LOCAL) / f"{day}.jsonl"
    if out.exists() and not options.resume:
        raise UsageError(f"--out {out} exists; go on with it by --resume, or name another file")
    started, interrupted = time.monotonic(), False
    try:
        run(jobs, out, head, Progress(len(jobs)), options.resume)
    except KeyboardInterrupt:
        interrupted = True
        print("\ninterrupted: what was measured until here is kept")
    done = load(out)
    print(tables.document(done))
    report = _pictures(done, out.with_suffix(""))
    print(f"{len(done.pairs)} pairs in {time.monotonic() - started:.0f} s, in {_short(out)}{report}")
    return 130 if interrupted else 0


def _report(options: argparse.Namespace) -> int:
    if options.readme:
        changed = readme.regenerate(options.readme_file)
        print(f"{_short(options.readme_file)} {'rewritten' if changed else 'is up to date'}")
        return 0
    runs = load_all(options.results or [RECORDED, LOCAL])
    if not runs:
        raise FileNotFoundError("no results yet; `python -m bench run --quick` makes some")
    chosen = runs if options.results else runs[-1:]
    for each in chosen:
        folder = (options.out / each.path.stem) if options.out else each.path.with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.md").write_text(tables.document(each))
        print(f"{_short(folder / 'report.md')}{_pictures(each, folder)}")
    return 0


def _targets(options: argparse.Namespace) -> int:
    found = targets.rows(benches(), load_all(options.results or [RECORDED, LOCAL]))
    print(targets.listing(found))
    return 0


def _pictures(done: Run, folder: Path) -> str:
    """Plot the run; says where, or why there are no plots."""
    try:
        from bench.harness import plots
    except ImportError as error:
        return f"; no plots: {error} (`pip install matplotlib`)"
    written = plots.write(done, folder)
    return f"; plots in {_short(folder)}: {', '.join(path.name for path in written)}" if written else ""


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Side-by-side speed and memory measurements."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, function: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=function)
        return added

    command("list", _list, "Show the operations, their shapes and peers.")

    one = command("run", _run, "Measure, print the ratio tables, write the plots.")
    _selection(one)
    one.add_argument(
        "--against", action="append", default=[], metavar="PEER", help="only this peer (repeatable)"
    )
    one.add_argument("--allocator", choices=(DEFAULT, KEEPS), help="only this allocator setting")
    one.add_argument("--out", type=Path, help="results file (default: a new one below runs/bench)")
    one.add_argument(
        "--patience",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="how long each pair may wait for other programs to leave the cores alone",
    )
    one.add_argument(
        "--threads", type=int, help="CPU threads (default: torch's own; targets are for all cores)"
    )
    one.add_argument("--record", action="store_true", help="write below bench/results/<machine kind> instead")
    one.add_argument("--resume", action="store_true", help="go on with the file named by --out")

    two = command("compare", compare.command, "Our speed at two commits, or in two results files.")
    two.add_argument("a", help="a commit or a results file: the old one")
    two.add_argument("b", help="a commit or a results file: the new one")
    _selection(two)

    three = command("report", _report, "Markdown tables and plots of results; or README's table.")
    three.add_argument(
        "results", nargs="*", type=Path, help="results files or folders (default: the newest run)"
    )
    three.add_argument("--out", type=Path, help="folder for the reports (default: beside the results)")
    three.add_argument("--readme", action="store_true", help="rewrite README's table from bench/results")
    three.add_argument("--readme-file", type=Path, default=ROOT / "README.md", help=argparse.SUPPRESS)

    four = command("targets", _targets, "Every promised speed beside the newest measured value.")
    four.add_argument(
        "results", nargs="*", type=Path, help="results files or folders (default: all there are)"
    )

    five = command(
        "gpu",
        gpu.command,
        "All that a GPU machine is asked for: proofs, tests, sanitizer, benchmarks, profile.",
    )
    five.add_argument(
        "--out", type=Path, default=LOCAL / "gpu", help="folder for results; run again to go on"
    )
    five.add_argument("--minutes", type=float, default=9.0, help="time for all stages together")
    five.add_argument("--stage", action="append", default=[], help="only this stage (repeatable)")
    six = command("ptx", ptx.command, "What the CUDA kernels' PTX executes and moves, counted on a CPU.")
    six.add_argument("--op", action="append", default=[], help="only this operation (repeatable)")
    six.add_argument("--record", action="store_true", help="write the counts as those to compare with")
    predicted = command(
        "predict",
        predictions.command,
        "What the kernels in CUDA and Triton would take on an H200 and an RTX 4090: calculated.",
    )
    predicted.add_argument("--backend", choices=tuple(predictions.VERSIONS), help="only this one's kernels")
    predicted.add_argument("--op", action="append", default=[], help="only this operation (repeatable)")
    predicted.add_argument("--record", action="store_true", help="write the shares as those to compare with")
    seven = command(
        "ranks", ranks.command, "A sequence split over processes against one process with all of it."
    )
    seven.add_argument("--ranks", type=int, default=2, help="processes")
    seven.add_argument("--length", type=int, default=2**18, help="elements of the sequence")
    seven.add_argument("--pairs", type=int, default=5, help="pairs to measure")
    seven.add_argument("--layer", action="append", default=[], help="only this layer, by its registered name")
    command("stream", stream.command, "A step of the streaming-audio model by the C library.")
    return parser


def _selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", action="append", default=[], help="only this operation (repeatable)")
    parser.add_argument("--shape", action="append", default=[], help="only this shape (repeatable)")
    parser.add_argument(
        "--backend", help="measure this backend of ours (default: the one that is chosen by itself)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument(
        "--quick", dest="effort", action="store_const", const="quick", help="minutes (the default)"
    )
    effort.add_argument(
        "--full", dest="effort", action="store_const", const="full", help="all shapes and peers"
    )
    effort.add_argument(
        "--targets", dest="effort", action="store_const", const="targets", help="what targets need"
    )
    parser.set_defaults(effort="quick")
