"""Our decoder as one of ESPnet's."""

from __future__ import annotations

import functools
from importlib import import_module

from ..models import S4Decoder


@functools.cache
def espnet_decoder() -> type[S4Decoder]:
    """``S4Decoder`` as a subclass of ESPnet's ``AbsDecoder`` and ``BatchScorerInterface``, which its searches ask for.

    Raises ImportError where ESPnet is not installed.
    """
    decoder = import_module("espnet2.asr.decoder.abs_decoder").AbsDecoder
    scorer = import_module("espnet.nets.scorer_interface").BatchScorerInterface
    return type("S4Decoder", (S4Decoder, decoder, scorer), {"__doc__": S4Decoder.__doc__})
