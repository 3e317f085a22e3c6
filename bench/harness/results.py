"""Reading results: runs, their pairs, and the newest pair that answers a question."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.harness.machine import ROOT

RECORDED = ROOT / "bench" / "results"  # by machine kind, committed
LOCAL = ROOT / "runs" / "bench"  # what `run` writes unless told otherwise, not committed

MUCH = 0.1  # share of the cores

Record = dict[str, Any]


def disturbance(pair: Record) -> float:
    """The share of the cores that other programs used during the measurement; 0 where that is not known."""
    return float(pair.get("foreign") or 0.0)


@dataclass
class Run:
    """One results file."""

    path: Path
    header: Record
    ceilings: dict[str, dict[str, float]] = field(default_factory=dict)
    pairs: list[Record] = field(default_factory=list)
    skips: list[Record] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return str(self.header["machine"]["kind"])

    def rates(self, allocator: str) -> dict[str, float] | None:
        """This machine's ceilings under the allocator setting, or under any if that one is missing."""
        return self.ceilings.get(allocator) or next(iter(self.ceilings.values()), None)

    def quiet(self, pair: Record) -> bool:
        """Whether the measurement can be believed: else both sides mostly waited for a core, unequally.

        Other programs may use the cores that we have no thread for, and a little more.
        """
        spare = 1 - self.header["threads"] / self.header["machine"]["cores"]
        return disturbance(pair) <= spare + MUCH

    def find(self, **wanted: Any) -> Record | None:
        """The first quiet pair whose fields have these values."""
        hits = (pair for pair in self.pairs if all(pair.get(key) == value for key, value in wanted.items()))
        return next(filter(self.quiet, hits), None)


def load(path: Path) -> Run:
    """Read one results file; raises ValueError for a file that is none. Of repeated pairs the quietest counts."""
    try:
        records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no results file: {error}") from error
    if not records or records[0].get("kind") != "run":
        raise ValueError(f"{path} is no results file: its first line is no run header")
    run = Run(path, records[0])
    pairs: dict[tuple[str, ...], Record] = {}
    for record in records[1:]:
        if record["kind"] == "ceilings":
            run.ceilings[record["allocator"]] = record["rates"]
        elif record["kind"] == "pair":
            key = tuple(record[name] for name in ("op", "shape", "mode", "allocator", "device", "peer"))
            pairs[key] = min(pairs.get(key, record), record, key=disturbance)
        elif record["kind"] == "skip":
            run.skips.append(record)
    run.pairs = list(pairs.values())
    return run


def load_all(paths: Iterable[Path]) -> list[Run]:
    """Results files, and those in folders (which need not exist), oldest run first."""
    files = [file for path in paths for file in ([path] if path.suffix else sorted(path.rglob("*.jsonl")))]
    return sorted((load(file) for file in files), key=lambda run: (run.header["time"], str(run.path)))
