"""The layers: one SequenceModule a file."""

from .attention import MultiHeadedAttention
from .feed_forward import FeedForward
from .s4 import S4
from .s4d import S4D

__all__ = ["S4", "S4D", "FeedForward", "MultiHeadedAttention"]
