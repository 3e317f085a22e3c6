"""The layers: one SequenceModule a file."""

from .attention import MultiHeadedAttention
from .convolution import CausalConv
from .dss import DSS
from .feed_forward import FeedForward
from .lru import LRU
from .mamba import Mamba
from .mamba2 import Mamba2
from .recurrent import GRU, LSTM
from .s4 import S4
from .s4d import S4D
from .s5 import S5
from .s6 import S6

__all__ = [
    "DSS",
    "GRU",
    "LRU",
    "LSTM",
    "S4",
    "S4D",
    "S5",
    "S6",
    "CausalConv",
    "FeedForward",
    "Mamba",
    "Mamba2",
    "MultiHeadedAttention",
]
