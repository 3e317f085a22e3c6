"""State-space sequence layers on hand-written kernels. Importing this loads no compiled library and touches no GPU."""

from . import ops
from .module import SequenceIdentity, SequenceModule, TransposedModule
from .ops import BackendUnavailableError, use_backend

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "SequenceIdentity",
    "SequenceModule",
    "TransposedModule",
    "ops",
    "use_backend",
]
