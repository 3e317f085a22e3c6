"""The layers: one SequenceModule a file."""

from .attention import MultiHeadedAttention
from .convolution import CausalConv
from .dss import DSS
from .feed_forward import FeedForward
from .lru import LRU
from .recurrent import GRU, LSTM
from .s4 import S4
from .s4d import S4D
from .s5 import S5

__all__ = [
    "DSS",
    "GRU",
    "LRU",
    "LSTM",
    "S4",
    "S4D",
    "S5",
    "CausalConv",
    "FeedForward",
    "MultiHeadedAttention",
]
