"""Spot ten words in noise, 10 ms at a time: S4D, S4, Mamba and a GRU side by side, with equally many parameters.

espeak-ng says the words in many voices, accents and speeds; white noise, pink noise or a babble of other words lies
over them. Each model reads 24 logarithmic mel bands of every 10 ms and, by the mean of what it said so far, knows after
0.7 s which word it was. All are trained on the same batches. Then voices that were in none of them are spotted: all
windows at once, and some of them as a microphone would bring them, a step of the stepper for each block. The two must
agree.

Everything it makes goes to runs/keyword_spotting/: a checkpoint a model, from which --resume goes on after Ctrl-C, and
keyword_spotting.png.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from espeak import Utterance, speak
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from sequence_kernels import SequenceModel, SequenceModule, Stepper, parameter_groups

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
ACCENTS, SPEEDS, PITCHES = ("en", "en-us"), (140, 175, 210), (35, 60)
HEARD = ("m1", "m3", "m5", "m7", "f1", "f2", "f4", "klatt", "klatt3", "adam", "steph", "croak")
UNHEARD = ("m2", "m4", "f3", "f5", "klatt2", "max")
NOISES = ("white", "pink", "babble")
NOISE_DB = 10  # speech over noise where it is tested; in training 0 to 20

RATE, BLOCK, WINDOW = 22050, 220, 512  # samples: a second, between two frames (10 ms), under one frame
FRAMES, BANDS = 72, 24
SAMPLES = WINDOW + (FRAMES - 1) * BLOCK

LAYERS = ("s4d", "s4", "mamba", "gru")
PARAMETERS = 40_000  # of each model, as nearly as a whole width comes to it
STEPS, QUICK_STEPS, BATCH = 400, 3, 48
LEARNING_RATE = 8e-3
SAVED_EVERY = 25  # steps
STREAMED = 20  # windows
GOAL = 0.85  # of each model after a whole training, where guessing gives 0.1
LARGEST_DIFFERENCE = 1e-3  # of a logit, between the stream and all frames at once


# --- words in noise ---------------------------------------------------------------------------------------------


class Words(NamedTuple):
    """Words without noise ``(count, SAMPLES)``, each at the start of its window, their lengths and which they are."""

    samples: Tensor
    lengths: Tensor
    word: Tensor


def say(variants: tuple[str, ...], words: tuple[str, ...] = WORDS) -> Words:
    """Every word in every voice, accent, speed and pitch."""
    said = [
        Utterance(word, f"{accent}+{variant}", speed, pitch)
        for word, variant, accent, speed, pitch in product(words, variants, ACCENTS, SPEEDS, PITCHES)
    ]
    sounds = [sound.samples[:SAMPLES] for sound in speak(said)]
    lengths = torch.tensor([len(sound) for sound in sounds])
    padded = torch.stack([F.pad(sound, (0, SAMPLES - len(sound))) for sound in sounds])
    return Words(padded, lengths, torch.arange(len(words)).repeat_interleave(len(sounds) // len(words)))


def placed(words: Words, rows: Tensor) -> Tensor:
    """Those words, each somewhere in its window ``(count, SAMPLES)``."""
    lengths = words.lengths[rows]
    starts = (torch.rand(len(rows)) * (SAMPLES - lengths + 1)).long()
    windows = torch.zeros(len(rows), SAMPLES)
    for window, row, start, length in zip(windows, rows, starts.tolist(), lengths.tolist(), strict=True):
        window[start : start + length] = words.samples[row, :length]
    return windows


def noise(kind: str, count: int, words: Words) -> Tensor:
    """Noise ``(count, SAMPLES)`` of mean square 1."""
    if kind == "babble":
        others = torch.randint(len(words.word), (6, count))
        sound = torch.stack([placed(words, rows) for rows in others]).sum(0)
    else:
        sound = torch.randn(count, SAMPLES)
        if kind == "pink":  # its power falls as 1 / frequency
            spectrum = torch.fft.rfft(sound)
            sound = torch.fft.irfft(spectrum / torch.arange(1, spectrum.shape[1] + 1).sqrt(), SAMPLES)
    return sound / sound.square().mean(1, keepdim=True).sqrt()


def mixed(speech: Tensor, noise: Tensor, decibels: Tensor) -> Tensor:
    """Windows of speech with noise that many decibels under it, of one loudness."""
    speech = speech / speech.square().mean(1, keepdim=True).sqrt()
    sound = speech + noise * 10 ** (-decibels[:, None] / 20)
    return 0.1 * sound / sound.square().mean(1, keepdim=True).sqrt()


def training_batch(words: Words) -> tuple[Tensor, Tensor]:
    """Windows ``(BATCH, SAMPLES)`` with noise of every kind, and which words are in them."""
    rows = torch.randint(len(words.word), (BATCH,))
    sound = torch.cat(
        [noise(kind, len(some), words) for kind, some in zip(NOISES, rows.chunk(3), strict=True)]
    )
    return mixed(placed(words, rows), sound, 20 * torch.rand(BATCH)), words.word[rows]


def test_windows(words: Words, seed: int) -> dict[str, Tensor]:
    """All words, once in each kind of noise."""
    torch.manual_seed(seed + 1)
    rows = torch.arange(len(words.word))
    level = torch.full((len(rows),), float(NOISE_DB))
    return {kind: mixed(placed(words, rows), noise(kind, len(rows), words), level) for kind in NOISES}


def mel_filters() -> Tensor:
    """Triangles at equal steps of the mel scale, ``(WINDOW // 2 + 1, BANDS)``."""
    top = 2595 * math.log10(1 + 8000 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, BANDS + 2) / 2595) - 1)
    frequency = torch.linspace(0, RATE / 2, WINDOW // 2 + 1)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


FILTERS, TAPER = mel_filters(), torch.hann_window(WINDOW)


def features(samples: Tensor) -> Tensor:
    """Samples ``(..., WINDOW + n BLOCK)`` to logarithmic mel bands ``(..., n + 1, BANDS)``, of the past alone."""
    spectrum = torch.fft.rfft(samples.unfold(-1, WINDOW, BLOCK) * TAPER)
    power = spectrum.real.square() + spectrum.imag.square()
    return ((power @ FILTERS + 1e-4).log() + 2) / 3


# --- models -----------------------------------------------------------------------------------------------------


class Spotter(SequenceModule):
    """Mel bands ``(..., length, BANDS)`` to the logits of the words after each frame ``(..., length, 10)``."""

    def __init__(self, layer: str, d_model: int, n_layers: int = 2) -> None:
        super().__init__()
        self.d_model, self.d_output = BANDS, len(WORDS)
        self.encoder = nn.Linear(BANDS, d_model)
        self.backbone = SequenceModel(d_model, n_layers, layer=layer, residual="R", norm="layer")
        self.decoder = nn.Linear(d_model, len(WORDS))

    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        y, state = self.backbone(self.encoder(x), state, **kwargs)
        return self.decoder(y), state

    def step(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        y, state = self.backbone.step(self.encoder(x), state, **kwargs)
        return self.decoder(y), state

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Any:
        return self.backbone.default_state(*batch_shape, device=device)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def width(layer: str) -> int:
    """The even ``d_model`` that brings a model of that layer nearest to PARAMETERS."""
    least, most = 4, 256
    while most - least > 2:
        middle = (least + most) // 4 * 2
        least, most = (middle, most) if size(Spotter(layer, middle)) < PARAMETERS else (least, middle)
    return min((least, most), key=lambda d_model: abs(size(Spotter(layer, d_model)) - PARAMETERS))


class Training:
    """A model, its optimizer and how far it has come: all that a checkpoint holds."""

    def __init__(self, layer: str, steps: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.config: dict[str, Any] = {"layer": layer, "steps": steps, "seed": seed}
        self.done = 0
        self.model = Spotter(layer, width(layer))
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, lr=LEARNING_RATE, weight_decay=0.01))
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, [group["lr"] for group in self.optimizer.param_groups], total_steps=steps
        )

    def save(self, path: Path) -> None:
        """Write the checkpoint so that an interruption leaves either the old one or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "schedule")}
        torch.save({"config": self.config, "done": self.done, **parts}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        checkpoint = torch.load(path, weights_only=True)
        if checkpoint["config"] != self.config:
            raise SystemExit(f"{path} was trained with {checkpoint['config']}; say so to resume it")
        self.done = checkpoint["done"]
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(checkpoint[name])

    def run(self, words: Words, path: Path) -> None:
        """Take the steps that are left; what is done is kept, come what may."""
        name, steps, seed = self.config["layer"], self.config["steps"], self.config["seed"]
        try:
            with tqdm(total=steps, initial=self.done, desc=name, unit="step", disable=None) as bar:
                while self.done < steps:
                    torch.manual_seed(seed * 100_000 + self.done)  # the same batches for every model
                    loss = self._step(*training_batch(words))
                    self.done += 1
                    bar.update()
                    bar.set_postfix_str(f"loss {loss:.3f}")
                    if self.done % SAVED_EVERY == 0:
                        self.save(path)
                        if bar.disable:  # not a terminal
                            print(f"{name}: step {self.done}/{steps}, loss {loss:.3f}", flush=True)
        finally:
            self.save(path)

    def _step(self, samples: Tensor, word: Tensor) -> float:
        logits, _ = self.model(features(samples))
        loss = F.cross_entropy(logits.mean(1), word)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()


# --- what they reach --------------------------------------------------------------------------------------------


class Result(NamedTuple):
    parameters: int
    accuracy: dict[str, float]  # in each kind of noise
    real_time_factor: float  # of the model; the mel bands take as long for each
    state_bytes: int  # of one stream
    difference: float  # of a logit, between the stream and all frames at once

    @property
    def mean(self) -> float:
        return sum(self.accuracy.values()) / len(self.accuracy)


def blocks(samples: Tensor) -> Iterator[Tensor]:
    """The frames ``(BANDS,)`` of a sound as it comes in, block by block."""
    for end in range(WINDOW, len(samples) + 1, BLOCK):
        yield features(samples[end - WINDOW : end])[0]


def stream(stepper: Stepper, frames: list[Tensor]) -> tuple[Tensor, float]:
    """The mean of the logits so far, after the last frame, and the seconds that the steps took."""
    stepper.reset()
    total = torch.zeros(len(WORDS))
    start = time.perf_counter()
    for frame in frames:
        total += stepper.step(frame)
    return total / len(frames), time.perf_counter() - start


def state_bytes(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    return sum(map(state_bytes, state.values() if isinstance(state, dict) else state or ()))


@torch.inference_mode()
def judge(model: Spotter, windows: dict[str, Tensor], words: Words) -> Result:
    """Spot all windows at once, and some as they come."""
    model.eval()
    logits = {kind: model(features(samples))[0].mean(1) for kind, samples in windows.items()}
    right = {kind: (found.argmax(-1) == words.word).float().mean().item() for kind, found in logits.items()}
    stepper = model.stepper()
    difference = seconds = 0.0
    for row in torch.linspace(0, len(words.word) - 1, STREAMED).long():
        streamed, took = stream(stepper, list(blocks(windows["babble"][row])))
        difference = max(difference, (streamed - logits["babble"][row]).abs().max().item())
        seconds += took
    factor = seconds / (STREAMED * FRAMES * BLOCK / RATE)
    return Result(size(model), right, factor, state_bytes(stepper.state), difference)


def feature_time_factor(samples: Tensor) -> float:
    start = time.perf_counter()
    for _ in blocks(samples):
        pass
    return (time.perf_counter() - start) / (FRAMES * BLOCK / RATE)


def show(results: dict[str, Result], front: float) -> None:
    heads = (*(f"{kind} noise" for kind in NOISES[:2]), "babble", "all")
    print(f"\n{'':<8}{'parameters':>12}" + "".join(f"{head:>14}" for head in heads), end="")
    print(f"{'real-time factor':>18}{'state bytes':>13}{'difference':>12}")
    for layer, result in results.items():
        shares = (*result.accuracy.values(), result.mean)
        print(f"{layer:<8}{result.parameters:>12}" + "".join(f"{share:>14.1%}" for share in shares), end="")
        print(f"{result.real_time_factor:>18.5f}{result.state_bytes:>13}{result.difference:>12.0e}")
    print(
        f"(voices never heard, {NOISE_DB} dB over the noise; the mel bands take {front:.5f} of real time)\n"
    )


def titled(layer: str) -> str:
    return layer.capitalize() if layer.startswith("mamba") else layer.upper()


def draw(results: dict[str, Result], path: Path) -> None:
    """Accuracy, real-time factor and state, a row a model."""
    rows = dict(reversed(results.items()))  # a plot begins at the bottom
    names = [titled(layer) for layer in rows]
    panels = (
        ("% of words spotted\n(more is better)", [100 * row.mean for row in rows.values()]),
        (
            "% of real time, one core\n(less is better)",
            [100 * row.real_time_factor for row in rows.values()],
        ),
        ("kB of state a stream\n(less is better)", [row.state_bytes / 1000 for row in rows.values()]),
    )
    figure = Figure(figsize=(10, 3.4), dpi=150, layout="constrained", facecolor="white")
    for axes, (label, values) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        axes.plot(values, names, "o", color="tab:blue", markersize=9)
        for value, name in zip(values, names, strict=True):
            axes.annotate(f"{value:.3g}", (value, name), (0, 9), textcoords="offset points", ha="center")
        axes.margins(y=0.25)
        axes.set(xlabel=label, xlim=(0, 105))
        if label.startswith("% of words"):
            axes.axvline(100 / len(WORDS), color="grey", linewidth=1, linestyle=":", label="guessing")
            axes.legend(loc="lower right", frameon=False)
        else:
            axes.set(xscale="log", xlim=(min(values) / 3, max(values) * 3))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(lambda *_: "")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    low, high = min(row.mean for row in rows.values()), max(row.mean for row in rows.values())
    thousands = round(sum(row.parameters for row in rows.values()) / len(rows) / 1000)
    figure.suptitle(
        f"Ten words in noise, in voices never heard, {thousands},000 parameters each: "
        f"{low:.0%} to {high:.0%} spotted",
        weight="bold",
    )
    figure.savefig(path)


# --- the whole run ----------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", nargs="+", default=LAYERS, help=f"default: {' '.join(LAYERS)}")
    parser.add_argument("--steps", type=int, help=f"of training, for each (default: {STEPS})")
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK_STEPS} steps and few voices")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints of an earlier run")
    parser.add_argument("--seed", type=int, default=0, help="of the initial values and the noise")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where to write (default: runs)")
    options = parser.parse_args(arguments)
    if options.steps is None:
        options.steps = QUICK_STEPS if options.quick else STEPS
    if options.steps < 1:
        parser.error(f"--steps must be at least 1; got {options.steps}")
    return options


def train(options: argparse.Namespace, words: Words, folder: Path) -> dict[str, Spotter] | None:
    """The trained models, by layer; None if that was interrupted."""
    models = {}
    for layer in options.layers:
        path = folder / f"{layer}.pt"
        training = Training(layer, options.steps, options.seed)
        if options.resume and path.exists():
            training.load(path)
            print(f"resuming {path} after step {training.done}")
        try:
            training.run(words, path)
        except KeyboardInterrupt:
            print(f"\nstopped; {path} holds {training.done} steps: go on with --resume", file=sys.stderr)
            return None
        models[layer] = training.model
    return models


def main(arguments: list[str] | None = None) -> int:
    """Run the example; return the exit status: 1 when a stream differs, or a model spots too few words."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    folder = options.runs / "keyword_spotting"
    if options.resume and not any(folder.glob("*.pt")):
        raise SystemExit(f"there is no checkpoint in {folder} to resume; run without --resume first")
    heard, unheard = (say(voices[:1] if options.quick else voices) for voices in (HEARD, UNHEARD))
    print(f"{len(heard.word)} spoken words to learn from, {len(unheard.word)} of other voices to test")
    models = train(options, heard, folder)
    if models is None:
        return 130
    windows = test_windows(unheard, options.seed)
    results = {layer: judge(model, windows, unheard) for layer, model in models.items()}
    show(results, feature_time_factor(windows["white"][0]))
    draw(results, folder / "keyword_spotting.png")
    print(f"wrote {folder}/keyword_spotting.png and a checkpoint for each model")

    failed = [layer for layer, result in results.items() if not result.difference <= LARGEST_DIFFERENCE]
    if failed:
        print(f"FAILED: the stream differs from all frames at once: {', '.join(failed)}", file=sys.stderr)
        return 1
    weak = [layer for layer, result in results.items() if options.steps >= STEPS and result.mean < GOAL]
    if weak:
        print(f"FAILED: fewer than {GOAL:.0%} of the words spotted: {', '.join(weak)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
