"""Speech really is speech, and each voice its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .loading import loaded

pytest.importorskip("espeakng_loader")


@pytest.fixture(scope="module")
def espeak() -> Any:
    return loaded("espeak")


def test_the_speech_is_speech(espeak: Any) -> None:
    """Loud and quiet in turn, with most of its power below 4 kHz."""
    (sound,) = espeak.speak([espeak.Utterance("One two three.")])
    assert sound.rate == 22050
    assert 0.5 < len(sound.samples) / sound.rate < 3
    power = torch.fft.rfft(sound.samples).abs().square()
    assert power[: len(power) * 4000 // 11025].sum() > 0.8 * power.sum()
    level = sound.samples.unfold(0, 441, 441).square().mean(1).sqrt()
    assert level.max() > 5 * level.quantile(0.1)


def test_voices_speeds_and_pitches_differ(espeak: Any) -> None:
    variants = [{}, {"voice": "en+f2"}, {"speed": 250}, {"pitch": 90}]
    first, *others = espeak.speak(espeak.Utterance("One two three.", **given) for given in variants)
    for other in others:
        both = min(len(first.samples), len(other.samples))
        assert (first.samples[:both] - other.samples[:both]).abs().max() > 0.3
    assert len(others[1].samples) < 0.9 * len(first.samples)  # faster is shorter
    with pytest.raises(SystemExit, match="no voice 'nobody'"):
        espeak.speak([espeak.Utterance("One.", voice="nobody")])
