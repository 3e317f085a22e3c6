"""What a kernel may use, and how a measurement is held against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("budget.json")
REGENERATE = "run `python -m tests.aot write` and review the change"

Resources = dict[str, int]  # registers, spill_bytes, shared_bytes
Measurement = dict[str, dict[str, Resources]]  # target -> kernel -> resources


def read() -> dict[str, Any]:
    return json.loads(PATH.read_text())


def write(tools: dict[str, str], compilers: dict[str, Measurement]) -> None:
    """One line a kernel and target, so that a change of one is a change of one line."""
    lines = [f'{{\n "tools": {json.dumps(tools)}']
    for compiler, targets in compilers.items():
        lines.append(f',\n "{compiler}": {{')
        blocks = []
        for target, kernels in targets.items():
            rows = [f'   "{name}": {json.dumps(kernels[name])}' for name in sorted(kernels)]
            blocks.append(f'  "{target}": {{\n' + ",\n".join(rows) + "\n  }")
        lines.append("\n" + ",\n".join(blocks) + "\n }")
    PATH.write_text("".join(lines) + "\n}\n")


def complaints(allowed: Measurement, measured: Measurement, *, same_tool: bool) -> list[str]:
    """What is over budget, missing or gone, a sentence each.

    Registers and shared memory depend on the compiler's version, so they are compared only if it is the one that
    wrote the budget; a spill is one with any.
    """
    found = []
    for target, kernels in measured.items():
        budgets = allowed.get(target, {})
        found += [
            f"{name} ({target}) is in the budget but gone; {REGENERATE}"
            for name in budgets.keys() - kernels.keys()
        ]
        for name, used in kernels.items():
            if name not in budgets:
                found.append(f"{name} ({target}) has no budget; {REGENERATE}")
                continue
            for what in ("spill_bytes", "shared_bytes", "registers") if same_tool else ("spill_bytes",):
                if used[what] > budgets[name][what]:
                    unit = what.replace("_", " ")
                    found.append(
                        f"{name} ({target}): {used[what]} {unit}, budget {budgets[name][what]}; {REGENERATE}"
                    )
    return sorted(found)
