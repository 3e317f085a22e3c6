"""Train on sequences of a million elements, each split over several processes:

    torchrun --nproc-per-node 2 examples/long_sequence.py

A sequence is white noise, +s or -s at each element, and a 0 at its end, where the model is asked whether the sum of all
was above 0. Nobody can tell from a part: who sees half of the sequence knows that the answer is yes with a probability
that is uniform in 0 .. 1, and the least mean loss of such an answer is 1/2 nat; a guess has ln 2. A loss below 1/2 says
that what the first process holds has reached the last one.

Each process draws its own part and makes the gradient for it; a state a layer goes between them. Everything goes to
runs/long_sequence/: checkpoint/, history.json, training_curve.png with the peak memory of each process. ``--resume``
goes on from the checkpoint with any number of processes that divides 64.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F
from tqdm import tqdm

from sequence_kernels import S4D, parameter_groups
from sequence_kernels.distributed import context_parallel, sum_gradients

BLOCKS = 64  # of a sequence, each drawn by itself, so that every number of processes draws the same sequences
BATCH = 8
WIDTH = 4
LEARNING_RATE = 0.02
HALF_KNOWN = 0.5  # the least mean loss without half of the sequence, in nats


class Model(nn.Module):
    """``(batch, length, 1)`` to a logit after each element, ``(batch, length)``; the layer is as slow as it is long."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(1, WIDTH, bias=False)
        step = 1 / length
        self.layer = S4D(WIDTH, 4, dt_min=step / 10, dt_max=step, transposed=False)
        self.decoder = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.layer(self.encoder(x))[0]).squeeze(-1)


def draw(step: int, length: int, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    """This process's part of the sequences ``(BATCH, length / ranks, 1)``, and the answers ``(BATCH,)``."""
    blocks, size = BLOCKS // ranks, length // BLOCKS
    parts = []
    for block in range(rank * blocks, (rank + 1) * blocks):
        generator = torch.Generator().manual_seed(step * BLOCKS + block)
        parts.append(torch.randint(0, 2, (BATCH, size), generator=generator, dtype=torch.int8))
    x = (torch.cat(parts, 1).float() * 2 - 1) * math.sqrt(length)
    if rank == ranks - 1:
        x[:, -1] = 0
    total = x.sum(1, dtype=torch.float64)
    dist.all_reduce(total)
    return x.unsqueeze(-1), (total > 0).float()


class Training:
    """What a checkpoint holds, and one step of it."""

    def __init__(self, length: int) -> None:
        self.rank, self.ranks, self.length = dist.get_rank(), dist.get_world_size(), length
        self.mesh = init_device_mesh("cpu", (self.ranks,), mesh_dim_names=("cp",))
        torch.manual_seed(0)
        self.model = context_parallel(Model(length), self.mesh["cp"], equal_parts=True)
        groups = parameter_groups(self.model, lr=LEARNING_RATE, weight_decay=0.0)
        self.optimizer = torch.optim.AdamW(groups)
        self.losses: list[float] = []

    def _parts(self) -> dict[str, Any]:
        return {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
        }

    def save(self, folder: Path) -> None:
        checkpoint.save(self._parts(), checkpoint_id=folder / "checkpoint")
        memory = torch.zeros(self.ranks)
        memory[self.rank] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        dist.all_reduce(memory)
        if self.rank == 0:
            history = {"length": self.length, "losses": self.losses, "memory_mib": memory.tolist()}
            (folder / "history.json").write_text(json.dumps(history))
            plot(history, folder / "training_curve.png")

    def load(self, folder: Path) -> None:
        history = json.loads((folder / "history.json").read_text())
        if history["length"] != self.length:
            raise SystemExit(f"{folder} was trained with --length {history['length']}; say so to resume it")
        self.losses = history["losses"]
        parts = self._parts()
        checkpoint.load(parts, checkpoint_id=folder / "checkpoint")
        set_model_state_dict(self.model, parts["model"])
        set_optimizer_state_dict(self.model, self.optimizer, parts["optimizer"])

    def step(self) -> float:
        """The loss is the last process's; the others go backward for what their parts contribute to it."""
        x, answers = draw(len(self.losses), self.length, self.rank, self.ranks)
        logits = self.model(x)
        if self.rank == self.ranks - 1:
            loss = F.binary_cross_entropy_with_logits(logits[:, -1], answers)
        else:
            loss = 0 * logits.sum()
        self.optimizer.zero_grad()
        loss.backward()
        sum_gradients(self.model, self.mesh["cp"])
        self.optimizer.step()
        everyone = loss.detach().clone()
        dist.all_reduce(everyone)
        self.losses.append(float(everyone))
        return self.losses[-1]


def plot(history: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    curve, memory = figure.subplots(1, 2, width_ratios=(2, 1))
    curve.plot(history["losses"], linewidth=1)
    curve.axhline(math.log(2), color="grey", linestyle=":", label="a guess: ln 2")
    curve.axhline(HALF_KNOWN, color="tab:red", linestyle="--", label="half of the sequence: 1/2")
    curve.set(xlabel="step", ylabel="loss (nats)", title=f"Sequences of {history['length']} elements")
    curve.legend()
    memory.bar(range(len(history["memory_mib"])), history["memory_mib"])
    memory.set(xlabel="process", ylabel="peak memory (MiB)", xticks=range(len(history["memory_mib"])))
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=1 << 20, help="elements of a sequence")
    parser.add_argument("--steps", type=int, default=60, help="in all, those before a resumption counted")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where to write")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    given = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    if BLOCKS % dist.get_world_size() or given.length % BLOCKS:
        raise SystemExit(
            f"processes must divide {BLOCKS}, and {BLOCKS} the length, got {dist.get_world_size()} and {given.length}"
        )
    folder = given.runs / "long_sequence"
    folder.mkdir(parents=True, exist_ok=True)
    training = Training(given.length)
    if given.resume:
        training.load(folder)
    done = len(training.losses)
    with tqdm(total=given.steps, initial=done, unit="step", disable=training.rank > 0) as bar:
        for _ in range(done, given.steps):
            bar.set_postfix(loss=f"{training.step():.3f}")
            bar.update()
            if len(training.losses) % 20 == 0:
                training.save(folder)
    training.save(folder)
    if training.rank == 0:
        last = training.losses[-10:]
        print(
            f"mean loss of the last {len(last)} steps: {sum(last) / len(last):.3f}; without half: {HALF_KNOWN}"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
