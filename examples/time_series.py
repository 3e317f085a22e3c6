"""Tell nine speakers apart by two vowels: real sequences of unequal length, in padded batches.

JapaneseVowels (Kudo, Toyama and Shimbo, 1999) has 640 utterances of /ae/ by nine men, 7 to 29 frames of 12 cepstrum
coefficients. aeon's wheel brings it: `pip install --no-deps -r examples/requirements.txt`. A stack of S4D layers
is trained on the 270 utterances that are for that, in batches padded to the longest, of which `lengths` says what is
real; then it classifies the other 370, in one padded batch and each alone. The two must agree.

Everything it makes goes to runs/time_series/: checkpoint.pt, from which --resume goes on after Ctrl-C, and
time_series.png.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from sequence_kernels import SequenceDecoder, SequenceModel, parameter_groups

EPOCHS, QUICK_EPOCHS = 60, 2
BATCH = 30
LEARNING_RATE = 4e-3
LARGEST_DIFFERENCE = 1e-4  # of a logit, between a padded batch and each sequence alone

#: What the paper reached on the same 370 utterances. Newer methods reach 98 to 99 %.
PUBLISHED = {"passing-through regions (1999)": 0.941, "hidden Markov model (1999)": 0.962}


class Utterances(NamedTuple):
    """Padded sequences ``(count, longest, 12)``, their lengths ``(count,)`` and speakers ``(count,)`` in 0 .. 8."""

    x: Tensor
    lengths: Tensor
    speaker: Tensor

    def rows(self, index: Tensor) -> Utterances:
        return Utterances(self.x[index], self.lengths[index], self.speaker[index])


def read(part: str) -> Utterances:
    """The TRAIN or TEST part, out of the files in aeon's package."""
    found = importlib.util.find_spec("aeon")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the data are in aeon's wheel: pip install --no-deps -r examples/requirements.txt")
    folder = Path(found.submodule_search_locations[0], "datasets", "data", "JapaneseVowels")
    lines = (folder / f"JapaneseVowels_{part}.ts").read_text().partition("@data")[2].split()
    sequences, speakers = [], []
    for line in lines:  # channel:channel:...:speaker, each channel with commas
        *channels, speaker = line.split(":")
        sequences.append(torch.tensor([[float(value) for value in each.split(",")] for each in channels]).T)
        speakers.append(int(speaker) - 1)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return Utterances(nn.utils.rnn.pad_sequence(sequences, batch_first=True), lengths, torch.tensor(speakers))


class Classifier(nn.Module):
    """Sequences ``(batch, length, 12)``, of which ``lengths`` are real, to logits ``(batch, 9)``."""

    def __init__(self, layer: str, d_model: int = 64, n_layers: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Linear(12, d_model)
        self.backbone = SequenceModel(
            d_model, n_layers, layer=layer, residual="R", norm="layer", dropout=0.2, transposed=False
        )
        self.decoder = SequenceDecoder(d_model, 9, l_output=0, mode="pool")

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y, _ = self.backbone(self.encoder(x), lengths=lengths)
        logits, _ = self.decoder(y, lengths=lengths)
        return logits


class Training:
    """A model, its optimizer and what happened so far: all that a checkpoint holds."""

    def __init__(self, layer: str, seed: int, epochs: int) -> None:
        torch.manual_seed(seed)
        self.config: dict[str, Any] = {"layer": layer, "seed": seed, "epochs": epochs}
        self.history: list[float] = []
        self.model = Classifier(layer)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, lr=LEARNING_RATE, weight_decay=0.05))
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    def save(self, path: Path) -> None:
        """Write the checkpoint so that an interruption leaves either the old one or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({"config": self.config, "history": self.history, **parts}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        checkpoint = torch.load(path, weights_only=True)
        if checkpoint["config"] != self.config:
            raise SystemExit(f"{path} was trained with {checkpoint['config']}; say so to resume it")
        self.history = checkpoint["history"]
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])

    def run(self, data: Utterances, path: Path) -> None:
        """Train the epochs that are left, saving after each."""
        epochs, seed = self.config["epochs"], self.config["seed"]
        with tqdm(total=epochs, initial=len(self.history), unit="epoch", disable=None) as bar:
            for epoch in range(len(self.history), epochs):
                torch.manual_seed(seed * 1000 + epoch)  # a resumed run draws the same numbers
                for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                    group["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * epoch / epochs))
                self.history.append(self._epoch(data))
                self.save(path)
                bar.update()
                bar.set_postfix_str(f"loss {self.history[-1]:.3f}")

    def _epoch(self, data: Utterances) -> float:
        self.model.train()
        total = 0.0
        for index in torch.randperm(len(data.speaker)).split(BATCH):
            x, lengths, speaker = data.rows(index)
            loss = F.cross_entropy(self.model(x, lengths), speaker, label_smoothing=0.1)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(index)
        return total / len(data.speaker)


@torch.inference_mode()
def both_ways(model: Classifier, data: Utterances) -> tuple[Tensor, Tensor]:
    """The logits of one padded batch, and of each sequence alone without padding."""
    model.eval()
    each = [model(data.x[i : i + 1, :n], data.lengths[i : i + 1]) for i, n in enumerate(data.lengths)]
    return model(data.x, data.lengths), torch.cat(each)


def draw(reached: float, layer: str, path: Path) -> None:
    """Our accuracy beside the published ones."""
    rows = {**PUBLISHED, f"{layer.upper()}, this run": reached}
    figure = Figure(figsize=(8, 2.6), dpi=150, layout="constrained", facecolor="white")
    axes = figure.subplots()
    names = sorted(rows, key=rows.__getitem__)
    axes.plot([rows[name] for name in names], names, "o", color="grey")
    axes.plot([reached], [f"{layer.upper()}, this run"], "o", color="tab:blue", markersize=10)
    for name in names:
        axes.annotate(f"{rows[name]:.1%}", (rows[name], name), (10, -3), textcoords="offset points")
    low = min(rows.values())
    axes.set(xlim=(low - 0.01, 1.015), xlabel="share of 370 unheard utterances given to the right speaker")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"Nine speakers told apart in {reached:.1%} of cases; the paper of 1999: {max(PUBLISHED.values()):.1%}",
        weight="bold",
    )
    figure.savefig(path)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layer", default="s4d", help="s4d (default), s4, s5, lru, gru, mamba, ...")
    parser.add_argument("--epochs", type=int, help=f"default: {EPOCHS}")
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK_EPOCHS} epochs")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint of an earlier run")
    parser.add_argument("--seed", type=int, default=0, help="of the initial values and the order of the data")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where to write (default: runs)")
    options = parser.parse_args(arguments)
    if options.epochs is None:
        options.epochs = QUICK_EPOCHS if options.quick else EPOCHS
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1; got {options.epochs}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the example; return the exit status: 1 when padding changes a result."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    train, test = read("TRAIN"), read("TEST")
    folder = options.runs / "time_series"
    checkpoint = folder / "checkpoint.pt"
    training = Training(options.layer, options.seed, options.epochs)
    if options.resume:
        if not checkpoint.exists():
            raise SystemExit(f"there is no {checkpoint} to resume; run without --resume first")
        training.load(checkpoint)
    print(
        f"{len(train.speaker)} utterances to train on, {len(test.speaker)} to test, {options.epochs} epochs"
    )
    try:
        training.run(train, checkpoint)
    except KeyboardInterrupt:
        done = len(training.history)
        print(f"\nstopped; {checkpoint} holds {done} epochs: go on with --resume", file=sys.stderr)
        return 130

    padded, alone = both_ways(training.model, test)
    difference = (padded - alone).abs().max().item()
    reached = (padded.argmax(-1) == test.speaker).float().mean().item()
    for name, accuracy in {**PUBLISHED, f"{options.layer}, this run": reached}.items():
        print(f"{name:<36}{accuracy:.1%}")
    print(f"largest difference of a logit between a padded batch and each alone: {difference:.1e}")
    draw(reached, options.layer, folder / "time_series.png")
    print(f"wrote {folder}/checkpoint.pt, time_series.png")
    if not difference <= LARGEST_DIFFERENCE:
        print(f"FAILED: padding changes a logit by {difference:.1e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
