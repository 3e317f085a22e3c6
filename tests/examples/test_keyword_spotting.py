"""Spotting words, on few and with small models: what it hears, prints, writes and returns; how it resumes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from .loading import loaded

pytest.importorskip("espeakng_loader")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

SMALL = {
    "ACCENTS": ("en",),
    "SPEEDS": (175,),
    "PITCHES": (50,),
    "HEARD": ("m1",),
    "UNHEARD": ("f3",),
    "PARAMETERS": 2000,
    "BATCH": 6,
    "STREAMED": 2,
}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = loaded("keyword_spotting")
    for name, value in SMALL.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "say", cache(module.say))  # espeak-ng never says it quite the same again
    return module


def run(example: Any, folder: Path, *arguments: str) -> int:
    threads = torch.get_num_threads()
    try:
        return example.main(["--layers", "s4d", "s4", "--steps", "2", "--runs", str(folder), *arguments])
    finally:
        torch.set_num_threads(threads)


def test_words_lie_in_noise_of_the_level_that_is_said(example: Any) -> None:
    words = example.say(("m1",))
    assert words.word.tolist() == list(range(10))
    torch.manual_seed(0)
    rows = torch.arange(10)
    speech = example.placed(words, rows)
    torch.testing.assert_close(speech.square().sum(1), words.samples.square().sum(1))
    level = speech.square().mean(1, keepdim=True).sqrt()
    for kind in example.NOISES:
        noise = example.noise(kind, 10, words)
        mixture = example.mixed(speech, noise, torch.full((10,), 5.0))
        both = torch.stack([speech / level, noise], 1)
        parts = torch.linalg.solve(both @ both.mT, both @ mixture.unsqueeze(-1))  # least squares
        torch.testing.assert_close(
            20 * (parts[:, 0] / parts[:, 1]).log10(), torch.full((10, 1), 5.0), rtol=1e-4, atol=0
        )
    assert not torch.equal(example.placed(words, rows), speech)  # elsewhere the next time


def test_frames_are_the_same_block_by_block(example: Any) -> None:
    samples = torch.randn(example.SAMPLES)
    whole = example.features(samples)
    assert whole.shape == (example.FRAMES, example.BANDS)
    torch.testing.assert_close(torch.stack(list(example.blocks(samples))), whole)
    low, high = (
        example.features(torch.sin(6.283 * frequency * torch.arange(example.SAMPLES) / example.RATE))[
            5
        ].argmax()
        for frequency in (300, 3000)
    )
    assert low < high


@pytest.mark.parametrize("layer", ["s4d", "s4", "mamba", "gru"])
def test_models_have_equally_many_parameters(example: Any, layer: str) -> None:
    model = example.Spotter(layer, example.width(layer))
    assert example.size(model) == pytest.approx(example.PARAMETERS, rel=0.2)  # a step of the width is 15 %


def test_a_run_writes_its_results_and_resumes(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = example.Training._step

    def interrupted(training: Any, samples: torch.Tensor, word: torch.Tensor) -> float:
        if training.config["layer"] == "s4" and training.done == 1:
            raise KeyboardInterrupt
        return step(training, samples, word)

    assert run(example, tmp_path / "whole") == 0
    said = capsys.readouterr().out
    for words in ("pink noise", "babble", "real-time factor", "state bytes", "voices never heard"):
        assert words in said
    monkeypatch.setattr(example.Training, "_step", interrupted)
    assert run(example, tmp_path / "cut") == 130
    assert "holds 1 steps: go on with --resume" in capsys.readouterr().err
    monkeypatch.setattr(example.Training, "_step", step)
    assert run(example, tmp_path / "cut", "--resume") == 0
    folders = [tmp_path / name / "keyword_spotting" for name in ("whole", "cut")]
    for layer in ("s4d", "s4"):
        whole, cut = (torch.load(folder / f"{layer}.pt")["model"] for folder in folders)
        for name, value in whole.items():
            torch.testing.assert_close(cut[name], value, rtol=0, atol=0)
    assert (folders[1] / "keyword_spotting.png").read_bytes()[:4] == b"\x89PNG"


def test_a_stream_that_differs_fails_the_run(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="to resume; run without --resume first"):
        run(example, tmp_path, "--resume")
    stream = example.stream
    monkeypatch.setattr(example, "stream", lambda stepper, frames: stream(stepper, frames[1:]))
    assert run(example, tmp_path, "--layers", "s4d") == 1
    assert "FAILED: the stream differs" in capsys.readouterr().err
