"""Models made of layers: the residual block and the isotropic backbone."""

from .backbone import SequenceModel
from .block import SequenceResidualBlock
from .decoders import SequenceDecoder, StateDecoder, StateEncoder
from .mamba_lm import MambaLM
from .registry import LAYERS
from .s4_decoder import S4Decoder
from .sampling import sample
from .states import merge_states, select_state, split_states

__all__ = [
    "LAYERS",
    "MambaLM",
    "S4Decoder",
    "SequenceDecoder",
    "SequenceModel",
    "SequenceResidualBlock",
    "StateDecoder",
    "StateEncoder",
    "merge_states",
    "sample",
    "select_state",
    "split_states",
]
