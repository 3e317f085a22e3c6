"""Models made of layers: the residual block and the isotropic backbone."""

from .backbone import SequenceModel
from .block import SequenceResidualBlock
from .registry import LAYERS

__all__ = ["LAYERS", "SequenceModel", "SequenceResidualBlock"]
