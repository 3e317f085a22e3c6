"""Sequences split over ranks: outputs, states and gradients are those of one process with all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import accumulate
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sequence_kernels import (
    DSS,
    GRU,
    LRU,
    S4,
    S4D,
    S5,
    S6,
    CausalConv,
    FeedForward,
    Mamba,
    Mamba2,
    MambaLM,
    MultiHeadedAttention,
    S4Decoder,
    SequenceDecoder,
    SequenceModel,
)
from sequence_kernels.distributed import collectives, context_parallel, sum_gradients
from sequence_kernels.layers.pools import DownSpectralPool, UpPool
from sequence_kernels.layers.series_norms import ReversibleInstanceNorm1dInput
from sequence_kernels.trees import mapped, tensors_of

from .ranks import Ranks

WIDTH, BATCH, LENGTH = 6, 2, 48

MODULES: dict[str, Callable[[], nn.Module]] = {
    "s4d": lambda: S4D(WIDTH, 8, transposed=False),
    "s4d-channels-first": lambda: S4D(WIDTH, 4, disc="bilinear", channels=2, n_ssm=2),
    "s4d-bottleneck": lambda: S4(WIDTH, 4, mode="diag", measure="diag-inv", bottleneck=2, transposed=False),
    "s4": lambda: S4(WIDTH, 8, transposed=False),
    "s4-options": lambda: S4(WIDTH, 4, measure="legt", rank=2, hyper_act="tanh", gate=2, transposed=False),
    "dss": lambda: DSS(WIDTH, 4),
    "dss-softmax": lambda: DSS(WIDTH, 4, version="softmax", l_max=64),
    "s5": lambda: S5(WIDTH, 8),
    "lru": lambda: LRU(WIDTH, 5),
    "conv": lambda: CausalConv(WIDTH, 7, activation="silu"),
    "conv-longer-than-parts": lambda: CausalConv(WIDTH, 40),
    "both-ways": lambda: S4D(WIDTH, 4, bidirectional=True, transposed=False),
    "both-ways-dense": lambda: S4(WIDTH, 4, bidirectional=True, channels=2),
    "attention": lambda: MultiHeadedAttention(WIDTH, 2),
    "attention-both-ways": lambda: MultiHeadedAttention(WIDTH, 2, causal=False, transposed=True),
    "s6": lambda: S6(WIDTH, 3),
    "mamba": lambda: Mamba(WIDTH, 3),
    "mamba2": lambda: Mamba2(WIDTH, 3, headdim=4),
    "mamba2-options": lambda: Mamba2(WIDTH, 3, headdim=2, d_ssm=8, ngroups=2, dt_limit=(0.005, 0.05)),
    "stack": lambda: SequenceModel(
        WIDTH, 2, layer=[{"_name_": "s4d", "d_state": 4}, "ff"], residual="R", norm="layer"
    ),
    "stack-of-kinds": lambda: SequenceModel(
        WIDTH, layer=["mamba", {"_name_": "s4", "d_state": 4}, "ff"], residual="R", transposed=False
    ),
    "stack-both-ways": lambda: SequenceModel(
        WIDTH, layer=[{"_name_": "s4d", "d_state": 4, "bidirectional": True}, "mamba", "ff"], residual="R"
    ),
    "stack-with-attention": lambda: SequenceModel(
        WIDTH,
        layer=[{"_name_": "mha", "n_head": 2}, {"_name_": "s4", "d_state": 4}],
        residual="R",
        norm="layer",
    ),
    "pools": lambda: SequenceModel(
        WIDTH, 2, layer={"_name_": "s4d", "d_state": 4}, pool={"_name_": "linear", "stride": 2}
    ),
    "readouts": lambda: SequenceDecoder(WIDTH, 3),
    "pointwise": lambda: FeedForward(WIDTH),
}
#: Equal parts; unequal ones; nothing on one rank.
LENGTHS = (24, 24), (40, 8), (0, 48)


class Case:
    """One rank's share of what a module does to random sequences, and all of what one process does."""

    def __init__(
        self, module: nn.Module, lengths: tuple[int, ...], dtype: torch.dtype, **options: Any
    ) -> None:
        torch.manual_seed(1)
        rank, begins = dist.get_rank(), [0, *accumulate(lengths)]
        self.here = slice(begins[rank], begins[rank + 1])
        self.whole = module.to(dtype).train(False)
        self.split = context_parallel(copy.deepcopy(self.whole), dist.group.WORLD, **options)
        self.first = getattr(module, "channels_first", False)
        x = torch.randn(BATCH, sum(lengths), WIDTH, dtype=dtype)
        self.x = (x.mT if self.first else x).requires_grad_()
        self.state = None
        if getattr(module, "causal", True):
            self.state = mapped(random_part, self.whole.default_state(BATCH))

    def own(self, whole: Tensor) -> Tensor:
        """This rank's part of sequences; of shorter ones, that of a pool, its share."""
        part = self.here
        if not self.first and whole.shape[1] != self.x.shape[1]:
            shorter = self.x.shape[1] // whole.shape[1]
            part = slice(part.start // shorter, part.stop // shorter)
        return whole[..., part] if self.first else whole[:, part]

    def errors(self, with_state: bool) -> dict[str, float]:
        """The largest differences, in units of the largest value, or of 1 where that is less."""
        state = self.state if with_state else None
        y, after = self.whole(self.x, state)
        weights = torch.randn_like(y)
        ours = self.own(self.x).detach().requires_grad_()
        y_ours, after_ours = self.split(ours, state)
        (y * weights).sum().backward()
        (y_ours * self.own(weights)).sum().backward()
        sum_gradients(self.split, dist.group.WORLD)
        assert (after_ours is None) == (after is None)
        pairs = {
            "y": [(y_ours, self.own(y))],
            "state": list(zip(tensors_of(after_ours), tensors_of(after), strict=True)),
            "x": [(ours.grad, self.own(self.x.grad))],
            "parameters": [
                (a.grad, b.grad)
                for a, b in zip(self.split.parameters(), self.whole.parameters(), strict=True)
            ],
        }
        return {name: max((off(*pair) for pair in found), default=0.0) for name, found in pairs.items()}


def random_part(start: Tensor) -> Tensor:
    """Of a state; of the keys and values of attention, as after three elements."""
    grows = start.dim() == 4 and start.shape[-2] == 0
    return torch.randn_like(start.new_empty(*start.shape[:-2], 3, start.shape[-1]) if grows else start)


def off(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    if not wanted.numel():
        return 0.0
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max().clamp(min=1))


def of_module(name: str, lengths: tuple[int, ...], dtype: torch.dtype, with_state: bool) -> dict[str, float]:
    torch.manual_seed(0)
    return Case(MODULES[name](), lengths, dtype).errors(with_state)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_one_process_in_double(two: Ranks, name: str, lengths: tuple[int, ...]) -> None:
    for errors in two.run(of_module, name, lengths, torch.float64, lengths != (40, 8)):
        assert all(e < 1e-12 for e in errors.values()), errors


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODULES)
def test_one_process_in_single(two: Ranks, name: str) -> None:
    for errors in two.run(of_module, name, (28, 20), torch.float32, True):
        assert all(e < 2e-6 for e in errors.values()), errors


@pytest.mark.thorough
@pytest.mark.parametrize(
    "lengths", [(12, 12, 12, 12), (20, 0, 16, 12), (0, 0, 0, 48), (48, 0, 0, 0)], ids=str
)
@pytest.mark.parametrize("name", MODULES)
def test_four_ranks(four: Ranks, name: str, lengths: tuple[int, ...]) -> None:
    for errors in four.run(of_module, name, lengths, torch.float64, True):
        assert all(e < 1e-12 for e in errors.values()), errors


def bytes_sent(batch: int, length: int, layer: str) -> list[int]:
    """What this rank hands to each collective, in order."""
    model = SequenceModel(WIDTH, 2, layer={"_name_": layer, "d_state": 4}, norm="layer")
    context_parallel(model, dist.group.WORLD)
    sent = []

    def counted(collective: Callable[..., None], shares: int) -> Callable[..., None]:
        def call(out: Tensor, x: Tensor, **kwargs: Any) -> None:
            sent.append(x.numel() * x.element_size() // shares)
            collective(out, x, **kwargs)

        return call

    with (
        mock.patch.object(collectives, "_gather", counted(collectives._gather, 1)),
        mock.patch.object(collectives, "_scatter", counted(collectives._scatter, dist.get_world_size())),
    ):
        model(torch.randn(batch, length, WIDTH))[0].sum().backward()
    return sent


def test_bytes_do_not_depend_on_the_length(two: Ranks) -> None:
    """One gather a layer forward, one sum backward, of B H N numbers, complex here, and six that say the length."""
    for batch, length in ((1, 10), (1, 5000), (3, 40)):
        for calls in two.run(bytes_sent, batch, length, "s4d"):
            assert calls == [4 * (batch * WIDTH * 2 * 2 + 6)] * 4


def broken_promise(length_by_rank: tuple[int, int]) -> str:
    layer = context_parallel(S4D(WIDTH, 4, transposed=False), dist.group.WORLD, equal_parts=True)
    with pytest.raises(ValueError, match="equal_parts=True") as error:
        layer(torch.randn(1, length_by_rank[dist.get_rank()], WIDTH))
    return str(error.value)


def test_a_broken_promise_is_seen(two: Ranks) -> None:
    for rank, message in enumerate(two.run(broken_promise, (700, 20))):
        assert f"[700, 20] elements; rank {rank} has {(700, 20)[rank]}" in message


def tokens_of(make: str) -> dict[str, float]:
    """Models of tokens, of which the second has padding at the end of a row."""
    torch.manual_seed(0)
    rank = dist.get_rank()
    tokens = torch.randint(0, 7, (BATCH, 20))
    here = slice(0, 13) if rank == 0 else slice(13, 20)
    if make == "mamba":
        whole = MambaLM(7, WIDTH, 2, d_state=3).double()
        split = context_parallel(copy.deepcopy(whole), dist.group.WORLD)
        y, ours = whole(tokens)[0], split(tokens[:, here])[0]
        real = torch.ones_like(tokens, dtype=torch.bool)
    else:
        whole = S4Decoder(7, WIDTH, n_layers=2, dropout=0.0, layer={"_name_": "s4d", "d_state": 4}).double()
        split = context_parallel(copy.deepcopy(whole), dist.group.WORLD)
        lengths = torch.tensor([20, 9])
        y = whole(None, None, tokens, lengths)[0]
        own = (lengths - here.start).clamp(0, here.stop - here.start)
        ours = split(None, None, tokens[:, here], own)[0]
        real = torch.arange(20) < lengths.unsqueeze(-1)
    torch.where(real.unsqueeze(-1), y, 0).square().sum().backward()
    torch.where(real[:, here].unsqueeze(-1), ours, 0).square().sum().backward()
    sum_gradients(split, dist.group.WORLD)
    gradients = [off(a.grad, b.grad) for a, b in zip(split.parameters(), whole.parameters(), strict=True)]
    return {"y": off(ours[real[:, here]], y[:, here][real[:, here]]), "gradients": max(gradients)}


@pytest.mark.parametrize("make", ["mamba", "s4"])
def test_models_of_tokens(two: Ranks, make: str) -> None:
    for errors in two.run(tokens_of, make):
        assert all(e < 1e-12 for e in errors.values()), errors


def padded(make: str) -> dict[str, float]:
    """Of layers that look at all positions, with padding at the end of a row."""
    torch.manual_seed(0)
    whole = MODULES[make]().double()
    split = context_parallel(copy.deepcopy(whole), dist.group.WORLD)
    first = getattr(whole, "channels_first", False)
    lengths, here = torch.tensor([20, 9]), slice(0, 13) if dist.get_rank() == 0 else slice(13, 20)
    real = (torch.arange(20) < lengths.unsqueeze(-1)).unsqueeze(-1)
    x = torch.where(real, torch.randn(BATCH, 20, WIDTH, dtype=torch.float64), torch.nan)
    own = (lengths - here.start).clamp(0, here.stop - here.start)
    y = whole(x.mT if first else x, lengths=lengths)[0]
    ours = split((x.mT if first else x)[..., here] if first else x[:, here], lengths=own)[0]
    y, ours = (y.mT, ours.mT) if first else (y, ours)
    torch.where(real, y, 0).square().sum().backward()
    torch.where(real[:, here], ours, 0).square().sum().backward()
    sum_gradients(split, dist.group.WORLD)
    gradients = [off(a.grad, b.grad) for a, b in zip(split.parameters(), whole.parameters(), strict=True)]
    return {
        "y": off(torch.where(real[:, here], ours, 0), torch.where(real, y, 0)[:, here]),
        "gradients": max(gradients),
    }


@pytest.mark.parametrize(
    "make", ["both-ways", "both-ways-dense", "attention", "attention-both-ways", "stack-both-ways"]
)
def test_padding(two: Ranks, make: str) -> None:
    for errors in two.run(padded, make):
        assert all(e < 1e-12 for e in errors.values()), errors


def handed_to_a_decoder() -> float:
    """Each rank alone goes on from the state of a prefill that all ranks ran."""
    torch.manual_seed(0)
    model = MambaLM(7, WIDTH, 2, d_state=3).double()
    whole = copy.deepcopy(model)
    context_parallel(model, dist.group.WORLD)
    tokens = torch.randint(0, 7, (1, 20))
    here = slice(0, 13) if dist.get_rank() == 0 else slice(13, 20)
    _, state = model(tokens[:, here], model.default_state(1))
    expected = whole.default_state(1)
    _, expected = whole(tokens, expected)
    worst = 0.0
    if dist.get_rank() == 1:  # would wait for ever if a step were an exchange
        for token in (3, 1, 4):
            y, state = model.step(torch.tensor([token]), state)
            y_whole, expected = whole.step(torch.tensor([token]), expected)
            worst = max(worst, off(y, y_whole))
    return worst


def test_a_prefill_on_many_ranks_hands_its_state_to_one(two: Ranks) -> None:
    assert all(e < 1e-12 for e in two.run(handed_to_a_decoder))


def second_derivatives() -> float:
    torch.manual_seed(0)
    whole = S4D(WIDTH, 4, transposed=False).double()
    split = context_parallel(copy.deepcopy(whole), dist.group.WORLD)
    x = torch.randn(1, 12, WIDTH, dtype=torch.float64)
    here = slice(0, 6) if dist.get_rank() == 0 else slice(6, 12)

    def of(module: nn.Module, x: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module(x)[0].pow(3).sum(), x, create_graph=True)
        gradient.square().sum().backward()
        return [gradient.detach(), x.grad]

    pairs = zip(of(split, x[:, here]), of(whole, x), strict=True)
    return max(off(ours, wanted[:, here]) for ours, wanted in pairs)


@pytest.mark.thorough
def test_second_derivatives(two: Ranks) -> None:
    assert all(e < 1e-12 for e in two.run(second_derivatives))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dss-of-each-call": (lambda: S4D(WIDTH, 4, disc="dss"), "dss S4D is not causal"),
    "l_max": (lambda: S4(WIDTH, 4, l_max=30), "l_max=30"),
    "frozen": (lambda: S4D(WIDTH, 4).freeze(), "frozen"),
    "gru": (lambda: GRU(WIDTH), "GRU is not linear"),
    "instance": (lambda: SequenceModel(WIDTH, norm="instance"), r"layers\.0\.norm: norm='instance'"),
    "batch": (lambda: SequenceModel(WIDTH, norm="batch"), "norm='batch'"),
    "tied-dropout": (lambda: SequenceModel(WIDTH, dropout=0.1, tie_dropout=True), "tie_dropout"),
    "drop-path": (lambda: SequenceModel(WIDTH, residual="R", drop_path=0.1), "drop_path"),
    "spectral": (lambda: DownSpectralPool(WIDTH, 2), "spectral"),
    "up-pool": (lambda: UpPool(WIDTH, 4, 3), "delays by 3"),
    "readout": (lambda: SequenceDecoder(WIDTH, 3, l_output=0), "l_output=0"),
    "mean": (lambda: SequenceDecoder(WIDTH, 3, mode="pool"), "mode='pool'"),
    "series": (lambda: nn.Sequential(ReversibleInstanceNorm1dInput(WIDTH)), "whole series"),
    "torch": (lambda: nn.Sequential(nn.Conv1d(WIDTH, WIDTH, 3)), "Conv1d looks at other positions"),
}


def refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        context_parallel(make(), dist.group.WORLD)


def refused_calls() -> None:
    layer = context_parallel(S4D(WIDTH, 4, transposed=False), dist.group.WORLD)
    x, state = torch.randn(1, 8, WIDTH), layer.default_state(1)
    for name, value in {
        "cu_seqlens": torch.tensor([0, 8]),
        "reset": torch.zeros(1, 8, dtype=torch.bool),
        "attention_mask": torch.ones(1, 8),
        "states_at": "all",
        "rate": torch.ones(1),
    }.items():
        with pytest.raises(ValueError, match=name):
            layer(x, **{name: value})
    with pytest.raises(ValueError, match="lengths cannot be given together with a state"):
        layer(x, state, lengths=torch.tensor([8]))
    with pytest.raises(ValueError, match="lengths cannot be given together with a state"):
        layer(x, state, 1.0, torch.tensor([8]))


def test_what_cannot_be_split_is_refused_by_name(two: Ranks) -> None:
    for name in REFUSED:
        two.run(refused, name)
    two.run(refused_calls)


def compiled_gradients() -> float:
    """Two layers under inductor: collectives of graphs that differ from rank to rank would pair up wrongly there."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    whole = SequenceModel(WIDTH, 2, layer={"_name_": "s4d", "d_state": 4}, residual="R").double()
    split = context_parallel(copy.deepcopy(whole), dist.group.WORLD, equal_parts=True)
    compiled = torch.compile(split, fullgraph=True)
    x = torch.randn(2, 24, WIDTH, dtype=torch.float64)
    here = slice(0, 12) if dist.get_rank() == 0 else slice(12, 24)
    y, ours = whole(x)[0], compiled(x[:, here])[0]
    y.pow(3).sum().backward()
    ours.pow(3).sum().backward()
    sum_gradients(split, dist.group.WORLD)
    gradients = [off(a.grad, b.grad) for a, b in zip(split.parameters(), whole.parameters(), strict=True)]
    return max(off(ours, y[:, here]), *gradients)


@pytest.mark.thorough
def test_compiled(two: Ranks) -> None:
    assert all(e < 1e-12 for e in two.run(compiled_gradients))
