"""Which backend is fastest on a GPU, as `python -m sequence_kernels tune` has measured it there.

A table is a JSON file ``{"machine": {...}, "rows": [...]}`` like bench/results/conv_choice.json. The user's own lies
beside the verdicts of proofs, and holds as long as they do: for this build, torch, Triton, driver and GPU. Without one
that of the same GPU in this folder serves, if there is one; no GPU has been measured yet.
"""

from __future__ import annotations

import functools
import json
import math
import re
from bisect import bisect
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import proofs

#: Tables of GPUs that were measured, by ``slug``.
SHIPPED = Path(__file__).parent


class Row(NamedTuple):
    """What a backend took for a call: milliseconds forward, and with gradients, None where there are none.

    ``elements``: of the tensor that ``dispatch.choose`` is asked with.
    """

    op: str
    precision: str
    shape: str
    elements: int
    backend: str
    forward: float
    both: float | None


class Table(NamedTuple):
    """``machine`` has the ``gpu`` and the ``date``."""

    machine: dict[str, Any]
    rows: tuple[Row, ...]


class Ranked(NamedTuple):
    """Backends from the fastest on, where gradients are not recorded and where they are."""

    forward: tuple[str, ...]
    both: tuple[str, ...]


class Measured(NamedTuple):
    """An op in one precision: over all sizes, and for each number of elements that was measured, in order."""

    gpu: str
    date: str
    overall: tuple[str, ...]
    sizes: tuple[tuple[int, Ranked], ...]

    def ever_fastest(self) -> frozenset[str]:
        return frozenset(ranking[0] for _, ranked in self.sizes for ranking in ranked)


class BySize(NamedTuple):
    """``chosen[i]``, (forward, with gradients), serves up to ``limits[i]`` elements, the last one all above."""

    limits: list[float]
    chosen: list[tuple[str, str]]

    def backend(self, elements: int, gradients: bool) -> str:
        return self.chosen[bisect(self.limits, elements)][gradients]


def by_size(measured: Measured, serving: Sequence[str]) -> BySize:
    """The fastest of those that can serve, each size up to halfway, by ratio, to the next one."""
    sizes = [elements for elements, _ in measured.sizes]
    limits = [math.sqrt(a * b) for a, b in pairwise(sizes)]

    def first(ranking: Sequence[str]) -> str:
        return next((b for b in ranking if b in serving), serving[0])

    return BySize(limits, [(first(r.forward), first(r.both)) for _, r in measured.sizes])


def measured(op: str, precision: str, device: torch.device) -> Measured | None:
    """What is known of the op on the GPU; None if it was not measured."""
    table = _table(device)
    rows = [r for r in table.rows if (r.op, r.precision) == (op, precision)] if table else []
    if table is None or not rows:
        return None
    sizes = tuple((size, _ranked([r for r in rows if r.elements == size])) for size in _sizes(rows))
    gpu, date = table.machine["gpu"], table.machine["date"]
    return Measured(gpu, date, _ranked(rows).both, sizes)


def _sizes(rows: Iterable[Row]) -> list[int]:
    return sorted({row.elements for row in rows})


def _ranked(rows: Sequence[Row]) -> Ranked:
    return Ranked(_ranking(rows, gradients=False), _ranking(rows, gradients=True))


def _ranking(rows: Sequence[Row], gradients: bool) -> tuple[str, ...]:
    """By the product of the times of all shapes; who has not done all of them, for want of memory, comes last."""
    shapes = {row.shape for row in rows}
    scores: dict[str, tuple[int, float]] = {}
    for backend in dict.fromkeys(row.backend for row in rows):
        own = {row.shape: row for row in rows if row.backend == backend}
        times = [row.both if gradients and row.both is not None else row.forward for row in own.values()]
        scores[backend] = len(shapes) - len(own), sum(map(math.log, times))
    return tuple(sorted(scores, key=scores.__getitem__))


def path(device: torch.device) -> Path | None:
    """Where the user's own table of the GPU lies; None where nothing can be kept."""
    folder = proofs.folder(device)
    return None if folder is None else folder / "choices.json"


def read(file: Path | None) -> Table | None:
    """The table; None if there is none, or none that can be read."""
    try:
        found = json.loads(file.read_text()) if file is not None else None
        return None if found is None else Table(found["machine"], tuple(Row(**row) for row in found["rows"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def written(table: Table) -> str:
    """The text of a table's file: a row a line."""
    rows = ",\n".join(json.dumps(row._asdict()) for row in table.rows)
    return f'{{"machine": {json.dumps(table.machine)},\n"rows": [\n{rows}\n]}}\n'


def slug(gpu: str) -> str:
    """The name of a GPU as that of a file."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


@functools.cache
def _table(device: torch.device) -> Table | None:
    own = read(path(device))
    return own or read(SHIPPED / f"{slug(torch.cuda.get_device_name(device))}.json")


def forget() -> None:
    """Read the tables again."""
    _table.cache_clear()
