"""How many elements a chunk of ``ssm_conv`` should have."""

from __future__ import annotations


def best_chunk(size: int, *, dense: bool) -> int:
    """The fastest chunk T for a state of ``size`` real entries, A being diagonal or a dense matrix.

    An element costs ``2 size + T / 2`` multiply-adds, and its share of the product with A^T: about ``4 size / T``, or
    ``size^2 / T`` where A is dense. It does not depend on the batch or the length, so that a compiled model serves
    them all. Measured on CPUs: docs/decisions.md.
    """
    return min(max(1 << (size - 1).bit_length(), 32), 128) if dense else 32
