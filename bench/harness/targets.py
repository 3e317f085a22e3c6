"""Every promised speed beside the newest measured value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.harness.ceilings import floor
from bench.harness.declare import Bench, Cost, Target
from bench.harness.results import Record, Run
from bench.harness.tables import significant, table

MET, SHORT, UNMEASURED = "met", "FALLS SHORT", "not measured yet"
CEILINGS = ("sgemm", "copy", "roofline")


@dataclass(frozen=True)
class Row:
    """A target, the newest value measured for it (None: none yet), and the run that says so."""

    op: str
    target: Target
    measured: float | None
    run: Run | None

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return UNMEASURED
        return MET if self.measured >= self.target.at_least else SHORT


def rows(known: Mapping[str, Bench], runs: Sequence[Run]) -> list[Row]:
    """All declared targets; `runs` are oldest first, and the newest that holds a value wins."""
    found = []
    for op, bench in known.items():
        for target in bench.targets:
            values = ((measured(op, target, run), run) for run in reversed(runs))
            value, run = next(((v, r) for v, r in values if v is not None), (None, None))
            found.append(Row(op, target, value, run))
    return sorted(found, key=lambda row: row.target.issue)


def measured(op: str, target: Target, run: Run) -> float | None:
    """What the run measured for the target; promises on a CPU are for all of its cores."""
    if target.device == "cpu" and run.header["threads"] < run.header["machine"]["cores"]:
        return None
    wanted = {"op": op, "shape": target.shape, "mode": target.mode, "device": target.device}
    wanted["allocator"] = target.allocator
    if target.against in CEILINGS:
        pair, rates = run.find(**wanted), run.rates(target.allocator)
        return _share(target.against, pair, rates) if pair and rates else None
    pair = run.find(**wanted, peer=target.against)
    if pair is None:
        return None
    if target.quantity == "time":
        return float(pair["ratio"]["median"])
    if not pair["ours_bytes"] or pair["peer_bytes"] is None:
        return None
    return float(pair["peer_bytes"] / pair["ours_bytes"])


def _share(ceiling: str, pair: Record, rates: Mapping[str, float]) -> float:
    cost, seconds = Cost(**pair["cost"]), pair["ours_s"]["median"]
    if ceiling == "roofline":
        return floor(cost, rates)[0] / seconds
    amount = {"sgemm": cost.flops, "copy": cost.bytes}[ceiling]
    return amount / rates[ceiling] / seconds


def listing(found: Sequence[Row]) -> str:
    """The table of all targets and a closing count."""
    lines = []
    for row in found:
        target, percent = row.target, row.target.against in CEILINGS
        unit = (lambda value: f"{value:.0%}") if percent else (lambda value: f"{significant(value)}x")
        source = f"{row.run.kind} {row.run.header['time'][:10]} {row.run.header['commit']}" if row.run else ""
        lines.append(
            [
                f"#{target.issue}",
                target.work,
                f"{target.against}{', memory' if target.quantity == 'memory' else ''}",
                target.device if target.device != "cpu" else target.allocator,
                f"{target.at_least:.0%}" if percent else f"{target.at_least:g}x",
                "" if row.measured is None else unit(row.measured),
                row.verdict,
                source,
            ]
        )
    head = ["issue", "work", "against", "allocator/device", "target", "measured", "verdict", "measured on"]
    counts = {each: sum(row.verdict == each for row in found) for each in (MET, SHORT, UNMEASURED)}
    closing = f"{len(found)} targets: {counts[MET]} met, {counts[SHORT]} fall short, "
    return f"{table(head, lines, left=4)}\n\n{closing}{counts[UNMEASURED]} not measured yet."
