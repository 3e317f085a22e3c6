"""What is here: versions, devices and the driver, as reports and records name them."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch


def versions() -> dict[str, str | None]:
    """Versions of all that takes part; None for what is not there."""
    return {
        "sequence_kernels": version("sequence-kernels"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "CUDA of torch": torch.version.cuda,
        "CUDA of the driver": cuda_of_driver(),
        "triton": version("triton"),
    }


def version(distribution: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def cuda_of_driver() -> str | None:
    """The newest CUDA that the NVIDIA driver serves; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def driver() -> str | None:
    """What the kernel says of its NVIDIA driver, with its whole version; where it says nothing, ``cuda_of_driver``."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return cuda_of_driver()


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
