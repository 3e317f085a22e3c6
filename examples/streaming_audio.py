"""Clean noisy speech while it is being spoken: a causal S4D stack on raw audio, 10 ms at a time.

The speech is synthesised by espeak-ng, or read from a WAV file of your own (--audio). A stack of S4D layers learns to
take white noise away from a few sentences; then a sentence that it has never heard arrives in blocks of 10 ms, as
from a microphone, and once more sample by sample. Both must equal the same model run over the whole recording at once.

Everything it makes goes to runs/streaming_audio/: noisy.wav and cleaned.wav, of one loudness, streaming_audio.png, and
checkpoint.pt, from which --resume goes on after Ctrl-C. --save writes the
model for programs without Python: examples/c_stream/clean.c is one.
"""

from __future__ import annotations

import argparse
import sys
import time
import wave
from pathlib import Path
from typing import Any, NamedTuple

import torch
from espeak import Sound, Utterance, normalised, pcm, speak
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from sequence_kernels import SequenceModel, SequenceModule, Stepper, parameter_groups

SENTENCES = (
    "A state space model remembers the past in a state of fixed size.",
    "She sells sea shells by the sea shore, and the shells she sells are surely sea shells.",
    "The north wind and the sun disputed which of them was the stronger.",
    "Five quick brown foxes jumped over the lazy dog, who did not care at all.",
)
UNHEARD = "Every block of ten milliseconds is cleaned before the next one has been spoken."

BLOCK_SECONDS = 0.01
NOISE_DB = 5  # speech over noise
STEPS, QUICK_STEPS = 300, 10
BATCH, SNIPPET = 8, 4096  # samples
LEARNING_RATE = 1.5e-2  # at its highest
WARM_UP = 5  # blocks that are not counted: the first ones make what the later ones use
GAIN_DB = 4  # what is promised of a whole training on espeak-ng's sentences
SAVED_EVERY = 25  # steps
LARGEST_DIFFERENCE = 1e-4  # between streamed and offline output, where speech reaches 1


class Denoiser(SequenceModule):
    """Samples ``(..., length, 1)`` to cleaned samples ``(..., length, 1)``: it learns what to take away."""

    def __init__(self, d_model: int = 32, n_layers: int = 3) -> None:
        super().__init__()
        self.d_model = self.d_output = 1
        self.encoder = nn.Linear(1, d_model)
        self.backbone = SequenceModel(
            d_model, n_layers, layer={"_name_": "s4d", "d_state": 32}, residual="R", norm="layer"
        )
        self.decoder = nn.Linear(d_model, 1)
        nn.init.zeros_(self.decoder.weight)

    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        y, state = self.backbone(self.encoder(x), state, **kwargs)
        return x + self.decoder(y), state

    def step(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        y, state = self.backbone.step(self.encoder(x), state, **kwargs)
        return x + self.decoder(y), state

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Any:
        return self.backbone.default_state(*batch_shape, device=device)


# --- sound ------------------------------------------------------------------------------------------------------


def read_wav(path: Path) -> Sound:
    """A WAV file of 16 bits a sample."""
    with wave.open(str(path)) as file:
        if file.getsampwidth() != 2:
            raise SystemExit(f"{path} has {8 * file.getsampwidth()} bits a sample; 16 are needed")
        data = file.readframes(file.getnframes())
        return Sound(normalised(pcm(data, file.getnchannels())), file.getframerate())


def write_wav(path: Path, sound: Sound) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, sound.rate, 0, "NONE", ""))
        file.writeframes((sound.samples.clamp(-1, 1) * 32767).short().numpy().tobytes())


def at_one_loudness(*sounds: Tensor) -> list[Tensor]:
    """The sounds with the same root mean square, as loud as fits into [-1, 1]."""
    levels = [sound.square().mean().sqrt() for sound in sounds]
    common = min(level / sound.abs().max() for level, sound in zip(levels, sounds, strict=True))
    return [sound * (common / level) for level, sound in zip(levels, sounds, strict=True)]


def noise_under(speech: Tensor) -> Tensor:
    """The root mean square of noise ``NOISE_DB`` under that of the speech, pauses and all."""
    return speech.square().mean().sqrt() * 10 ** (-NOISE_DB / 20)


def with_noise(clean: Tensor, level: Tensor) -> Tensor:
    """White noise added, as loud in a pause as anywhere."""
    return clean + level * torch.randn_like(clean)


def decibels(clean: Tensor, heard: Tensor) -> float:
    """Speech over what is wrong with it."""
    return 10 * torch.log10(clean.square().sum() / (heard - clean).square().sum()).item()


# --- training ---------------------------------------------------------------------------------------------------


class Training:
    """A model, its optimizer and how far it has come: all that a checkpoint holds."""

    def __init__(self, steps: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.config = {"steps": steps, "seed": seed}
        self.done = 0
        self.model = Denoiser()
        groups = parameter_groups(self.model, lr=LEARNING_RATE, weight_decay=0.0)
        self.optimizer = torch.optim.AdamW(groups)
        rates = [group["lr"] for group in groups]
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rates, total_steps=steps)

    def save(self, path: Path) -> None:
        """Write the checkpoint so that an interruption leaves either the old one or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new")
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "schedule")}
        torch.save({"config": self.config, "done": self.done, **parts}, unfinished)
        unfinished.replace(path)

    def load(self, path: Path) -> None:
        checkpoint = torch.load(path, weights_only=True)
        for name, value in checkpoint["config"].items():
            if value != self.config[name]:
                raise SystemExit(f"{path} was trained with --{name} {value}; say so to resume it")
        self.done = checkpoint["done"]
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(checkpoint[name])

    def run(self, speech: Tensor, path: Path) -> None:
        """Fit the model on random snippets of the speech with fresh noise; what is done is kept, come what may."""
        bar = tqdm(total=self.config["steps"], initial=self.done, desc="training", unit="step", disable=None)
        try:
            with bar:
                while self.done < self.config["steps"]:
                    torch.manual_seed(self.config["seed"] * 100_000 + self.done)  # resumed, the same numbers
                    error = self._step(speech)
                    self.done += 1
                    bar.update()
                    bar.set_postfix_str(f"error {error:.5f}")
                    if bar.disable and self.done % SAVED_EVERY == 0:  # not a terminal
                        print(f"step {self.done}/{self.config['steps']}: error {error:.5f}", flush=True)
                    if self.done % SAVED_EVERY == 0:
                        self.save(path)
        finally:
            self.save(path)

    def _step(self, speech: Tensor) -> float:
        starts = torch.randint(0, len(speech) - SNIPPET, (BATCH,))
        clean = torch.stack([speech[start : start + SNIPPET] for start in starts.tolist()])
        cleaned, _ = self.model(with_noise(clean, noise_under(speech)).unsqueeze(-1))
        loss = (cleaned.squeeze(-1) - clean).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()


# --- streaming --------------------------------------------------------------------------------------------------


class Stream(NamedTuple):
    samples: Tensor  # (length,)
    seconds: list[float]  # of each call


def stream(stepper: Stepper, samples: Tensor, size: int) -> Stream:
    """Take the samples in blocks of that size, or one by one, as they would arrive."""
    stepper.reset()
    channels, outputs, seconds = samples.unsqueeze(-1), torch.empty_like(samples), []
    for at in range(0, len(samples), size):
        piece = channels[at : at + size]
        start = time.perf_counter()
        output = stepper.step(piece[0]) if size == 1 else stepper.forward(piece)
        seconds.append(time.perf_counter() - start)
        outputs[at : at + size] = output.view(-1)
    return Stream(outputs, seconds)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def report(name: str, streamed: Stream, offline: Tensor, rate: int) -> float:
    """Print latencies and the real-time factor; return the largest difference from the offline output."""
    counted = streamed.seconds[WARM_UP:]
    shown = "  ".join(f"{1e3 * percentile(counted, share):8.3f}" for share in (0.5, 0.9, 0.99, 1.0))
    factor = sum(streamed.seconds) / (len(offline) / rate)
    difference = (streamed.samples - offline).abs().max().item()
    print(f"{name:<22}{shown}{factor:>20.4f}{difference:>24.1e}")
    return difference


# --- the picture ------------------------------------------------------------------------------------------------


def draw(
    noisy: Tensor, clean: Tensor, streamed: Tensor, offline: Tensor, rate: int, title: str, path: Path
) -> None:
    figure = Figure(figsize=(11, 8.5), dpi=150, layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=15, weight="bold")
    whole, near, error = figure.subplots(3, 1, height_ratios=(3, 3, 2))
    seconds = torch.arange(len(noisy)) / rate
    whole.plot(seconds, noisy, color="silver", linewidth=0.5, label="input: speech with noise")
    whole.plot(seconds, streamed, color="tab:blue", linewidth=0.5, label="streamed output")
    middle = int(clean.unfold(0, rate // 25, rate // 50).square().mean(1).argmax()) * (rate // 50)
    part = slice(middle, middle + rate // 25)  # 40 ms where speech is loudest
    whole.axvspan(seconds[part][0], seconds[part][-1], color="tab:orange", alpha=0.5, label="shown below")
    near.plot(seconds[part], noisy[part], color="silver", linewidth=1, label="input")
    near.plot(
        seconds[part], clean[part], color="black", linewidth=1, linestyle=":", label="speech without noise"
    )
    near.plot(
        seconds[part], offline[part], color="tab:orange", linewidth=4, alpha=0.5, label="offline output"
    )
    near.plot(seconds[part], streamed[part], color="tab:blue", linewidth=1.2, label="streamed output")
    block = round(BLOCK_SECONDS * rate)
    for edge in range(-(-part.start // block) * block, part.stop, block):
        near.axvline(edge / rate, color="grey", linewidth=0.5, linestyle="--")
    error.semilogy(seconds, (streamed - offline).abs().clamp(min=1e-9), color="tab:blue", linewidth=0.4)
    error.axhline(LARGEST_DIFFERENCE, color="tab:red", linewidth=1, label="allowed")
    whole.set(xlabel="seconds", ylabel="amplitude")
    near.set(xlabel="seconds (dashed: blocks of 10 ms)", ylabel="amplitude")
    error.set(xlabel="seconds", ylabel="|streamed - offline|", ylim=(1e-9, 1e-3))
    for axes in (whole, near, error):
        axes.margins(x=0)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    figure.savefig(path)


# --- the whole run ----------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--audio", type=Path, help="a WAV file of clean speech, at least some seconds, in place of espeak-ng"
    )
    parser.add_argument("--steps", type=int, help=f"of training (default: {STEPS})")
    parser.add_argument(
        "--quick", action="store_true", help=f"only {QUICK_STEPS} steps, to see that it all works"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint of an earlier run")
    parser.add_argument("--seed", type=int, default=0, help="of the initial values and the noise")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1, the fastest)")
    parser.add_argument(
        "--save", type=Path, help="where to write a step of the model, for the C library (.skp)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where to write (default: runs)")
    options = parser.parse_args(arguments)
    if options.steps is None:
        options.steps = QUICK_STEPS if options.quick else STEPS
    if options.steps < 1:
        parser.error(f"--steps must be at least 1; got {options.steps}")
    return options


def get_speech(audio: Path | None) -> tuple[Tensor, Sound]:
    """Speech to learn from, and a sound to stream that is no part of it: another sentence, or the file's last third."""
    if audio is None:
        *heard, unheard = speak(map(Utterance, (*SENTENCES, UNHEARD)))
        return torch.cat([sound.samples for sound in heard]), unheard
    sound = read_wav(audio)
    cut = 2 * len(sound.samples) // 3
    if cut <= SNIPPET:
        raise SystemExit(f"{audio} has {len(sound.samples)} samples; more than {3 * SNIPPET // 2} are needed")
    return sound.samples[:cut], Sound(sound.samples[cut:], sound.rate)


def trained(options: argparse.Namespace, speech: Sound, checkpoint: Path) -> Denoiser | None:
    """The model after its training, in eval mode; None if that was interrupted."""
    training = Training(options.steps, options.seed)
    if options.resume:
        if not checkpoint.exists():
            raise SystemExit(f"there is no {checkpoint} to resume; run without --resume first")
        training.load(checkpoint)
        print(f"resuming {checkpoint} after step {training.done}")
    size = sum(parameter.numel() for parameter in training.model.parameters())
    seconds = len(speech.samples) / speech.rate
    print(f"{size} parameters, {seconds:.1f} s of speech to learn from, {speech.rate} samples a second")
    try:
        training.run(speech.samples, checkpoint)
    except KeyboardInterrupt:
        print(f"\nstopped; {checkpoint} holds {training.done} steps: go on with --resume", file=sys.stderr)
        return None
    return training.model.eval()


def headline(before: float, after: float) -> str:
    if after <= before:
        return f"Trained too little to clean anything: {before:.1f} dB before, {after:.1f} dB after"
    return f"Noise reduced by {after - before:.1f} dB as it comes, 10 ms at a time, in a sentence never heard before"


def main(arguments: list[str] | None = None) -> int:
    """Run the example; return the exit status: 1 when a stream differs from offline, or too little is gained."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    folder = options.runs / "streaming_audio"
    heard, (clean, rate) = get_speech(options.audio)
    model = trained(options, Sound(heard, rate), folder / "checkpoint.pt")
    if model is None:
        return 130

    torch.manual_seed(options.seed)
    noisy = with_noise(clean, noise_under(clean))
    with torch.inference_mode():
        offline = model(noisy.view(1, -1, 1))[0].view(-1)
    before, after = decibels(clean, noisy), decibels(clean, offline)
    print(f"speech over noise, unheard sentence: {before:.1f} dB before, {after:.1f} dB after\n")

    stepper = model.stepper()
    if options.save is not None:
        stepper.save(options.save)
    by_block = stream(stepper, noisy, round(BLOCK_SECONDS * rate))
    by_sample = stream(stepper, noisy, 1)
    print(
        f"{'milliseconds a call':<22}{'median':>8}  {'90 %':>8}  {'99 %':>8}  {'worst':>8}"
        f"{'real-time factor':>20}{'largest difference':>24}"
    )
    difference = max(
        report(f"{len(by_block.seconds)} blocks of 10 ms", by_block, offline, rate),
        report("sample by sample", by_sample, offline, rate),
    )

    for name, samples in zip(("noisy", "cleaned"), at_one_loudness(noisy, by_block.samples), strict=True):
        write_wav(folder / f"{name}.wav", Sound(samples, rate))
    title = headline(before, after)
    draw(noisy, clean, by_block.samples, offline, rate, title, folder / "streaming_audio.png")
    print(f"\nwrote {folder}/noisy.wav, cleaned.wav, streaming_audio.png, checkpoint.pt")
    return judge(difference, after - before, promised=options.audio is None and options.steps >= STEPS)


def judge(difference: float, gain: float, promised: bool) -> int:
    """The exit status, and why it is 1."""
    if not difference <= LARGEST_DIFFERENCE:
        print(
            f"FAILED: a stream differs by {difference:.1e}, allowed {LARGEST_DIFFERENCE:.0e}", file=sys.stderr
        )
        return 1
    if promised and not gain >= GAIN_DB:
        print(f"FAILED: speech over noise rose by {gain:.1f} dB, promised {GAIN_DB}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
