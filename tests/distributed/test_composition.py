"""Context parallelism together with what else torch.distributed does: DDP, FSDP2, checkpoints; and a rank that dies."""

from __future__ import annotations

import copy
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from bench.harness.memory import peak
from sequence_kernels import S4D, SequenceModel, parameter_groups
from sequence_kernels.distributed import context_parallel, sum_gradients
from sequence_kernels.trees import mapped, tensors_of

from .ranks import Ranks

pytestmark = pytest.mark.thorough  # processes that load optimizers and sharding take long to begin

WIDTH, LENGTH, STEPS = 6, 24, 20


def model_of(seed: int = 0) -> SequenceModel:
    torch.manual_seed(seed)
    return SequenceModel(WIDTH, 2, layer=[{"_name_": "s4d", "d_state": 4}, "ff"], residual="R", norm="layer")


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(model, lr=1e-2, weight_decay=0.1))


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(4, LENGTH, WIDTH, generator=generator)
    return x, x.cumsum(1) / 5


def alone() -> tuple[list[float], list[Tensor]]:
    model = model_of()
    optimizer = optimizer_of(model)
    losses = []
    for step in range(STEPS):
        x, target = batch_of(step)
        loss = (model(x)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, [parameter.detach() for parameter in model.parameters()]


def trained(way: str, dp: int) -> tuple[list[float], list[Tensor]]:
    """``dp`` parts of the batch times parts of the sequences; each loss is that of the whole."""
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (dp, world // dp), mesh_dim_names=("dp", "cp"))
    model: Any = context_parallel(model_of(), mesh["cp"])
    if way == "ddp":
        model = DistributedDataParallel(model)
    elif way == "fsdp":
        everyone = init_device_mesh("cpu", (world,))
        for block in model.layers:
            fully_shard(block, mesh=everyone)
        fully_shard(model, mesh=everyone)
    optimizer = optimizer_of(model)
    losses = []
    for step in range(STEPS):
        x, target = (
            t.chunk(dp)[mesh.get_local_rank("dp")].chunk(world // dp, 1)[mesh.get_local_rank("cp")]
            for t in batch_of(step)
        )
        loss = (model(x)[0] - target).square().sum() / (4 * LENGTH * WIDTH)
        optimizer.zero_grad()
        (loss if way == "sum" else loss * world).backward()  # DDP and FSDP2 take the mean over all ranks
        if way == "sum":
            sum_gradients(model, dist.group.WORLD)
        optimizer.step()
        together = loss.detach().clone()
        dist.all_reduce(together)
        losses.append(float(together))
    return losses, [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in model.parameters()]


def check_training(answers: list[Any]) -> None:
    losses, parameters = alone()
    for found, kept in answers:
        torch.testing.assert_close(found, losses, rtol=0, atol=1e-6)
        for one, other in zip(kept, parameters, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)  # Adam divides by small numbers
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("way", ["sum", "ddp", "fsdp"])
def test_training_is_that_of_one_process(two: Ranks, way: str) -> None:
    check_training(two.run(trained, way, 1))


def peak_of_a_step(length: int) -> tuple[int | None, int | None]:
    """Bytes that a step of training takes with whole sequences, in one process, and with this rank's part of them."""
    whole = SequenceModel(32, 2, layer=[{"_name_": "s4d", "d_state": 8}, "ff"], residual="R", norm="layer")
    split = context_parallel(copy.deepcopy(whole), dist.group.WORLD)
    x = torch.randn(1, length, 32)
    part = x.chunk(dist.get_world_size(), 1)[dist.get_rank()]

    def of(model: Any, x: Tensor) -> int | None:
        model(x[:, :64])[0].sum().backward()
        return peak(lambda: model(x)[0].square().sum().backward(), x.device)

    return of(whole, x) if dist.get_rank() == 0 else None, of(split, part)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be forgotten")
@pytest.mark.parametrize("ranks", [2, 4])
def test_peak_memory_of_a_rank(ranks: int, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue({2: "two", 4: "four"}[ranks]).run(peak_of_a_step, 1 << 15)
    whole = found[0][0]
    assert whole > 16 * 4 * 32 * (1 << 15)  # what is kept for the gradients
    assert all(split < 1.2 * whole / ranks for _, split in found)


@pytest.mark.parametrize("way", ["sum", "ddp", "fsdp"])
def test_training_on_two_dimensions(four: Ranks, way: str) -> None:
    check_training(four.run(trained, way, 2))


def saved(folder: str) -> list[Tensor]:
    """Save a sharded model, its optimizer and a state that it carries; what it gives next."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = context_parallel(model_of(), mesh)
    fully_shard(model, mesh=mesh)
    optimizer = optimizer_of(model)
    x, _ = batch_of(0)
    here = x.chunk(dist.get_world_size(), 1)[dist.get_rank()]
    y, state = model(here, model.default_state(4))
    y.square().mean().backward()
    optimizer.step()
    state = mapped(Tensor.detach, state)
    checkpoint.save(
        {
            "model": get_model_state_dict(model),
            "optimizer": get_optimizer_state_dict(model, optimizer),
            "stream": list(tensors_of(state)),
        },
        checkpoint_id=folder,
    )
    with torch.no_grad():
        return [model(here, state)[0]]


def test_a_checkpoint_goes_to_another_number_of_ranks(two: Ranks, tmp_path: Path) -> None:
    """From two ranks to one process, with a state that is carried; it then gives what the ranks gave."""
    expected = torch.cat([part for (part,) in two.run(saved, str(tmp_path))], 1)
    model = model_of(seed=1)
    optimizer = optimizer_of(model)
    state = model.default_state(4)
    kept = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "stream": list(tensors_of(state)),
    }
    checkpoint.load(kept, checkpoint_id=tmp_path)
    model.load_state_dict(kept["model"])
    assert any(float(part["exp_avg"].abs().max()) > 0 for part in kept["optimizer"]["state"].values())
    with torch.no_grad():
        y, _ = model(batch_of(0)[0], state)
    torch.testing.assert_close(y, expected, rtol=0, atol=2e-6)


def left_alone(rank: int, store: str, how: str, pipe: Any) -> None:
    dist.init_process_group("gloo", f"file://{store}", timeout=timedelta(seconds=5), rank=rank, world_size=2)
    layer = context_parallel(S4D(WIDTH, 4, transposed=False), dist.group.WORLD)
    layer(torch.randn(1, 8, WIDTH))
    if rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(30)
    begun = time.monotonic()
    try:
        layer(torch.randn(1, 8, WIDTH))
    except RuntimeError as error:
        pipe.send((time.monotonic() - begun, str(error)))


@pytest.mark.parametrize("how", ["killed", "absent"])
def test_no_rank_waits_for_ever(tmp_path: Path, how: str) -> None:
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    processes = [
        context.Process(target=left_alone, args=(rank, str(tmp_path / "store"), how, theirs), daemon=True)
        for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    assert ours.poll(90)
    seconds, message = ours.recv()
    assert seconds < 10
    assert "rank 0 of 2 waited in vain for another rank" in message
    for process in processes:
        process.kill()
        process.join()
