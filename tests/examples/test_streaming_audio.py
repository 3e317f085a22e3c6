"""The streaming example: what it prints, writes and returns."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import pytest
import torch

from .loading import loaded

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
pytest.importorskip("espeakng_loader")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example as a module, saying little."""
    module = loaded("streaming_audio")
    monkeypatch.setattr(module, "SENTENCES", ("Hello there.",))
    monkeypatch.setattr(module, "UNHEARD", "Ten blocks.")
    monkeypatch.setattr(module, "BATCH", 2)
    return module


def run(example: Any, folder: Path, *arguments: str) -> int:
    threads = torch.get_num_threads()
    try:
        return example.main(["--steps", "2", "--runs", str(folder), *arguments])
    finally:
        torch.set_num_threads(threads)


def test_a_run_streams_and_writes_its_results(
    example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(example, tmp_path) == 0
    folder = tmp_path / "streaming_audio"
    assert {path.name for path in folder.iterdir()} == {
        "noisy.wav",
        "cleaned.wav",
        "streaming_audio.png",
        "checkpoint.pt",
    }
    assert (folder / "streaming_audio.png").read_bytes()[:4] == b"\x89PNG"
    noisy, cleaned = (example.read_wav(folder / f"{name}.wav") for name in ("noisy", "cleaned"))
    assert noisy.samples.shape == cleaned.samples.shape
    printed = capsys.readouterr().out
    blocks = -(-len(noisy.samples) // 220)
    assert f"{blocks} blocks of 10 ms" in printed
    for words in ("sample by sample", "99 %", "real-time factor", "dB before"):
        assert words in printed


def test_a_recording_of_ones_own(example: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes((torch.randn(9000, 2) * 3000).short().numpy().tobytes())
    assert run(example, tmp_path, "--audio", str(path)) == 0
    assert example.read_wav(tmp_path / "streaming_audio" / "noisy.wav").samples.shape == (3000,)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 1, 8000, 0, "NONE", ""))
    with pytest.raises(SystemExit, match="8 bits a sample; 16 are needed"):
        run(example, tmp_path, "--audio", str(path))


def test_a_stream_that_differs_fails_the_run(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = example.Stepper.step

    def forgetful(stepper: Any, x: torch.Tensor) -> torch.Tensor:
        stepper.reset()
        return step(stepper, x)

    monkeypatch.setattr(example.Stepper, "step", forgetful)
    assert run(example, tmp_path) == 1
    assert "FAILED: a stream differs" in capsys.readouterr().err


def test_both_files_are_of_one_loudness(example: Any) -> None:
    loud, quiet = torch.randn(1000), torch.randn(1000) / 50
    sounds = example.at_one_loudness(loud, quiet)
    levels = [sound.square().mean().sqrt() for sound in sounds]
    torch.testing.assert_close(*levels)
    assert max(sound.abs().max() for sound in sounds) == pytest.approx(1)


def test_ctrl_c_keeps_the_checkpoint_and_resuming_is_the_same_run(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speech, path = torch.randn(9000), tmp_path / "checkpoint.pt"
    whole = example.Training(3, 0)
    whole.run(speech, path)
    step = example.Training._step

    def interrupted(training: Any, speech: torch.Tensor) -> float:
        if training.done == 2:
            raise KeyboardInterrupt
        return step(training, speech)

    monkeypatch.setattr(example.Training, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        example.Training(3, 0).run(speech, path)
    monkeypatch.setattr(example.Training, "_step", step)
    resumed = example.Training(3, 0)
    resumed.load(path)
    assert resumed.done == 2
    resumed.run(speech, path)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    with pytest.raises(SystemExit, match="was trained with --steps 3"):
        example.Training(4, 0).load(path)


def test_too_little_gain_fails_where_one_is_promised(
    example: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example.judge(0.0, 3.9, promised=True) == 1
    assert "rose by 3.9 dB, promised 4" in capsys.readouterr().err
    assert example.judge(0.0, 3.9, promised=False) == example.judge(0.0, 4.1, promised=True) == 0
    assert "4.5 dB" in example.headline(5.0, 9.5)
    assert "too little" in example.headline(5.0, 2.3)
