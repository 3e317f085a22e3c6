"""Recognise handwritten digits that arrive one pixel at a time.

scikit-learn's 1797 digits of 8 x 8 pixels are read row by row, as sequences of 64 grey values. A stack of
state-space layers is trained on them, saved, and loaded again; then it classifies the digits it has never seen in
three ways: each sequence at once, in chunks with the state carried from one to the next, and pixel by pixel. The
three must agree.

Everything it makes goes to runs/sequential_digits_LAYER/: checkpoint.pt, training_curve.png, confusion_matrix.png.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from sequence_kernels import SequenceModel, SequenceModule, parameter_groups

EPOCHS = 20
BATCH = 64
LEARNING_RATE = 4e-3
DYNAMICS_LEARNING_RATE = 1e-3  # for the state-space parameters A, B and dt
CHUNK = 7
REPEATS = 3  # of each timing

QUICK_EPOCHS = 3
ACCURACY_GOALS = {QUICK_EPOCHS: 0.6, EPOCHS: 0.95}  # on the test digits, from so many epochs on
LARGEST_DIFFERENCE = 1e-4  # between the logits of the three ways, float32


class DigitReader(SequenceModule):
    """Grey values ``(batch, length, 1)`` to the logits of the ten digits after each, ``(batch, length, 10)``."""

    def __init__(self, layer: str, d_model: int = 64, n_layers: int = 3, dropout: float = 0.2) -> None:
        super().__init__()
        self.d_model, self.d_output = 1, 10
        self.encoder = nn.Linear(1, d_model)
        self.backbone = SequenceModel(
            d_model,
            n_layers,
            transposed=True,
            dropout=dropout,
            layer={"_name_": layer, "lr": DYNAMICS_LEARNING_RATE},
            residual="R",
            norm="layer",
        )
        self.decoder = nn.Linear(d_model, 10)

    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        y, state = self.backbone(self.encoder(x), state)
        return self.decoder(y), state

    def step(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        y, state = self.backbone.step(self.encoder(x), state)
        return self.decoder(y), state

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Any:
        return self.backbone.default_state(*batch_shape, device=device)


# --- data -------------------------------------------------------------------------------------------------------


class Digits(NamedTuple):
    """Sequences ``(count, 64, 1)`` of values in [-1, 1] and their labels ``(count,)``."""

    x: Tensor
    label: Tensor


def read_digits(device: str) -> tuple[Digits, Digits, Digits]:
    """Digits to train on (70 %), to watch the training with (10 %), and to test with once at the end (20 %)."""
    images, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    train, watch = train_test_split(rest, test_size=0.125, stratify=labels[rest], random_state=0)
    x = torch.tensor(images, dtype=torch.float32, device=device).unsqueeze(-1) / 8 - 1
    label = torch.tensor(labels, device=device)
    return Digits(x[train], label[train]), Digits(x[watch], label[watch]), Digits(x[test], label[test])


# --- training ---------------------------------------------------------------------------------------------------


class Training:
    """A model, its optimizer and what happened so far: all that a checkpoint holds."""

    def __init__(self, layer: str, seed: int, epochs: int, device: str) -> None:
        torch.manual_seed(seed)
        self.config: dict[str, Any] = {"layer": layer, "seed": seed}
        self.epochs = epochs
        self.history: list[dict[str, float]] = []
        self.model = DigitReader(layer).to(device)
        groups = parameter_groups(self.model, lr=LEARNING_RATE, weight_decay=0.01)
        self.optimizer = torch.optim.AdamW(groups)
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]

    def _set_learning_rates(self, epoch: int) -> None:
        """Half in the first epoch, then from the peak down to zero along a cosine."""
        factor = 0.5 if epoch == 0 else 0.5 + 0.5 * math.cos(math.pi * epoch / self.epochs)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = factor * peak

    def save(self, path: Path) -> None:
        """Write the checkpoint so that an interruption leaves either the old one or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new")
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({"config": self.config, "history": self.history, **parts}, unfinished)
        unfinished.replace(path)

    def load(self, path: Path, device: str) -> None:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        for name, value in checkpoint["config"].items():
            if value != self.config[name]:
                raise SystemExit(f"{path} was trained with --{name} {value}; say so to resume it")
        self.history = checkpoint["history"]
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])

    def run(self, train: Digits, watch: Digits, path: Path) -> None:
        """Train the epochs that are left, saving after each."""
        batches, done = math.ceil(len(train.label) / BATCH), len(self.history)
        with tqdm(total=self.epochs * batches, initial=done * batches, unit="batch", disable=None) as bar:
            for epoch in range(done, self.epochs):
                bar.set_description(f"epoch {epoch + 1}/{self.epochs}")
                torch.manual_seed(self.config["seed"] * 1000 + epoch)  # a resumed run draws the same numbers
                self._set_learning_rates(epoch)
                trained = self._train_epoch(train, bar)
                watched = evaluate(self.model, watch)
                self.history.append(
                    {
                        "train_loss": trained[0],
                        "train_accuracy": trained[1],
                        "validation_loss": watched[0],
                        "validation_accuracy": watched[1],
                    }
                )
                self.save(path)
                summary = f"loss {trained[0]:.3f}, validation accuracy {watched[1]:.1%}"
                bar.set_postfix_str(summary)
                if bar.disable:  # not a terminal
                    print(f"epoch {epoch + 1}/{self.epochs}: {summary}", flush=True)

    def _train_epoch(self, train: Digits, bar: tqdm) -> tuple[float, float]:
        """Mean loss and accuracy over one pass, dropout included."""
        self.model.train()
        loss_sum, right = 0.0, 0
        for rows in torch.randperm(len(train.label)).split(BATCH):
            x, label = train.x[rows], train.label[rows]
            logits = classify_whole(self.model, x)
            loss = F.cross_entropy(logits, label)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss_sum += loss.item() * len(rows)
            right += int((logits.argmax(-1) == label).sum())
            bar.update()
        return loss_sum / len(train.label), right / len(train.label)


@torch.no_grad()
def evaluate(model: DigitReader, digits: Digits) -> tuple[float, float]:
    """Mean loss and accuracy."""
    model.eval()
    logits = classify_whole(model, digits.x)
    return F.cross_entropy(logits, digits.label).item(), accuracy(logits, digits.label)


def accuracy(logits: Tensor, label: Tensor) -> float:
    return (logits.argmax(-1) == label).float().mean().item()


# --- three ways to read a digit ---------------------------------------------------------------------------------


def classify_whole(model: DigitReader, x: Tensor) -> Tensor:
    """The logits after the last pixel, from the whole sequence at once."""
    logits, _ = model(x)
    return logits[:, -1]


def classify_chunks(model: DigitReader, x: Tensor) -> Tensor:
    """The same from chunks of 7 pixels, carrying the state from one to the next."""
    state = model.default_state(len(x), device=x.device)
    for chunk in x.split(CHUNK, dim=1):
        logits, state = model(chunk, state)
    return logits[:, -1]


def classify_pixels(model: DigitReader, x: Tensor) -> Tensor:
    """The same from one pixel at a time, as they would arrive from a sensor."""
    state = model.default_state(len(x), device=x.device)
    for pixel in x.unbind(1):
        logits, state = model.step(pixel, state)
    return logits


WAYS: dict[str, Callable[[DigitReader, Tensor], Tensor]] = {
    "whole sequence": classify_whole,
    f"chunks of {CHUNK}": classify_chunks,
    "pixel by pixel": classify_pixels,
}


class Result(NamedTuple):
    logits: Tensor
    seconds: float


@torch.inference_mode()
def compare_ways(model: DigitReader, x: Tensor, repeats: int = REPEATS) -> dict[str, Result]:
    """The logits each way, and the median time over a few runs."""
    model.eval()
    results = {}
    for name, classify in WAYS.items():
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            logits = classify(model, x)
            logits.sum().item()  # waits for the device
            times.append(time.perf_counter() - start)
        results[name] = Result(logits, statistics.median(times))
    return results


def largest_difference(results: dict[str, Result]) -> dict[str, float]:
    """The largest difference of any logit from those of the whole sequence at once."""
    reference = results["whole sequence"].logits
    return {name: (result.logits - reference).abs().max().item() for name, result in results.items()}


def print_table(results: dict[str, Result], test: Digits, device: str) -> None:
    count = len(test.label)
    print(f"\n{'way':<16}{'test accuracy':>16}{'largest logit difference':>28}{'time a sequence':>18}")
    for name, difference in largest_difference(results).items():
        result = results[name]
        shown = "reference" if name == "whole sequence" else f"{difference:.1e}"
        milliseconds = 1e3 * result.seconds / count
        print(f"{name:<16}{accuracy(result.logits, test.label):>16.1%}{shown:>28}{milliseconds:>15.3f} ms")
    print(f"({count} test digits as one batch on {device}; median of {REPEATS} runs)\n")


# --- pictures ---------------------------------------------------------------------------------------------------


def draw_training_curve(history: list[dict[str, float]], title: str, path: Path) -> None:
    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained", facecolor="white")
    figure.suptitle(title)
    labels = {"train": "training digits (with dropout)", "validation": "validation digits"}
    epochs = range(1, len(history) + 1)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, colour in (("train", "tab:blue"), ("validation", "tab:orange")):
            values = [epoch[f"{part}_{quantity}"] for epoch in history]
            axes.plot(epochs, values, color=colour, marker="o", markersize=3, label=labels[part])
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set(ylabel="loss (cross-entropy)", ylim=(0, None))
    figure.axes[1].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    figure.savefig(path)


def draw_confusion_matrix(logits: Tensor, label: Tensor, title: str, path: Path) -> None:
    """Counts of each true digit and answer: what is right in blue, mistakes in orange."""
    counts = torch.zeros(10, 10)
    counts.index_put_((label.cpu(), logits.argmax(-1).cpu()), torch.ones(len(label)), accumulate=True)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    right = torch.eye(10, dtype=torch.bool)
    figure = Figure(figsize=(6, 6), dpi=150, layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.imshow(share.where(right, math.nan).numpy(), cmap="Blues", vmin=0, vmax=2)
    axes.imshow(share.where(~right & (counts > 0), math.nan).numpy(), cmap="Oranges", vmin=-0.1, vmax=0.4)
    for true, answer in counts.nonzero().tolist():
        axes.text(answer, true, f"{counts[true, answer]:.0f}", ha="center", va="center")
    axes.set(
        xticks=range(10), yticks=range(10), xlabel="answer of the model", ylabel="true digit", title=title
    )
    axes.set_xticks([edge - 0.5 for edge in range(11)], minor=True)
    axes.set_yticks([edge - 0.5 for edge in range(11)], minor=True)
    axes.grid(which="minor", color="lightgrey", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    figure.savefig(path)


# --- the whole run ----------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--layer", choices=("s4d", "s4"), default="s4d", help="the state-space layer (default: s4d)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.add_argument("--epochs", type=int, help=f"default: {EPOCHS}")
    parser.add_argument("--seed", type=int, default=0, help="of the initial values and the order of the data")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint of an earlier run")
    parser.add_argument(
        "--quick", action="store_true", help=f"only {QUICK_EPOCHS} epochs, to see that it all works"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads (default: 1, the tensors are small)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where to write (default: runs)")
    options = parser.parse_args(arguments)
    if options.epochs is None:
        options.epochs = QUICK_EPOCHS if options.quick else EPOCHS
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1; got {options.epochs}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the example; return the exit status: 1 when the ways disagree or the accuracy is below the goal."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    folder = options.runs / f"sequential_digits_{options.layer}"
    checkpoint = folder / "checkpoint.pt"
    train, watch, test = read_digits(options.device)

    training = Training(options.layer, options.seed, options.epochs, options.device)
    if options.resume:
        if not checkpoint.exists():
            raise SystemExit(f"there is no {checkpoint} to resume; run without --resume first")
        training.load(checkpoint, options.device)
        print(f"resuming {checkpoint} after epoch {len(training.history)}")
    else:
        training.save(checkpoint)
    size = sum(parameter.numel() for parameter in training.model.parameters())
    print(
        f"{options.layer}: {size} parameters, {len(train.label)} digits to train on, {options.epochs} epochs"
    )
    start = time.perf_counter()
    try:
        training.run(train, watch, checkpoint)
    except KeyboardInterrupt:
        print(
            f"\nstopped; {checkpoint} holds {len(training.history)} epochs: go on with --resume",
            file=sys.stderr,
        )
        return 130
    print(f"trained in {time.perf_counter() - start:.0f} s")

    fresh = Training(options.layer, options.seed, options.epochs, options.device)
    fresh.load(checkpoint, options.device)
    results = compare_ways(fresh.model, test.x)
    print_table(results, test, options.device)
    logits = results["whole sequence"].logits
    reached = accuracy(logits, test.label)
    name = f"{options.layer.upper()} reading digits one pixel at a time"
    draw_training_curve(fresh.history, f"{name}: training", folder / "training_curve.png")
    draw_confusion_matrix(
        logits,
        test.label,
        f"{name}:\n{reached:.1%} of {len(test.label)} test digits right",
        folder / "confusion_matrix.png",
    )
    print(f"wrote {folder}/checkpoint.pt, training_curve.png, confusion_matrix.png")

    goal = max((goal for epochs, goal in ACCURACY_GOALS.items() if options.epochs >= epochs), default=0.0)
    difference = max(largest_difference(results).values())
    if difference > LARGEST_DIFFERENCE or reached < goal:
        print(
            f"FAILED: test accuracy {reached:.1%} (goal {goal:.0%}), largest logit difference {difference:.1e} "
            f"(at most {LARGEST_DIFFERENCE:.0e})",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
