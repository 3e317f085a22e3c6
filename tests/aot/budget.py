"""What a kernel may use, and how a measurement is held against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("budget.json")
REGENERATE = "run `python -m tests.aot write` and review the change"

Resources = dict[str, int]  # registers, spill_bytes, shared_bytes
#: unit -> kernel -> resources. A unit is what is compiled at once, a .cu file or a Triton module for one target:
#: "sm_80 cauchy/cuda.cu", "cuda 90 cauchy".
Measurement = dict[str, dict[str, Resources]]


def read() -> dict[str, Any]:
    """``tools`` has each compiler's version, ``digests`` what each unit's measurement was made of (digest.py)."""
    return json.loads(PATH.read_text())


def write(record: dict[str, Any]) -> None:
    """One line a kernel and target, so that a change of one is a change of one line."""
    parts = [f' "tools": {json.dumps(record["tools"])}']
    tables = {name: units for name, units in record.items() if name not in ("tools", "digests")}
    for name, table in [*tables.items(), ("digests", record["digests"])]:
        blocks = []
        for block, rows in table.items():
            lines = [f'   "{key}": {json.dumps(rows[key])}' for key in sorted(rows)]
            blocks.append(f'  "{block}": {{\n' + ",\n".join(lines) + "\n  }")
        parts.append(f' "{name}": {{\n' + ",\n".join(blocks) + "\n }")
    PATH.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def complaints(allowed: Measurement, measured: Measurement, *, same_tool: bool) -> list[str]:
    """What is over budget, missing or gone, a sentence each.

    Registers and shared memory depend on the compiler's version, so they are compared only if it is the one that
    wrote the budget; a spill is one with any.
    """
    found = []
    for unit, kernels in measured.items():
        budgets = allowed.get(unit, {})
        found += [
            f"{name} ({unit}) is in the budget but gone; {REGENERATE}"
            for name in budgets.keys() - kernels.keys()
        ]
        for name, used in kernels.items():
            if name not in budgets:
                found.append(f"{name} ({unit}) has no budget; {REGENERATE}")
                continue
            for what in ("spill_bytes", "shared_bytes", "registers") if same_tool else ("spill_bytes",):
                if used[what] > budgets[name][what]:
                    found.append(
                        f"{name} ({unit}): {used[what]} {what.replace('_', ' ')}, "
                        f"budget {budgets[name][what]}; {REGENERATE}"
                    )
    return sorted(found)
