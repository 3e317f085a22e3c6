"""What a result must say about where it was measured; no host names, no paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

SCHEMA = 2  # 1: a pair's ratio was that of the medians; now it is the median of the rounds' ratios
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "numpy", "triton", "espnet", "pykeops", "accelerated-scan", "fla-core", "mamba-ssm")


def describe(device: torch.device) -> dict[str, Any]:
    """Kind of machine, processor, cores, memory, and the GPU with its driver where there is one."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    processor = found[1].strip() if found else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    vectors = torch.backends.cpu.get_cpu_capability().lower()
    machine: dict[str, Any] = {
        "kind": _slug(f"{cores}-core-{processor}-{vectors}"),
        "processor": processor,
        "cores": cores,
        "vectors": vectors,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
        machine["kind"] = _slug(machine["gpu"])
        machine["driver"] = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return machine


def versions() -> dict[str, str]:
    """Python's and the installed packages' versions."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit measured, with "+" when the tree differs from it; "unknown" outside a repository."""
    head = _said("git", "rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    return head + ("+" if _said("git", "status", "--porcelain", "--untracked-files=no") else "")


def header(device: torch.device, which: str, threads: int | None = None) -> dict[str, Any]:
    """The first line of a results file; `threads` is what measuring processes use, by default as torch chooses."""
    return {
        "kind": "run",
        "schema": SCHEMA,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "set": which,
        "device": device.type,
        "machine": describe(device),
        "versions": versions(),
        "threads": threads or torch.get_num_threads(),
    }


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
