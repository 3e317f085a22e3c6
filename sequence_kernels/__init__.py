"""State-space sequence layers on hand-written kernels. Importing this loads no compiled library and touches no GPU."""

from . import requirements  # noqa: F401 (first of all: the others need what it looks for)

# isort: split
from . import compat, export, layers, ops, ssm
from .adapted import stepper
from .freezing import freeze, frozen_state, thawed_state
from .layers import *  # noqa: F403 (what it exports, type checkers follow)
from .models import (
    MambaLM,
    S4Decoder,
    SequenceDecoder,
    SequenceModel,
    SequenceResidualBlock,
    StateDecoder,
    StateEncoder,
)
from .module import SequenceIdentity, SequenceModule, TransposedModule
from .ops import BackendUnavailableError, use_backend
from .optim import parameter_groups
from .stepping.stepper import Stepper

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "MambaLM",
    "S4Decoder",
    "SequenceDecoder",
    "SequenceIdentity",
    "SequenceModel",
    "SequenceModule",
    "SequenceResidualBlock",
    "StateDecoder",
    "StateEncoder",
    "Stepper",
    "TransposedModule",
    "compat",
    "export",
    "freeze",
    "frozen_state",
    "ops",
    "parameter_groups",
    "ssm",
    "stepper",
    "thawed_state",
    "use_backend",
]
__all__ += layers.__all__
