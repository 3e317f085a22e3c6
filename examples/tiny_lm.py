"""Train a small Mamba language model on Python's own manual, and let it write.

The text is that of `help()`: `pydoc_data.topics`, 465,000 characters that come with every Python (Debian's
libpython3-stdlib). Models of characters are trained on its first nine tenths: a Mamba and, with as many parameters, a
stack of S4D layers and one of GRUs. Their loss on the last tenth is drawn. Then the Mamba goes on from a prompt, by its
steps in Python and by a stepper; both write the same.

Everything it makes goes to runs/tiny_lm/: LAYER.pt for each model, loss.png, written.txt.
"""

from __future__ import annotations

import argparse
import sys
import time
from bisect import bisect_left
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from sequence_kernels import MambaLM, SequenceModel, parameter_groups

STEPS, QUICK_STEPS = 300, 30
EVERY = 25  # steps between two looks at the validation text, each kept in the checkpoint
BATCH, LENGTH = 16, 128
LEARNING_RATE = 4e-3
WIDTH, DEPTH = 96, 3
LAYERS = ("mamba", "s4d", "gru")
PROMPT = 'The "with" statement is used to '
WRITTEN = 400
GOALS = {QUICK_STEPS: 2.6, STEPS: 1.45}  # nats a character of the first model, from so many steps on


class SequenceLM(nn.Module):
    """Character embedding, a stack of layers, and the embedding again as the map to scores."""

    def __init__(self, vocab_size: int, d_model: int, n_layers: int, layer: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.backbone = SequenceModel(d_model, n_layers, layer=layer, residual="R", norm="layer")

    def forward(self, tokens: Tensor) -> tuple[Tensor, Any]:
        y, state = self.backbone(self.embedding(tokens))
        return F.linear(y, self.embedding.weight), state


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def make_model(layer: str, vocab_size: int, width: int = WIDTH) -> MambaLM | SequenceLM:
    """A model of about as many parameters as the Mamba of that width."""
    if layer == "mamba":
        return MambaLM(vocab_size, width, DEPTH)
    if layer == "mamba2":
        return MambaLM(vocab_size, width, DEPTH, layer, d_state=64, headdim=width // 2)
    with torch.device("meta"):
        wanted = size(MambaLM(vocab_size, width, DEPTH))
        nearest = bisect_left(
            range(3 * width),
            wanted,
            lo=width // 2,
            key=lambda w: size(SequenceLM(vocab_size, w, DEPTH, layer)),
        )
    return SequenceLM(vocab_size, nearest, DEPTH, layer)


# --- text -------------------------------------------------------------------------------------------------------


class Text:
    """The manual as numbers of characters: nine tenths to train on, the last to watch the training with."""

    def __init__(self) -> None:
        whole = "\n\n".join(topics[name] for name in sorted(topics))
        self.characters = sorted(set(whole))
        self.numbers = {character: i for i, character in enumerate(self.characters)}
        tokens = self.encode(whole)
        self.train, self.watch = tokens[: len(tokens) * 9 // 10], tokens[len(tokens) * 9 // 10 :]

    def encode(self, text: str) -> Tensor:
        return torch.tensor([self.numbers[character] for character in text])

    def decode(self, tokens: Tensor) -> str:
        return "".join(self.characters[i] if i < len(self.characters) else "?" for i in tokens.tolist())

    def batch(self, draw: torch.Generator) -> Tensor:
        starts = torch.randint(len(self.train) - LENGTH - 1, (BATCH,), generator=draw)
        return torch.stack([self.train[start : start + LENGTH + 1] for start in starts.tolist()])


def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
    """Nats a character."""
    scores, _ = model(rows[:, :-1])
    return F.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten())


# --- training ---------------------------------------------------------------------------------------------------


class Training:
    """A model, its optimizer and what happened so far: all that a checkpoint holds."""

    def __init__(self, layer: str, text: Text, steps: int, seed: int, path: Path) -> None:
        torch.manual_seed(seed)
        self.layer, self.text, self.steps, self.seed, self.path = layer, text, steps, seed, path
        self.model = make_model(layer, len(text.characters))
        groups = parameter_groups(self.model, lr=LEARNING_RATE, weight_decay=0.01)
        self.optimizer = torch.optim.AdamW(groups)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.losses: list[tuple[int, float]] = []  # steps done, and the loss on the validation text then

    @property
    def done(self) -> int:
        return self.losses[-1][0] if self.losses else 0

    def save(self) -> None:
        """Write the checkpoint so that an interruption leaves either the old one or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".new")
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({"losses": self.losses, "seed": self.seed, "steps": self.steps, **parts}, unfinished)
        unfinished.replace(self.path)

    def load(self) -> None:
        kept = torch.load(self.path, weights_only=True)
        for name in ("seed", "steps"):  # the learning rates follow from the steps
            if kept[name] != getattr(self, name):
                raise SystemExit(f"{self.path} was trained with --{name} {kept[name]}; say so to resume it")
        self.losses = [(step, loss) for step, loss in kept["losses"]]
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])

    def run(self) -> None:
        """Train the steps that are left."""
        with tqdm(total=self.steps, initial=self.done, desc=self.layer, unit="step", disable=None) as bar:
            for step in range(self.done, self.steps):
                self._train(step)
                bar.update()
                if (step + 1) % EVERY == 0 or step + 1 == self.steps:
                    self.losses.append((step + 1, self.watched()))
                    self.save()
                    bar.set_postfix_str(f"validation loss {self.losses[-1][1]:.3f}")
                    if bar.disable:  # not a terminal
                        print(f"{self.layer} {step + 1}/{self.steps}: {self.losses[-1][1]:.3f}", flush=True)

    def _train(self, step: int) -> None:
        warm = min(1.0, (step + 1) / 20)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * warm * (1 - 0.9 * step / self.steps)
        self.model.train()
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + step)  # a resumed run draws the same
        loss = loss_of(self.model, self.text.batch(draw))
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    @torch.no_grad()
    def watched(self) -> float:
        self.model.eval()
        rows = self.text.watch.unfold(0, LENGTH + 1, 2 * LENGTH)
        return loss_of(self.model, rows).item()


# --- writing ----------------------------------------------------------------------------------------------------


def write(model: MambaLM, prompt: Tensor, count: int, draw: torch.Generator, stepper: bool) -> Tensor:
    """The prompt's continuation, a character at a time, from its 20 likeliest followers each."""
    scores, state = model(prompt.unsqueeze(0), model.default_state(1))
    scores, runner = scores[:, -1], model.stepper((1,)) if stepper else None
    if runner is not None:
        runner.state = state
    found = []
    for _ in range(count):
        likely, tokens = (scores[0] / 0.7).topk(20)
        found.append(tokens[torch.multinomial(likely.softmax(-1), 1, generator=draw)])
        if runner is None:
            scores, state = model.step(found[-1], state)
        else:
            scores = runner.step(found[-1])
    return torch.cat(found)


@torch.inference_mode()
def compare_ways(model: MambaLM, text: Text, count: int) -> dict[str, tuple[Tensor, float]]:
    """What each way writes from the same random numbers, and how many characters a second."""
    model.eval()
    prompt, found = text.encode(PROMPT), {}
    for name, stepper in (("steps in Python", False), ("stepper", True)):
        write(model, prompt, 3, torch.Generator().manual_seed(0), stepper)  # what is made once
        start = time.perf_counter()
        written = write(model, prompt, count, torch.Generator().manual_seed(0), stepper)
        found[name] = written, count / (time.perf_counter() - start)
    return found


def draw_losses(trainings: list[Training], path: Path) -> None:
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained", facecolor="white")
    axes = figure.subplots()
    for training in trainings:
        steps, losses = zip(*training.losses, strict=True)
        label = f"{training.layer}, {size(training.model):,} parameters"
        axes.plot(steps, losses, marker="o", markersize=3, label=label)
    axes.set(xlabel=f"steps of {BATCH * LENGTH:,} characters", ylabel="validation loss (nats a character)")
    axes.set_title("Characters of Python's manual")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


# --- the whole run ----------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", nargs="+", default=LAYERS, help=f"default: {' '.join(LAYERS)}")
    parser.add_argument("--steps", type=int, help=f"default: {STEPS}")
    parser.add_argument("--seed", type=int, default=0, help="of the initial values and the order of the text")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints of an earlier run")
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK_STEPS} steps")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads (default: 1, the tensors are small)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where to write (default: runs)")
    options = parser.parse_args(arguments)
    if options.layers[0] not in ("mamba", "mamba2"):
        parser.error(f"--layers must begin with mamba or mamba2, which writes; got {options.layers[0]}")
    if options.steps is None:
        options.steps = QUICK_STEPS if options.quick else STEPS
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the example; return the exit status: 1 when the ways disagree or the loss is above the goal."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    folder, text = options.runs / "tiny_lm", Text()
    trainings = []
    for layer in options.layers:
        training = Training(layer, text, options.steps, options.seed, folder / f"{layer}.pt")
        trainings.append(training)
        if options.resume and training.path.exists():
            training.load()
        print(f"{layer}: {size(training.model):,} parameters, {training.done} of {options.steps} steps done")
        start, before = time.perf_counter(), training.done
        try:
            training.run()
        except KeyboardInterrupt:
            kept = f"{training.path} holds {training.done} steps" if training.done else "nothing was kept yet"
            print(f"\nstopped; {kept}: go on with --resume", file=sys.stderr)
            return 130
        if training.done > before:
            seconds = time.perf_counter() - start
            speed = (training.done - before) * BATCH * LENGTH / seconds
            print(f"trained in {seconds:.0f} s, {speed:,.0f} characters a second")
    draw_losses(trainings, folder / "loss.png")

    ways = compare_ways(trainings[0].model, text, WRITTEN)
    for name, (_, speed) in ways.items():
        print(f"{name:<16}{speed:>10,.0f} characters a second")
    written = PROMPT + text.decode(ways["stepper"][0])
    (folder / "written.txt").write_text(written + "\n")
    print(
        f"\n{written}\n\nwrote {folder}: loss.png, written.txt, " + ", ".join(t.path.name for t in trainings)
    )

    goal = min((goal for steps, goal in GOALS.items() if options.steps >= steps), default=float("inf"))
    reached = trainings[0].losses[-1][1]
    same = torch.equal(*(tokens for tokens, _ in ways.values()))
    if reached > goal or not same:
        said = "the same" if same else "something else"
        print(f"FAILED: loss {reached:.2f} (goal {goal}), the stepper wrote {said}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
