"""The example that trains a small language model: what it writes, prints and returns, and how it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from .loading import loaded

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example as a module, with small models, short sequences and no goal for the loss."""
    module = loaded("tiny_lm")
    small = {"WIDTH": 16, "DEPTH": 1, "BATCH": 2, "LENGTH": 32, "EVERY": 2, "WRITTEN": 12, "GOALS": {}}
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    text = module.Text

    class Short(text):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.watch = self.watch[:2000]

    monkeypatch.setattr(module, "Text", Short)
    return module


def run(example: Any, folder: Path, *arguments: str) -> int:
    threads = torch.get_num_threads()
    try:
        return example.main(["--runs", str(folder), *arguments])
    finally:
        torch.set_num_threads(threads)


def test_a_run_writes_its_results_and_both_ways_write_the_same(
    example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(example, tmp_path, "--steps", "3") == 0
    folder = tmp_path / "tiny_lm"
    made = {"loss.png", "written.txt", "mamba.pt", "s4d.pt", "gru.pt"}
    assert {path.name for path in folder.iterdir()} == made
    assert (folder / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "written.txt").read_text().startswith(example.PROMPT)
    printed = capsys.readouterr().out
    for said in ("steps in Python", "stepper", "characters a second"):
        assert said in printed


def test_the_models_have_as_many_parameters(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with torch.device("meta"):
        sizes = [example.size(example.make_model(layer, 103, 96)) for layer in ("mamba", "s4d", "gru")]
    assert all(size < 1.05 * min(sizes) for size in sizes)


def test_an_interrupted_run_that_is_resumed_equals_an_uninterrupted_one(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--steps", "4", "--layers", "mamba2")
    assert run(example, tmp_path / "whole", *options) == 0
    loss_of, calls = example.loss_of, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 5:  # two steps, a look at the validation text, a step
            raise KeyboardInterrupt
        return loss_of(*arguments)

    monkeypatch.setattr(example, "loss_of", interrupted)
    assert run(example, tmp_path / "split", *options) == 130
    assert "holds 2 steps: go on with --resume" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="--steps 4; say so"):
        run(example, tmp_path / "split", "--layers", "mamba2", "--steps", "9", "--resume")
    assert run(example, tmp_path / "split", *options, "--resume") == 0
    kept = [
        torch.load(tmp_path / part / "tiny_lm/mamba2.pt", weights_only=True) for part in ("whole", "split")
    ]
    for name, value in kept[0]["model"].items():
        assert torch.equal(kept[1]["model"][name], value)
    assert kept[0]["losses"] == kept[1]["losses"]


def test_a_missed_goal_fails_the_run(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "GOALS", {1: 0.0})
    assert run(example, tmp_path, "--steps", "1", "--layers", "mamba") == 1
