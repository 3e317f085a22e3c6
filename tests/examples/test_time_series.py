"""The time-series example, on made-up utterances: what it prints, writes and returns; how it reads; how it resumes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from .loading import loaded

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The example as a module, with a package that holds a few utterances in aeon's place."""
    module = loaded("time_series")
    folder = tmp_path / "aeon" / "datasets" / "data" / "JapaneseVowels"
    folder.mkdir(parents=True)
    (tmp_path / "aeon" / "__init__.py").write_text("raise ImportError('it is read, not imported')")
    for part in ("TRAIN", "TEST"):
        lines = [
            ":".join([",".join(f"{speaker + t / 10:.1f}" for t in range(7 + speaker))] * 12 + [str(speaker)])
            for speaker in range(1, 10)
        ]
        (folder / f"JapaneseVowels_{part}.ts").write_text("#a comment\n@data\n" + "\n".join(lines) + "\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return module


def run(example: Any, folder: Path, *arguments: str) -> int:
    threads = torch.get_num_threads()
    try:
        return example.main(["--epochs", "2", "--runs", str(folder), *arguments])
    finally:
        torch.set_num_threads(threads)


def test_it_reads_channels_lengths_and_speakers(example: Any) -> None:
    data = example.read("TRAIN")
    assert data.x.shape == (9, 16, 12)
    assert data.lengths.tolist() == list(range(8, 17))
    assert data.speaker.tolist() == list(range(9))
    assert data.x[0, 3, 5] == pytest.approx(1.3)
    assert not data.x[0, 8:].any()


def test_a_run_writes_its_results_and_resumes(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    epoch = example.Training._epoch

    def interrupted(training: Any, data: Any) -> float:
        if len(training.history) == 1:
            raise KeyboardInterrupt
        return epoch(training, data)

    assert run(example, tmp_path / "whole") == 0
    monkeypatch.setattr(example.Training, "_epoch", interrupted)
    assert run(example, tmp_path / "cut") == 130
    assert "holds 1 epochs: go on with --resume" in capsys.readouterr().err
    monkeypatch.setattr(example.Training, "_epoch", epoch)
    assert run(example, tmp_path / "cut", "--resume") == 0
    whole, cut = (torch.load(tmp_path / name / "time_series" / "checkpoint.pt") for name in ("whole", "cut"))
    assert whole["history"] == cut["history"]
    assert (tmp_path / "cut" / "time_series" / "time_series.png").exists()
    assert "hidden Markov model (1999)" in capsys.readouterr().out


def test_padding_that_counts_fails_the_run(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(example, "both_ways", lambda model, data: (torch.ones(9, 9), torch.zeros(9, 9)))
    assert run(example, tmp_path) == 1
    assert "FAILED: padding changes a logit" in capsys.readouterr().err
