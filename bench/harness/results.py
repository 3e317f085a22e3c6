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

Record = dict[str, Any]


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

    def find(self, **wanted: Any) -> Record | None:
        """The last pair whose fields have these values."""
        hits = [pair for pair in self.pairs if all(pair.get(key) == value for key, value in wanted.items())]
        return hits[-1] if hits else None


def load(path: Path) -> Run:
    """Read one results file; raises ValueError for a file that is none."""
    try:
        records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no results file: {error}") from error
    if not records or records[0].get("kind") != "run":
        raise ValueError(f"{path} is no results file: its first line is no run header")
    run = Run(path, records[0])
    for record in records[1:]:
        if record["kind"] == "ceilings":
            run.ceilings[record["allocator"]] = record["rates"]
        elif record["kind"] == "pair":
            run.pairs.append(record)
        elif record["kind"] == "skip":
            run.skips.append(record)
    return run


def load_all(paths: Iterable[Path]) -> list[Run]:
    """Results files, and those in folders (which need not exist), oldest run first."""
    files = [file for path in paths for file in ([path] if path.suffix else sorted(path.rglob("*.jsonl")))]
    return sorted((load(file) for file in files), key=lambda run: (run.header["time"], str(run.path)))
