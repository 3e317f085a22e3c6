"""Markdown tables of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from bench.harness.ceilings import floor
from bench.harness.declare import AUTOMATIC, BOTH, DEFAULT, FORWARD, KEEPS, Cost
from bench.harness.results import MUCH, Record, Run


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, padded to be readable as text; the first `left` columns are text, the others numbers."""
    grid = [list(head), *map(list, rows)]
    widths = [max(3, *(len(row[i]) for row in grid)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * w if i < left else "-" * (w - 1) + ":") for i, w in enumerate(widths)]
    return "\n".join([line(grid[0]), line(rule), *map(line, grid[1:])])


def milliseconds(seconds: float) -> str:
    """Three significant digits: 0.0123, 1.23, 123 (and more before the point)."""
    return significant(seconds * 1e3)


def significant(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    digits = 0
    while digits < 9 and abs(value) * 10**digits < 99.95:
        digits += 1
    return f"{value:.{digits}f}"


def mebibytes(count: int | None) -> str:
    return "" if count is None else significant(count / 2**20)


def spread(summary: Record) -> str:
    return f"{significant(summary['q20'])}–{significant(summary['q80'])}"


def share_of_floor(run: Run, pair: Record) -> tuple[float, str] | None:
    """How much of the roofline our time reaches, and which ceiling bounds it."""
    rates = run.rates(pair["allocator"])
    if rates is None:
        return None
    seconds, bound = floor(Cost(**pair["cost"]), rates)
    return seconds / pair["ours_s"]["median"], bound


def where(run: Run) -> str:
    """The machine, torch's version, the commit and the day, in a line."""
    machine = run.header["machine"]
    name = machine.get("gpu") or f"{machine['processor']}, {machine['cores']} cores, {machine['vectors']}"
    torch, commit, day = run.header["versions"]["torch"], run.header["commit"], run.header["time"][:10]
    threads = f"{run.header['threads']} threads" if run.header["threads"] > 1 else "1 thread"
    return f"{name}, {threads}; torch {torch}; commit {commit}, {day}"


def heading(run: Run) -> str:
    """Where and when, versions, the ceilings measured in the same run, and what disturbed it."""
    versions = run.header["versions"].items()
    text = f"{where(run)}; with {', '.join(f'{key} {value}' for key, value in versions if key != 'torch')}."
    for allocator, rates in sorted(run.ceilings.items()):
        gflops, gexp, grec = (rates[key] / 1e9 for key in ("sgemm", "exp", "reciprocal"))
        text += (
            f"\nCeilings ({allocator} allocator): copy {rates['copy'] / 1e9:.1f} GB/s, sgemm {gflops:.0f} GFLOP/s, "
            f"{grec:.1f} G reciprocals/s, {gexp:.1f} G exponentials/s."
        )
    noisy = sum(not run.quiet(pair) for pair in run.pairs)
    if noisy:
        text += (
            f"\nOther programs used more than {MUCH:.0%} of our cores during {noisy} of {len(run.pairs)} measurements, "
            'marked "disturbed": do not believe those; `--resume --out FILE` repeats them.'
        )
    return text


def ratio_tables(run: Run) -> str:
    """One table an operation: our time and each peer's, how many times faster we are, floor, memory."""
    parts = []
    for op, pairs in groupby(sorted(run.pairs, key=lambda pair: pair["op"]), key=lambda pair: pair["op"]):
        rows = []
        for pair in pairs:
            found = share_of_floor(run, pair)
            share = f"{found[0]:.0%} ({found[1]})" if found else ""
            alone = pair["peer"] is None
            rows.append(
                [
                    pair["shape"],
                    pair["mode"],
                    pair["allocator"] + ("" if run.quiet(pair) else ", disturbed"),
                    pair["peer"] or "",
                    pair["ours"],
                    milliseconds(pair["ours_s"]["median"]),
                    "" if alone else milliseconds(pair["peer_s"]["median"]),
                    "" if alone else significant(pair["ratio"]["median"]),
                    "" if alone else spread(pair["ratio"]),
                    share,
                    mebibytes(pair["ours_bytes"]),
                    "" if alone else mebibytes(pair["peer_bytes"]),
                ]
            )
        head = [
            "shape",
            "mode",
            "allocator",
            "against",
            "our backend",
            "ours ms",
            "theirs ms",
            "times faster",
        ]
        head += ["20–80 %", "of roofline", "ours MiB", "theirs MiB"]
        parts.append(f"### {op}\n\n{table(head, rows, left=5)}")
    return "\n\n".join(parts)


def skipped(run: Run) -> str:
    """What was not measured and why, each reason once."""
    reasons: dict[tuple[str, str, str], int] = {}
    for skip in run.skips:
        key = (skip["op"], skip["peer"] or "all of it", skip["reason"])
        reasons[key] = reasons.get(key, 0) + 1
    rows = [[op, peer, reason, str(count)] for (op, peer, reason), count in sorted(reasons.items())]
    return table(["operation", "against", "why it was skipped", "times"], rows, left=3) if rows else ""


def document(run: Run) -> str:
    """The whole run as Markdown."""
    parts = ["## Benchmarks", heading(run), ratio_tables(run)]
    if run.skips:
        parts += ["### Not measured", skipped(run)]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(run: Run) -> str:
    """README's table: for the largest shape of each operation, how many times faster than each peer.

    Whole layers come first, then their parts, then single ops.
    """
    found: dict[tuple[str, str, str], dict[tuple[str, str], str]] = {}
    for pair in sorted(largest(run), key=_remoteness):
        if pair["peer"] and run.quiet(pair):
            row = found.setdefault((pair["op"], pair["shape"], pair["peer"]), {})
            row[pair["mode"], pair["allocator"]] = significant(pair["ratio"]["median"])
    columns = [(mode, allocator) for mode in (FORWARD, BOTH) for allocator in (DEFAULT, KEEPS)]
    rows = [
        [f"{op} {shape}", peer, *(row.get(key, "") for key in columns)]
        for (op, shape, peer), row in found.items()
    ]
    head = [mode if allocator == DEFAULT else "pages kept" for mode, allocator in columns]
    return table(["work", "times faster than", *head], rows, left=2)


def _remoteness(pair: Record) -> int:
    """How far it is from what people call: a layer or a stack, a part of one, a single op."""
    if pair["ours"] != AUTOMATIC:
        return 2
    return int(pair["dims"].get("part") not in (None, "layer", "state"))


def largest(run: Run) -> list[Record]:
    """The pairs of the shape with the most arithmetic, of each operation, part of a layer and mode."""

    def rank(pair: Record) -> tuple[float, float, str]:
        return pair["cost"]["flops"], pair["cost"]["bytes"], pair["shape"]

    best: dict[tuple[str, ...], Record] = {}
    for pair in run.pairs:
        key = pair["op"], str(pair["dims"].get("part")), pair["mode"]
        best[key] = max(best.get(key, pair), pair, key=rank)
    shapes = {(*key, pair["shape"]) for key, pair in best.items()}
    return [p for p in run.pairs if (p["op"], str(p["dims"].get("part")), p["mode"], p["shape"]) in shapes]
