"""Kernels prove themselves on the GPU where they are to be used, before they are used there.

A proof runs a few small calls of a family of kernels against plain torch in float64. What it finds is kept in a file
for this model of GPU, driver, torch, Triton and build, and holds until one of them changes.
"""

from .case import Case, Workload
from .judge import LostDeviceError, NotNowError, Proof, folder, forget, on_record, prove, record, verdict
from .ledger import Unit, Verdict, write_at_once

__all__ = [
    "Case",
    "LostDeviceError",
    "NotNowError",
    "Proof",
    "Unit",
    "Verdict",
    "Workload",
    "folder",
    "forget",
    "on_record",
    "prove",
    "record",
    "verdict",
    "write_at_once",
]
