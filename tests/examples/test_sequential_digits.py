"""The example that ``make demo`` runs, on a few digits: what it writes, prints and returns, and how it resumes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from .loading import loaded

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("tqdm")


def load_example() -> Any:
    return loaded("sequential_digits")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example as a module, with few digits and without a goal for its accuracy."""
    module = load_example()
    read_digits = module.read_digits

    def read_few(device: str) -> tuple[Any, ...]:
        return tuple(module.Digits(part.x[:64], part.label[:64]) for part in read_digits(device))

    monkeypatch.setattr(module, "read_digits", read_few)
    monkeypatch.setattr(module, "ACCURACY_GOALS", {})
    return module


def run(example: ModuleType, folder: Path, *arguments: str) -> int:
    threads = torch.get_num_threads()
    try:
        return example.main(["--runs", str(folder), *arguments])
    finally:
        torch.set_num_threads(threads)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "sequential_digits_s4d" / "checkpoint.pt", weights_only=True)["model"]


def test_the_data_are_sequences_of_64_pixels_in_three_parts() -> None:
    parts = load_example().read_digits("cpu")
    assert [part.x.shape for part in parts] == [(1257, 64, 1), (180, 64, 1), (360, 64, 1)]
    assert all(part.x.min() == -1 and part.x.max() == 1 for part in parts)
    assert all(set(part.label.tolist()) == set(range(10)) for part in parts)


@pytest.mark.parametrize("layer", ["s4d", "s4"])
def test_a_run_writes_its_results_and_the_three_ways_agree(
    example: ModuleType, layer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(example, tmp_path, "--epochs", "1", "--layer", layer) == 0
    folder = tmp_path / f"sequential_digits_{layer}"
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint.pt",
        "training_curve.png",
        "confusion_matrix.png",
    }
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in folder.glob("*.png"))
    printed = capsys.readouterr().out
    for way in ("whole sequence", "chunks of 7", "pixel by pixel"):
        assert way in printed


def test_an_interrupted_run_that_is_resumed_equals_an_uninterrupted_one(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(example, tmp_path / "whole", "--epochs", "3", "--seed", "5") == 0

    evaluate = example.evaluate
    calls = []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(example, "evaluate", interrupted)
    assert run(example, tmp_path / "split", "--epochs", "3", "--seed", "5") == 130
    assert "holds 1 epochs" in capsys.readouterr().err
    after_one = weights(tmp_path / "split")
    assert run(example, tmp_path / "split", "--epochs", "3", "--seed", "5", "--resume") == 0

    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "split")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert any(not torch.equal(after_one[name], whole[name]) for name in whole)


def test_what_cannot_be_resumed_is_said(example: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="to resume"):
        run(example, tmp_path, "--resume")
    assert run(example, tmp_path, "--epochs", "1") == 0
    with pytest.raises(SystemExit, match="--seed 0"):
        run(example, tmp_path, "--resume", "--seed", "1")


@pytest.mark.parametrize(("name", "value"), [("ACCURACY_GOALS", {1: 1.1}), ("LARGEST_DIFFERENCE", -1.0)])
def test_a_missed_goal_fails_the_run(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    monkeypatch.setattr(example, name, value)
    assert run(example, tmp_path, "--epochs", "1") == 1
