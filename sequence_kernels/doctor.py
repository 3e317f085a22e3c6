"""What works here, what does not, and what to do about it: `python -m sequence_kernels [--json]`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from . import __version__, installation, native, ops, proofs, prove
from .layers import S4, S4D
from .machine import cuda_of_driver, devices, versions
from .ops.dispatch import reasons, runs_on

#: The kinds of device whose choices are shown.
_DEVICES = ("cpu", "cuda")

#: Relative error (norm-wise) in float32 that the self-test accepts.
_ACCEPTED = 1e-4


def libraries() -> dict[str, dict[str, Any]]:
    """Each compiled library: whether it is there, why it does not load if it does not, and what built it."""
    return {
        name: {
            "installed": native.is_installed(name),
            "was_built": native.was_built(name),
            "unavailable": native.unavailable(name),
            "built_with": native.built_with(name),
        }
        for name in native.LIBRARIES
    }


def backends() -> dict[str, dict[str, dict[str, Any]]]:
    """For each op and each kind of device: the backend that would be chosen, and why not the others."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for op in ops.operations():
        table[op] = {}
        for device in _DEVICES:
            chosen, proven, others = reasons(op, torch.device(device))
            table[op][device] = {"chosen": chosen, "proven": proven, "others": others}
    return table


def proven() -> list[tuple[proofs.Unit, proofs.Verdict]]:
    """What the proofs of GPU kernels have found on the GPUs that are here; nothing is proven for it."""
    return [(unit, found) for unit in prove.units() if (found := proofs.on_record(unit))]


def self_test(device: str) -> dict[str, float]:
    """Relative errors in float32 on the device, of what the library chooses there against plain torch in float64.

    For each of S4D and S4: a whole sequence, and the same sequence step by step.
    """
    generator = torch.Generator().manual_seed(0)
    errors = {}
    for layer in (S4D, S4):
        torch.manual_seed(0)
        with torch.device("cpu"):
            exact: nn.Module = layer(16, 16, transposed=False).double().eval()
            u = torch.randn(2, 100, 16, generator=generator, dtype=torch.float64)
        module = layer(16, 16, transposed=False)
        module.load_state_dict(exact.state_dict())
        module = module.float().to(device).eval()
        x = u.float().to(device)
        with torch.no_grad():
            with ops.use_backend("torch"):
                expected = exact(u)[0]
            whole = module(x)[0]
        stepper = module.stepper((2,))
        steps = torch.stack([stepper.step(x[:, t]) for t in range(x.shape[1])], 1)
        for name, got in (("forward", whole), ("step", steps)):
            errors[f"{layer.__name__} {name}"] = float(
                (got.cpu().double() - expected).norm() / expected.norm()
            )
    return errors


def broken(report: dict[str, Any]) -> list[str]:
    """What is installed and does not work, a sentence each."""
    found = []
    for name, library in report["libraries"].items():
        usable = name != "cuda" or (report["versions"]["CUDA of torch"] and cuda_of_driver())
        there = library["installed"] or library["was_built"]
        if there and library["unavailable"] and usable:
            found.append(f"the {name} library: {library['unavailable']}")
    built = report["libraries"]["cuda"]["built_with"]
    for device in report["devices"]:
        if built and device["device"] != "cpu" and not _serves(built, device["capability"]):
            found.append(
                f"{device['device']} has compute capability {device['capability']}, and the CUDA library was "
                f"compiled for {', '.join(built['architectures'])}: build for it (docs/install.md)"
            )
    for device, result in report["self_test"].items():
        if isinstance(result, str):
            found.append(f"the self-test on {device} raised {result}")
            continue
        for name, error in result.items():
            if not error <= _ACCEPTED:
                found.append(f"the self-test on {device}: {name} has a relative error of {error:.1e}")
    for row in report["proofs"]:
        if not row["passed"]:
            where = f"{row['backend']} kernels of {row['family']} for {row['precision']}"
            found.append(f"the {where} failed their proof on {row['device']}: {row['said']}")
    return found


def _serves(built: dict[str, Any], capability: str) -> bool:
    """Machine code runs on its own and later minor versions of its major one; PTX on all that are not older."""
    compiled = any(a[:-1] == capability[:-1] and int(a) <= int(capability) for a in built["architectures"])
    return compiled or int(built["ptx"]) <= int(capability)


def examine() -> dict[str, Any]:
    """All of the above."""
    report: dict[str, Any] = {
        "installation": installation.report(__version__),
        "versions": versions(),
        "devices": devices(),
        "libraries": libraries(),
        "backends": backends(),
        "proofs": [],
        "self_test": {},
    }
    for device in [found["device"] for found in report["devices"]]:
        try:
            report["self_test"][device] = self_test(device)
        except Exception as error:  # whatever it is, it is what the report is for
            report["self_test"][device] = f"{type(error).__name__}: {error}"
    report["proofs"] = [
        {**unit._asdict(), "device": str(unit.device), **found._asdict()} for unit, found in proven()
    ]
    report["broken"] = broken(report)
    return report


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [*_where(report["installation"]), ""]
    lines += [f"{name}: {version or 'none'}" for name, version in report["versions"].items()]
    lines += ["", "devices"]
    lines += [f"  {d['device']}: {d['name']}, {d['capability']}" for d in report["devices"]]
    lines += ["", "compiled libraries"]
    for name, library in report["libraries"].items():
        lines.append(f"  {name}: {library['unavailable'] or 'loaded'}")
        for key, value in (library["built_with"] or {}).items():
            lines.append(f"    {key}: {' '.join(value) if isinstance(value, list) else value}")
    for device in _DEVICES:
        lines += ["", f"which backend serves {device} tensors", *_table(report["backends"], device)]
    if report["proofs"]:
        lines += ["", "proofs of GPU kernels on record", *(f"  {line}" for line in _proofs(report["proofs"]))]
    lines += ["", f"self-test: relative errors in float32 against float64, up to {_ACCEPTED:.0e} accepted"]
    for device, result in report["self_test"].items():
        said = result if isinstance(result, str) else ", ".join(f"{k} {v:.1e}" for k, v in result.items())
        lines.append(f"  {device}: {said}")
    found = [f"BROKEN: {sentence}" for sentence in report["broken"]]
    lines += ["", *(found or ["nothing that is installed is broken"])]
    return "\n".join(lines)


def _where(installed: dict[str, Any]) -> Iterator[str]:
    """Which installation this is about, and which it is not."""
    yield f"looking at {installed['path']} ({installed['kind']}, version {installed['version']})"
    for other in installed["hides"]:
        yield (
            f"  NOT at {other['path']} (version {other['version']}), which is installed too but found later: the "
            "current directory or PYTHONPATH comes first; run this from another directory to look at that one"
        )


def _table(table: dict[str, dict[str, dict[str, Any]]], device: str) -> Iterator[str]:
    """The ops that the same backend serves for the same reasons, together."""
    served: dict[tuple[str, ...], list[str]] = {}
    for op, by_device in table.items():
        choice = by_device[device]
        others = [f"not {b}: {why}" for b, why in choice["others"].items() if runs_on(b, device)]
        chosen = choice["chosen"] + (f" ({choice['proven']})" if choice["proven"] else "")
        served.setdefault((chosen, *others), []).append(op)
    for (chosen, *others), names in served.items():
        yield f"  {chosen}: {', '.join(names)}"
        yield from (f"    {why}" for why in others)


def _proofs(found: list[dict[str, Any]]) -> list[str]:
    def part(kind: Any, row: dict[str, Any]) -> Any:
        return kind(**{name: row[name] for name in kind._fields})

    return prove.table({part(proofs.Unit, row): part(proofs.Verdict, row) for row in found})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.set_defaults(command=command)


def command(given: argparse.Namespace) -> int:
    """Print the report; 1 if something that is installed is broken, else 0."""
    report = examine()
    print(json.dumps(report, indent=1) if given.json else text(report))
    return 1 if report["broken"] else 0
