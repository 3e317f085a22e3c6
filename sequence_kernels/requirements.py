"""What the package cannot be imported without: a torch that is new enough, or one sentence that says so.

Importing this looks, as importing torch itself would.
"""

from __future__ import annotations

import re
import sys

#: As pyproject.toml has it: the first torch with the stable C functions that the libraries are written on.
OLDEST_TORCH = (2, 10)


def fault() -> str | None:
    """What is wrong with this Python's torch, and what to do; None if nothing is."""
    oldest = ".".join(map(str, OLDEST_TORCH))
    mend = f"`{sys.executable} -m pip install 'torch>={oldest}'`; without a GPU take the CPU build, which is a tenth "
    mend += "of the size (https://pytorch.org/get-started)"
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return f"sequence_kernels needs torch >= {oldest}, and {sys.executable} has none: {mend}"
    numbers = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if numbers and tuple(map(int, numbers.groups())) < OLDEST_TORCH:
        return f"sequence_kernels needs torch >= {oldest}, and this is torch {torch.__version__}: {mend}"
    return None


def check() -> None:
    """Raise ImportError with the fault; `python -m sequence_kernels` ends with the sentence alone."""
    if (found := fault()) is None:
        return
    if sys.argv[:1] == ["-m"] and "sequence_kernels" in sys.orig_argv:  # while it is still being located
        sys.exit(found)
    raise ImportError(found)


check()
