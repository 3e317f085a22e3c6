"""What works here, what does not, and what to do about it: `python -m sequence_kernels [--json]`."""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import platform
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from . import native, ops
from .layers import S4, S4D
from .ops.dispatch import reasons, runs_on

#: The kinds of device whose choices are shown.
_DEVICES = ("cpu", "cuda")

#: Relative error (norm-wise) in float32 that the self-test accepts.
_ACCEPTED = 1e-4


def versions() -> dict[str, str | None]:
    """Versions of all that takes part; None for what is not there."""
    return {
        "sequence_kernels": _version("sequence-kernels"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "CUDA of torch": torch.version.cuda,
        "CUDA of the driver": _driver(),
        "triton": _version("triton"),
    }


def _version(distribution: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    """The newest CUDA that the NVIDIA driver serves; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def devices() -> list[dict[str, Any]]:
    """The CPU and every GPU that torch sees."""
    found: list[dict[str, Any]] = [
        {
            "device": "cpu",
            "name": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "capability": torch.backends.cpu.get_cpu_capability(),
        }
    ]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        name = torch.cuda.get_device_name(index)
        found.append({"device": f"cuda:{index}", "name": name, "capability": f"{major}{minor}"})
    return found


def libraries() -> dict[str, dict[str, Any]]:
    """Each compiled library: whether it is there, why it does not load if it does not, and what built it."""
    return {
        name: {
            "installed": native.is_installed(name),
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
            chosen, others = reasons(op, device)
            table[op][device] = {"chosen": chosen, "others": others}
    return table


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
        usable = name != "cuda" or (report["versions"]["CUDA of torch"] and _driver())
        if library["installed"] and library["unavailable"] and usable:
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
    return found


def _serves(built: dict[str, Any], capability: str) -> bool:
    """Machine code runs on its own and later minor versions of its major one; PTX on all that are not older."""
    compiled = any(a[:-1] == capability[:-1] and int(a) <= int(capability) for a in built["architectures"])
    return compiled or int(built["ptx"]) <= int(capability)


def examine() -> dict[str, Any]:
    """All of the above."""
    report: dict[str, Any] = {
        "versions": versions(),
        "devices": devices(),
        "libraries": libraries(),
        "backends": backends(),
        "self_test": {},
    }
    for device in [found["device"] for found in report["devices"]]:
        try:
            report["self_test"][device] = self_test(device)
        except Exception as error:  # whatever it is, it is what the report is for
            report["self_test"][device] = f"{type(error).__name__}: {error}"
    report["broken"] = broken(report)
    return report


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{name}: {version or 'none'}" for name, version in report["versions"].items()]
    lines += ["", "devices"]
    lines += [f"  {d['device']}: {d['name']}, {d['capability']}" for d in report["devices"]]
    lines += ["", "compiled libraries"]
    for name, library in report["libraries"].items():
        lines.append(f"  {name}: {library['unavailable'] or 'loaded'}")
        for key, value in (library["built_with"] or {}).items():
            lines.append(f"    {key}: {' '.join(value) if isinstance(value, list) else value}")
    for device in _DEVICES:
        lines += ["", f"which backend serves {device} tensors", *_table(report["backends"], device)]
    lines += ["", f"self-test: relative errors in float32 against float64, up to {_ACCEPTED:.0e} accepted"]
    for device, result in report["self_test"].items():
        said = result if isinstance(result, str) else ", ".join(f"{k} {v:.1e}" for k, v in result.items())
        lines.append(f"  {device}: {said}")
    found = [f"BROKEN: {sentence}" for sentence in report["broken"]]
    lines += ["", *(found or ["nothing that is installed is broken"])]
    return "\n".join(lines)


def _table(table: dict[str, dict[str, dict[str, Any]]], device: str) -> Iterator[str]:
    """The ops that the same backend serves for the same reasons, together."""
    served: dict[tuple[str, ...], list[str]] = {}
    for op, by_device in table.items():
        choice = by_device[device]
        others = [f"not {b}: {why}" for b, why in choice["others"].items() if runs_on(b, device)]
        served.setdefault((choice["chosen"], *others), []).append(op)
    for (chosen, *others), names in served.items():
        yield f"  {chosen}: {', '.join(names)}"
        yield from (f"    {why}" for why in others)


def main() -> int:
    """Print the report; 1 if something that is installed is broken, else 0."""
    parser = argparse.ArgumentParser(prog="python -m sequence_kernels", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    given = parser.parse_args()
    report = examine()
    print(json.dumps(report, indent=1) if given.json else text(report))
    return 1 if report["broken"] else 0
