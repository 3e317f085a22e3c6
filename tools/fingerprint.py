"""What tells a library from a damaged copy: setup.py writes it beside each, sequence_kernels/native.py checks it."""

from __future__ import annotations

import hashlib


def fingerprint(library: bytes) -> dict[str, object]:
    """Size and SHA-256 of a library's file."""
    return {"size": len(library), "sha256": hashlib.sha256(library).hexdigest()}
