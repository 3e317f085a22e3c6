"""Speech to learn from, as espeak-ng says it: `pip install espeakng-loader` brings the library and its voices."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any, NamedTuple

import espeakng_loader
import torch
from torch import Tensor

# What espeak-ng's speak_lib.h calls them. Synchronous: no thread of espeak's that would call `listen` when it is gone.
_SYNCHRONOUS, _UTF8 = 2, 1
_SPEED, _PITCH = 1, 3


class Sound(NamedTuple):
    samples: Tensor  # (length,) in [-1, 1]
    rate: int  # a second


class Utterance(NamedTuple):
    """A text and who says it, how fast (words a minute) and how high (0 to 100)."""

    text: str
    voice: str = "en"
    speed: int = 175
    pitch: int = 50


def speak(utterances: Iterable[Utterance]) -> list[Sound]:
    """Each utterance, as loud as fits into [-1, 1]. Raises SystemExit where espeak-ng or a voice is not there."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    heard: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def listen(samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            heard.append(ctypes.string_at(samples, 2 * count))
        return 0

    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate <= 0:
        raise SystemExit("espeak-ng does not start")
    library.espeak_SetSynthCallback(listen)
    sounds = []
    for text, voice, speed, pitch in utterances:
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SystemExit(f"espeak-ng has no voice {voice!r}")
        library.espeak_SetParameter(_SPEED, speed, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        heard.clear()
        encoded = text.encode() + b"\0"
        library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 0, 0, _UTF8, None, None)
        sounds.append(Sound(normalised(pcm(b"".join(heard), 1)), rate))
    library.espeak_Terminate()  # or the next start would read what this one has freed
    return sounds


def pcm(data: bytes, channels: int) -> Tensor:
    """16-bit samples as numbers in [-1, 1], the mean of the channels."""
    samples = torch.frombuffer(bytearray(data), dtype=torch.int16).float() / 32768
    return samples.view(-1, channels).mean(1)


def normalised(samples: Tensor) -> Tensor:
    return samples / samples.abs().max().clamp(min=1e-6)
